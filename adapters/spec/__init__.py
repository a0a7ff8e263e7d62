"""Settings of the adaptation methods: what a policy row stores and a run records.

Torch-free, so that the service can read and check a config without the training libraries.
Every number that shapes what is learned is here; the defaults are the vetted setting.
"""

from typing import Annotated, TypeAlias, get_args

from pydantic import Field, TypeAdapter

from adapters.spec.auto import AutoSpec
from adapters.spec.base import (
    LINEAR_MODULES,
    BudgetSpec,
    ContinualSpec,
    ExamSpec,
    JudgeSpec,
    LoraSpec,
    LossSpec,
    MethodSettings,
    Precision,
    QuizSpec,
    ReplaySpec,
    Settings,
    Share,
    TrainingSpec,
)
from adapters.spec.documents import (
    DistillConfig,
    DistillSpec,
    EditorExamSpec,
    EditPrompt,
    FewShotConfig,
    FewShotReplay,
    FewShotTraining,
    HealConfig,
    HealSpec,
    HealTraining,
    OuterLoopSpec,
    SealConfig,
    SealEditorConfig,
    SelfEditSpec,
    editor_config,
)
from adapters.spec.feedback import CorrectionsConfig, KtoConfig
from adapters.spec.gate import GateThresholds
from adapters.spec.grpo import GrpoConfig
from adapters.spec.prompts import (
    CONTRACT,
    VERIFIER,
    AnswerKind,
    AnswerSpec,
    AnswerVerifier,
    ContractSpec,
    ContractVerifier,
    HttpVerifier,
    JsonSchemaContract,
    PolicyGradientSpec,
    PromptExamSpec,
    PromptSettings,
    PromptTraining,
    RegexContract,
    RolloutSpec,
    TagsContract,
    ToolCallContract,
    UnitTestsVerifier,
    VerifierSpec,
)
from adapters.spec.sd_zero import SdZeroConfig
from adapters.spec.sept import SeptConfig
from adapters.spec.specs import SpecsConfig
from adapters.spec.ttrl import TtrlConfig

__all__ = [
    "CONTRACT",
    "LINEAR_MODULES",
    "METHODS",
    "METHOD_CONFIG",
    "VERIFIER",
    "AnswerKind",
    "AnswerSpec",
    "AnswerVerifier",
    "AutoSpec",
    "BudgetSpec",
    "ContinualSpec",
    "ContractSpec",
    "ContractVerifier",
    "CorrectionsConfig",
    "DistillConfig",
    "DistillSpec",
    "EditPrompt",
    "EditorExamSpec",
    "ExamSpec",
    "FewShotConfig",
    "FewShotReplay",
    "FewShotTraining",
    "GateThresholds",
    "GrpoConfig",
    "HealConfig",
    "HealSpec",
    "HealTraining",
    "HttpVerifier",
    "JsonSchemaContract",
    "JudgeSpec",
    "KtoConfig",
    "LoraSpec",
    "LossSpec",
    "MethodConfig",
    "MethodSettings",
    "OuterLoopSpec",
    "PolicyGradientSpec",
    "Precision",
    "PromptExamSpec",
    "PromptSettings",
    "PromptTraining",
    "QuizSpec",
    "RegexContract",
    "ReplaySpec",
    "RolloutSpec",
    "SdZeroConfig",
    "SealConfig",
    "SealEditorConfig",
    "SelfEditSpec",
    "SeptConfig",
    "Settings",
    "Share",
    "SpecsConfig",
    "TagsContract",
    "ToolCallContract",
    "TrainingSpec",
    "TtrlConfig",
    "UnitTestsVerifier",
    "VerifierSpec",
    "editor_config",
]

MethodConfig: TypeAlias = Annotated[
    SealConfig
    | SealEditorConfig
    | DistillConfig
    | HealConfig
    | FewShotConfig
    | TtrlConfig
    | SeptConfig
    | SpecsConfig
    | SdZeroConfig
    | GrpoConfig
    | CorrectionsConfig
    | KtoConfig,
    Field(discriminator="type"),
]
"""Config of any method, told apart by `type`."""

METHOD_CONFIG: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)
"""Reads a config of any method."""

METHODS: dict[str, type[MethodConfig]] = {
    config.model_fields["type"].default: config for config in get_args(get_args(MethodConfig)[0])
}
"""The config's class of each method, by the method's name."""
