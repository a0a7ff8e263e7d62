"""Adaptation methods: one file each, none knowing another; an assignment in, weights out."""

from adapters.methods.base import Method
from adapters.methods.corrections import Corrections
from adapters.methods.distill import Distill
from adapters.methods.grpo import Grpo
from adapters.methods.heal import Heal
from adapters.methods.kto import Kto
from adapters.methods.sd_zero import SdZero
from adapters.methods.seal import Seal
from adapters.methods.seal_editor import SealEditor
from adapters.methods.seal_fewshot import SealFewShot
from adapters.methods.sept import Sept
from adapters.methods.specs import Specs
from adapters.methods.ttrl import Ttrl
from adapters.methods.workbench import AcceptedSelfEdit, Assignment, Outcome, Workbench
from adapters.spec import (
    CorrectionsConfig,
    DistillConfig,
    FewShotConfig,
    GrpoConfig,
    HealConfig,
    KtoConfig,
    MethodConfig,
    SdZeroConfig,
    SealConfig,
    SealEditorConfig,
    SeptConfig,
    SpecsConfig,
    TtrlConfig,
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
        case SeptConfig():
            return Sept(config)
        case CorrectionsConfig():
            return Corrections(config)
        case KtoConfig():
            return Kto(config)
        case SpecsConfig():
            return Specs(config)
        case SdZeroConfig():
            return SdZero(config)
        case TtrlConfig():
            return Ttrl(config)
        case GrpoConfig():
            return Grpo(config)
