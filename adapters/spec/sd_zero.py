"""Config of SD-Zero."""

from typing import Literal, Self

from pydantic import Field, model_validator

from adapters.spec.base import Settings, Share, TrainingSpec
from adapters.spec.prompts import (
    AnswerVerifier,
    PromptSettings,
    PromptTraining,
    RolloutSpec,
    VerifierSpec,
)


class ControlPhrases(Settings):
    """What stands, in the same turn, between a reply and its revision; the same everywhere."""

    wrong: str = Field(
        default="Wait, this is not correct. Let me start over.", min_length=1, max_length=200
    )
    """After a reply that is wrong."""
    right: str = Field(default="Let me rephrase the above solution.", min_length=1, max_length=200)
    """After one that is right."""


class RevisionTraining(TrainingSpec):
    """The optimiser of phase 1: the paper's, with ten times its rate for LoRA."""

    learning_rate: float = Field(default=5e-5, gt=0.0)
    """Peak of the schedule."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the rate falls to zero after the warm-up; or not at all."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the revisions that are kept."""
    microbatch_tokens: int = Field(default=4096, ge=16)
    """Most tokens, padding included, in one forward pass; bounds memory."""
    max_tokens: int = Field(default=2048, ge=16)
    """Longest sample, its prompt included; a longer one is left out."""
    weight_decay: float = Field(default=1e-4, ge=0.0)
    """AdamW's decay on the LoRA matrices."""


class RevisionSpec(Settings):
    """Phase 1: the model's own right revisions, learnt."""

    first_replies: int = Field(default=1, ge=1)
    """Replies to each prompt."""
    revisions: int = Field(default=3, ge=1)
    """Revisions of each reply."""
    revises_right: bool = True
    """Whether right replies are rephrased as well, as in the paper; its code revises wrong ones only."""
    temperature: float = Field(default=0.7, gt=0.0, le=2.0)
    """Of replies and revisions."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Of replies and revisions."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Length of one reply, and of one revision."""
    revision_weight: float = Field(default=1.0, ge=0.0)
    """Of the loss on the revision, given prompt, reply and phrase."""
    generation_weight: float = Field(default=1.0, ge=0.0)
    """Of the loss on reply, phrase and revision, given the prompt."""
    training: RevisionTraining = RevisionTraining()

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if not self.revision_weight + self.generation_weight:
            raise ValueError("revision_weight and generation_weight must not both be 0")
        return self


class StudentRollouts(RolloutSpec):
    """What the student is asked for in each step of phase 2."""

    prompts_per_step: int = Field(default=32, ge=1)
    """Prompts of one step, drawn without repetition until all have had their turn."""
    group: int = Field(default=1, ge=1)
    """Replies to one prompt."""
    steps: int = Field(default=100, ge=1)
    """Most steps: replies and an update of the student each."""


class DistillationTraining(PromptTraining):
    """The optimiser of phase 2."""

    learning_rate: float = Field(default=5e-5, gt=0.0)
    """Constant. The paper trains all weights at 5e-6; LoRA takes ten times that."""
    batch_size: int = Field(default=32, ge=1)
    """Samples per optimiser step."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """AdamW's decay on the LoRA matrices."""


class SelfDistillationSpec(Settings):
    """Phase 2: towards what the reviser would say, the verdict and the reply before its eyes."""

    beta: Share = 0.5
    """1 - beta parts KL(teacher || student), beta parts KL(student || teacher)."""
    top_k: int = Field(default=64, ge=1)
    """Of the teacher's tokens at each place; all others together count as one more."""
    keeps_truncated: bool = False
    """Whether replies that were cut off are trained on."""
    teacher_syncs: int = Field(default=1, ge=0)
    """How often the teacher becomes what the student is, when the student gets no better."""
    plateau_steps: int = Field(default=20, ge=1)
    """The student gets no better when so many steps have no more right replies than those before."""


class SdZeroConfig(PromptSettings):
    """SD-Zero on prompts: the model learns to revise itself, and then to need no revision."""

    type: Literal["sd-zero"] = "sd-zero"
    phases: Literal["both", "revision", "distillation"] = "both"
    """One phase alone is a control."""
    verifier: VerifierSpec = AnswerVerifier()
    """Who says whether a reply is right."""
    least_right: Share = 0.05
    """Least share of the first replies that must be right; with less the prompts are too hard."""
    most_right: Share = 0.9
    """Most share of them that may be right; with more the prompts are too easy. 0 and 1 take all."""
    phrases: ControlPhrases = ControlPhrases()
    revision: RevisionSpec = RevisionSpec()
    distillation: SelfDistillationSpec = SelfDistillationSpec()
    rollouts: StudentRollouts = StudentRollouts()
    """Of phase 2."""
    training: DistillationTraining = DistillationTraining()
    """Of phase 2."""

    def most_replies(self, count: int) -> int:
        """See `PromptSettings.most_replies`."""
        first = count * self.revision.first_replies
        of_phase_1 = first * (1 + self.revision.revisions)
        of_phase_2 = self.rollouts.most_replies(count)
        if self.phases == "both":
            return of_phase_1 + of_phase_2
        return of_phase_1 if self.phases == "revision" else of_phase_2

    @model_validator(mode="after")
    def _window_is_open(self) -> Self:
        if self.least_right > self.most_right:
            raise ValueError("least_right must not be above most_right")
        return self
