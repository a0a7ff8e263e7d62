"""Configs of the methods that learn from what users said of replies."""

from typing import Literal

from pydantic import Field

from adapters.spec.base import Settings, Share
from adapters.spec.prompts import PromptSettings, PromptTraining


class CorrectionsTraining(PromptTraining):
    """The optimiser of learning from corrections: few rows, learnt well."""

    learning_rate: float = Field(default=1e-4, gt=0.0)
    """Constant."""
    batch_size: int = Field(default=8, ge=1)
    """Samples per optimiser step."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the rows of one round."""
    max_tokens: int = Field(default=4096, ge=16)
    """Longest sample. A correction is left out where the teacher's prompt, taking a byte of the
    correction for a token, might be longer."""


class CorrectionsSpec(Settings):
    """How corrections are taught."""

    rounds: int = Field(default=2, ge=1)
    """Times that the student answers anew and is set right."""
    text_weight: float = Field(default=1.0, ge=0.0)
    """Weight of learning the correction as it stands, beside the distillation; 0 leaves it out,
    so that the teacher's view of it is all that is learnt."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Length of a reply of teacher or student."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """Of the student's replies; the teacher is greedy."""
    beta: Share = 0.0
    """As `LossSpec.distill_beta`."""
    top_k: int = Field(default=64, ge=1)
    """As `LossSpec.distill_top_k`."""


class CorrectionsConfig(PromptSettings):
    """Distillation of users' corrections: who sees the correction teaches who does not."""

    type: Literal["corrections"] = "corrections"
    corrections: CorrectionsSpec = CorrectionsSpec()
    training: CorrectionsTraining = CorrectionsTraining()

    def most_replies(self, count: int) -> int:
        """See `PromptSettings.most_replies`."""
        return (self.corrections.rounds - 1) * count  # in the first round nothing is trained yet


class KtoTraining(PromptTraining):
    """The optimiser of KTO."""

    learning_rate: float = Field(default=5e-6, gt=0.0)
    """Constant; the paper's for all weights, and slow for LoRA: the opinions are off-policy."""
    batch_size: int = Field(default=32, ge=2)
    """Opinions per optimiser step; the KL estimate that each is held against is the batch's."""


class KtoSpec(Settings):
    """How thumbs are taught."""

    beta: float = Field(default=0.1, gt=0.0)
    """How sharply a reply's log-ratio to the reference is judged; larger stays nearer to it."""
    passes: int = Field(default=2, ge=1)
    """Over all opinions; after each the KL is looked at."""
    least_of_each: int = Field(default=4, ge=1)
    """With fewer liked, or fewer disliked replies than this there is no update."""
    versions_back: int = Field(default=3, ge=0)
    """Opinions of replies by versions that were replaced more often than this are too old."""
    most_kl: float = Field(default=0.1, gt=0.0)
    """KL(start || policy) per token of the start's own replies, in nats, beyond which a pass is
    taken back and the learning ends."""
    probe_prompts: int = Field(default=8, ge=1)
    """Prompts that the KL is measured on, always the same ones."""
    probe_places: int = Field(default=8, ge=1)
    """Tokens of each reply that it is measured at."""
    probe_tokens: int = Field(default=64, ge=1)
    """Length of those replies."""


class KtoConfig(PromptSettings):
    """KTO on thumbs: liked replies become likelier than the base finds them, disliked ones less."""

    type: Literal["kto"] = "kto"
    kto: KtoSpec = KtoSpec()
    training: KtoTraining = KtoTraining()

    def most_replies(self, count: int) -> int:
        """See `PromptSettings.most_replies`."""
        return min(self.kto.probe_prompts, count)
