"""Adaptation methods: one file each, none knowing another; an assignment in, weights out."""

from adapters.methods.base import Method
from adapters.methods.distill import Distill
from adapters.methods.heal import Heal
from adapters.methods.seal import Seal
from adapters.methods.seal_editor import SealEditor
from adapters.methods.seal_fewshot import SealFewShot
from adapters.methods.specs import Specs
from adapters.methods.workbench import AcceptedSelfEdit, Assignment, Outcome, Workbench
from adapters.spec import (
    DistillConfig,
    FewShotConfig,
    HealConfig,
    MethodConfig,
    SealConfig,
    SealEditorConfig,
    SpecsConfig,
)

__all__ = ["AcceptedSelfEdit", "Assignment", "Method", "Outcome", "Workbench", "build_method"]


def build_method(config: MethodConfig) -> Method:
    """The method that a config names."""
    match config:
        case SealConfig():
            return Seal(config)
        case DistillConfig():
            return Distill(config)
        case HealConfig():
            return Heal(config)
        case SealEditorConfig():
            return SealEditor(config)
        case FewShotConfig():
            return SealFewShot(config)
        case SpecsConfig():
            return Specs(config)
    raise NotImplementedError(config.type)
