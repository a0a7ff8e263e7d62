"""Adaptation methods: one file each, none knowing another; an assignment in, weights out."""

from adapters.methods.base import Method
from adapters.methods.seal import Seal
from adapters.methods.seal_fewshot import SealFewShot
from adapters.methods.workbench import Assignment, Outcome, Workbench
from adapters.spec import FewShotConfig, MethodConfig, SealConfig

__all__ = ["Assignment", "Method", "Outcome", "Workbench", "build_method"]


def build_method(config: MethodConfig) -> Method:
    """The method that a config names."""
    match config:
        case SealConfig():
            return Seal(config)
        case FewShotConfig():
            return SealFewShot(config)
