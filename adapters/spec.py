"""Settings of the adaptation methods: what a policy row stores and a run records.

Torch-free, so that the service can read and check a config without the training libraries.
Every number that shapes what is learned is here; the defaults are the vetted setting.
"""

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

LINEAR_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
)
"""The linear layers of a Llama-like model that an adapter may change, and vLLM can."""

Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LoraSpec(_Settings):
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


class TrainingSpec(_Settings):
    """The optimiser and the loop."""

    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Peak of the schedule."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the rate falls to zero after the warm-up."""
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


class LossSpec(_Settings):
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
    distill_beta: Share = 0.5
    """`distill`: 0 is KL(teacher || student), 1 KL(student || teacher), between them the
    generalised Jensen-Shannon divergence."""


class SelfEditSpec(_Settings):
    """What the served model writes from a document before training."""

    questions_per_document: int = Field(default=32, ge=0)
    """Answer spans, in order of the text, that the model is asked to write a question for."""
    rewordings: int = Field(default=3, ge=0)
    """Times that each is asked for: once greedily, then sampled. 0 leaves rule edits only."""
    span_questions: bool = True
    """Whether rules cut sentences before each name, number and date, and ask for it."""
    keyword_questions: int = Field(default=0, ge=0)
    """Questions made of each sentence's own key words, which the sentence answers. They reach all that
    a text says, not only its names and numbers."""
    max_new_tokens: int = Field(default=32, ge=8)
    """Length of one question."""
    temperature: float = Field(default=0.5, ge=0.0, le=2.0)
    """Of the sampled rewordings; the checks on them are greedy."""


class ReplaySpec(_Settings):
    """General prompts answered by the base model, mixed in against forgetting."""

    prompts_per_epoch: int = Field(default=40, ge=0)
    """Replay segments in each pass, drawn in turn from the prompts; 0 turns replay off."""
    prompts: int = Field(default=48, ge=0)
    """Different prompts answered."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Length of one answer."""


class ExamSpec(_Settings):
    """The held-out questions on a document."""

    exam_share: Share = 0.85
    """Part of a text's facts that the exam asks, one question each, drawn by hash."""
    max_items: int = Field(default=24, ge=1)
    """Most exam items per document, user questions not counted."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Length of one answer."""


class MethodSettings(_Settings):
    """What every method's config has."""

    lora: LoraSpec = LoraSpec()
    training: TrainingSpec = TrainingSpec()
    replay: ReplaySpec = ReplaySpec()
    exam: ExamSpec = ExamSpec()
    seed: int = Field(default=0, ge=0)
    """Fixes the sampling of edits, the order of segments and the adapter's first weights."""


class SealConfig(MethodSettings):
    """SEAL on documents: self-edits, then one LoRA from the clean base."""

    type: Literal["seal"] = "seal"
    self_edits: SelfEditSpec = SelfEditSpec()


MethodConfig: TypeAlias = SealConfig
"""Config of any method; becomes a union discriminated by `type` with the second one."""

METHOD_CONFIG: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)
"""Reads a config of any method."""


class GateThresholds(_Settings):
    """When a challenger may take the champion's place."""

    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    """Level of the one-sided exact McNemar tests, for gain and for loss."""
    power: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Chance of a clear result for which the number of further items is computed."""
    min_new_items: int = Field(default=5, ge=1)
    """Fewer items on the new documents than this leave the gate undecided."""
    min_general_items: int = Field(default=10, ge=0)
    """Fewer items in the general suite than this leave the gate undecided."""
    document_margin_items: int = Field(default=1, ge=0)
    """Items that earlier documents, each and together, may always lose on balance."""
    document_margin_share: Share = 0.25
    """Part of an earlier document's items that it may lose on balance, if that is more."""
    earlier_margin_share: Share = 0.1
    """The same for all earlier documents together."""
    general_margin_share: Share = 0.1
    """Part of the general suite that may be lost on balance."""
    form_margin_share: Share = 0.05
    """Part of all replies that may turn empty or into mere repetition on balance."""
