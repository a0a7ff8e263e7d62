"""Adaptation methods: one file each, none knowing another; documents in, lesson plan out."""

from adapters.methods.base import LessonPlan, Method
from adapters.methods.seal import Seal
from adapters.spec import MethodConfig, SealConfig

__all__ = ["LessonPlan", "Method", "build_method"]


def build_method(config: MethodConfig) -> Method:
    """The method that a config names."""
    match config:
        case SealConfig():
            return Seal(config)
