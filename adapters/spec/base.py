"""What the configs of all methods share."""

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

LINEAR_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
)
"""The linear layers of a Llama-like model that an adapter may change, and vLLM can."""

Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,  # no database takes them in JSON
    )


class LoraSpec(Settings):
    """Shape of the adapter: plain LoRA on every linear layer, no bias, no DoRA."""

    rank: int = Field(default=16, ge=1, le=256)
    """Rank of each update; the engine must be started with at least this `--max-lora-rank`."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the update; it is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input while training."""


class Precision(StrEnum):
    """Number format of the matrix products in training; the adapter's weights stay float32."""

    AUTO = "auto"
    """bfloat16 where the device has it in hardware (CUDA, AVX512-BF16, AMX), else float32."""
    FLOAT32 = "float32"
    """Slower on most devices, and equal on all of them up to rounding."""
    BFLOAT16 = "bfloat16"
    """Faster where the hardware has it, slower elsewhere."""


class TrainingSpec(Settings):
    """The optimiser and the loop."""

    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Peak of the schedule."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to zero after the warm-up; or not at all."""
    warmup_share: Share = 0.05
    """Part of all steps spent raising the rate from zero."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the self-edits."""
    batch_size: int = Field(default=8, ge=1)
    """Segments per optimiser step."""
    microbatch_tokens: int = Field(default=1024, ge=16)
    """Most tokens, padding included, in one forward pass; bounds memory."""
    max_tokens: int = Field(default=1024, ge=16)
    """Longest segment; the tail of a longer one is cut off."""
    precision: Precision = Precision.AUTO
    """Number format of the matrix products."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's decay on the LoRA matrices."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are scaled down to this norm."""


class LossSpec(Settings):
    """How the loss components are computed; which ones act is said by the samples' weights."""

    clip_low: float = Field(default=0.2, ge=0.0, lt=1.0)
    """`rl`: a ratio to the old policy below 1 - clip_low no longer pushes down."""
    clip_high: float = Field(default=0.2, ge=0.0)
    """`rl`: a ratio above 1 + clip_high no longer pushes up; DAPO takes 0.28."""
    importance_cap: float = Field(default=2.0, gt=0.0)
    """`rl`: most weight of a token that the trainer finds likelier than the engine did."""
    reference_kl: Literal["full", "k3"] = "full"
    """`ref_kl`: KL(reference || model) over the vocabulary, or Schulman's k3 estimate of
    KL(model || reference) on the sampled token, as GRPO uses it."""
    dpo_beta: float = Field(default=0.1, gt=0.0)
    """`dpo`: how sharply the gap in log-ratios is judged; larger stays nearer to the reference."""
    dpo_label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """`dpo`: share of preferences taken to be wrong."""
    kto_beta: float = Field(default=0.1, gt=0.0)
    """`kto`: how sharply a reply's log-ratio is judged; larger stays nearer to the reference."""
    kto_liked_weight: float = Field(default=1.0, ge=0.0)
    """`kto`: the paper's lambda of liked replies."""
    kto_disliked_weight: float = Field(default=1.0, ge=0.0)
    """`kto`: the paper's lambda of disliked replies. Of liked and disliked ones, number times
    lambda should be about alike."""
    distill_beta: Share = 0.5
    """`distill`: 0 is KL(teacher || student), 1 KL(student || teacher), between them the
    generalised Jensen-Shannon divergence."""
    distill_is_mixed: bool = False
    """`distill`: between 0 and 1 the two divergences are mixed instead, 1 - beta parts of the first
    and beta of the second, as SD-Zero does."""
    distill_top_k: int = Field(default=64, ge=1)
    """`distill`: how many of the teacher's most likely tokens are kept at each place; all others
    together count as one more."""


class ReplaySpec(Settings):
    """General prompts answered by the base model, mixed in against forgetting."""

    prompts_per_epoch: int = Field(default=40, ge=0)
    """Replay segments in each pass, drawn in turn from the prompts; 0 turns replay off."""
    least_share: float = Field(default=0.35, ge=0.0, lt=1.0)
    """Least part of a pass's weight that they have; where many documents are learnt at once, each of
    them weighs more, so that the last document is not learnt with less held than the first."""
    prompts: int = Field(default=48, ge=0)
    """Different prompts answered."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Length of one answer."""


class ExamSpec(Settings):
    """The held-out questions on a document."""

    exam_share: Share = 0.85
    """Part of a text's facts that the exam asks, one question each, drawn by hash."""
    max_items: int = Field(default=24, ge=1)
    """Most exam items per document, user questions not counted."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Length of one answer."""
    traffic_items: int = Field(default=8, ge=0)
    """Most exam items per document that users of the model have asked in their traffic."""
    traffic_items_per_user: int = Field(default=2, ge=0)
    """Most of them by one end user, so that nobody alone decides what is examined."""
    traffic_checks: int = Field(default=64, ge=0)
    """Most questions from traffic that one run looks up in its documents, the newest first."""
    traffic_days: int = Field(default=30, ge=1, le=3650)
    """How far back traffic is heard for questions, in days."""


class QuizSpec(Settings):
    """What the served model is asked to write for the exam."""

    questions_per_document: int = Field(default=32, ge=0)
    """Answer spans, in order of the text, that the model is asked to write a question for."""
    max_new_tokens: int = Field(default=32, ge=8)
    """Length of one question."""


class JudgeSpec(Settings):
    """When the base model may judge answers; else they are graded by match."""

    least_agreement: Share = 0.8
    """The lower end of the 95 % interval of its agreement with known verdicts must reach this."""
    most_false_right: Share = 0.1
    """Share of the wrong replies among the known ones that it may call right."""


class ContinualSpec(Settings):
    """Where a training begins when the line has learnt before."""

    mode: Literal["retrain", "continue"] = "retrain"
    """`retrain`: from the clean base on all documents. `continue`: from the champion on the new
    documents, with replay of what it knows; wherever that cannot be, `retrain`."""
    max_generations: int = Field(default=4, ge=1)
    """`continue`: trainings in a row upon one another; the next one retrains."""
    replay_share: Share = 0.1
    """`continue`: rows on earlier documents, as a part of the new rows; at least one."""


class BudgetSpec(Settings):
    """Ceilings of a run; one that is reached ends the learning with what there is."""

    tokens: int | None = Field(default=None, ge=1)
    """Generated and trained, together."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps."""
    seconds: float | None = Field(default=None, gt=0.0)
    """Of training and of waiting for rollouts, on the device."""


class MethodSettings(Settings):
    """What every method's config has."""

    lora: LoraSpec = LoraSpec()
    training: TrainingSpec = TrainingSpec()
    replay: ReplaySpec = ReplaySpec()
    exam: ExamSpec = ExamSpec()
    continual: ContinualSpec = ContinualSpec()
    quiz: QuizSpec = QuizSpec()
    budget: BudgetSpec = BudgetSpec()
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Fixes the sampling of edits, the order of segments and the adapter's first weights."""
