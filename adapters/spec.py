"""Settings of the adaptation methods: what a policy row stores and a run records.

Torch-free, so that the service can read and check a config without the training libraries.
Every number that shapes what is learned is here; the defaults are the vetted setting.
"""

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

LINEAR_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
)
"""The linear layers of a Llama-like model that an adapter may change, and vLLM can."""

Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,  # no database takes them in JSON
    )


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
    distill_top_k: int = Field(default=64, ge=1)
    """`distill`: how many of the teacher's most likely tokens are kept at each place; all others
    together count as one more."""


class EditPrompt(StrEnum):
    """What a model is asked to write about a passage."""

    IMPLICATIONS = "implications"
    """Several things that follow from it."""
    IMPLICATIONS_LONG = "implications-long"
    """The same, as many as it finds."""
    REWRITE = "rewrite"
    """The passage said in several other ways."""
    SELF_QA = "self-qa"
    """Questions about it with their answers."""
    NO_PROMPT = "no-prompt"
    """Nothing: the passage alone is learnt, as a control."""


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
    is_with_rules: bool = True
    """Whether edits made by rule, the rewordings and the questions left to training are taught.
    False leaves the text itself and what `prompts` bring, as in the paper."""
    prompts: tuple[EditPrompt, ...] = ()
    """What the editor writes freely about each document; every piece is checked against the text."""
    edits_per_document: int = Field(default=5, ge=1, le=32)
    """Free edits per document; they take the prompts in turn."""
    passages_per_document: int = Field(default=4, ge=1)
    """Passages, in order of the text, that a free edit covers."""
    edit_tokens: int = Field(default=512, ge=16)
    """Length of what is written freely about one passage."""
    edit_temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """Of the free edits; the checks on them are greedy."""
    edit_top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    """Of the free edits: the likeliest tokens that make up this share are drawn from."""


class OuterLoopSpec(_Settings):
    """ReST^EM: of several free edits of a new document, keep the one that teaches most."""

    is_enabled: bool = False
    """Each candidate costs a short training of its own."""
    prompts: tuple[EditPrompt, ...] = Field(
        default=(EditPrompt.IMPLICATIONS, EditPrompt.REWRITE, EditPrompt.SELF_QA), min_length=1
    )
    """What the candidates are asked for, in turn."""
    candidates: int = Field(default=5, ge=1, le=32)
    """Edits per document that are tried."""
    seeds: int = Field(default=1, ge=1, le=3)
    """Trainings per candidate; its score is their mean. The paper takes 3."""
    documents: int = Field(default=8, ge=0)
    """New documents of a run that are searched; the others are learnt without."""
    epochs: int = Field(default=10, ge=1)
    """Passes of a trial over its edit."""
    min_questions: int = Field(default=3, ge=1)
    """Fewer questions than this, left to training by the split, tell edits not apart."""
    editor_after: int = Field(default=50, ge=1)
    """Accepted edits that no run of the line's editor has seen, at which one starts by itself."""


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
    traffic_items: int = Field(default=8, ge=0)
    """Most exam items per document that users of the model have asked in their traffic."""
    traffic_items_per_user: int = Field(default=2, ge=0)
    """Most of them by one end user, so that nobody alone decides what is examined."""
    traffic_checks: int = Field(default=64, ge=0)
    """Most questions from traffic that one run looks up in its documents, the newest first."""
    traffic_days: int = Field(default=30, ge=1, le=3650)
    """How far back traffic is heard for questions, in days."""


class QuizSpec(_Settings):
    """What the served model is asked to write for the exam."""

    questions_per_document: int = Field(default=32, ge=0)
    """Answer spans, in order of the text, that the model is asked to write a question for."""
    max_new_tokens: int = Field(default=32, ge=8)
    """Length of one question."""


class JudgeSpec(_Settings):
    """When the base model may judge answers; else they are graded by match."""

    least_agreement: Share = 0.8
    """The lower end of the 95 % interval of its agreement with known verdicts must reach this."""
    most_false_right: Share = 0.1
    """Share of the wrong replies among the known ones that it may call right."""


class ContinualSpec(_Settings):
    """Where a training begins when the line has learnt before."""

    mode: Literal["retrain", "continue"] = "retrain"
    """`retrain`: from the clean base on all documents. `continue`: from the champion on the new
    documents, with replay of what it knows; wherever that cannot be, `retrain`."""
    max_generations: int = Field(default=4, ge=1)
    """`continue`: trainings in a row upon one another; the next one retrains."""
    replay_share: Share = 0.1
    """`continue`: rows on earlier documents, as a part of the new rows; at least one."""


class MethodSettings(_Settings):
    """What every method's config has."""

    lora: LoraSpec = LoraSpec()
    training: TrainingSpec = TrainingSpec()
    replay: ReplaySpec = ReplaySpec()
    exam: ExamSpec = ExamSpec()
    continual: ContinualSpec = ContinualSpec()
    quiz: QuizSpec = QuizSpec()
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Fixes the sampling of edits, the order of segments and the adapter's first weights."""


class SealConfig(MethodSettings):
    """SEAL on documents: self-edits, then one LoRA from the clean base."""

    type: Literal["seal"] = "seal"
    self_edits: SelfEditSpec = SelfEditSpec()
    outer: OuterLoopSpec = OuterLoopSpec()


class DistillSpec(_Settings):
    """Who answers what while a document is distilled."""

    rounds: int = Field(default=2, ge=1, le=8)
    """Times that replies are gathered and trained; from the second on, of the student as it is."""
    questions_per_document: int = Field(default=96, ge=1)
    """Most questions asked of each document in a round."""
    first_teacher_share: Share = 1.0
    """Part of the first round's replies that the teacher gives. A small base that has not seen the
    text hardly ever says the fact, so its own replies would teach the teacher's view of wrong
    beginnings only."""
    teacher_share: Share = 0.5
    """The same from the second round on."""
    max_new_tokens: int = Field(default=32, ge=8)
    """Length of one reply."""
    temperature: float = Field(default=1.0, gt=0.0, le=2.0)
    """Of the student's replies; 1 is its own distribution. The teacher answers greedily."""
    beta: Share = 0.0
    """`LossSpec.distill_beta`: 0 is KL(teacher || student), with which SDFT's results were made."""
    top_k: int = Field(default=64, ge=1)
    """`LossSpec.distill_top_k`."""


class DistillConfig(MethodSettings):
    """Distillation on documents: the base that sees the text teaches the one that does not."""

    type: Literal["distill"] = "distill"
    distill: DistillSpec = DistillSpec()


class HealSpec(_Settings):
    """What a healing run goes through."""

    prompts: int = Field(default=48, ge=1)
    """Different general prompts."""
    replies_per_prompt: int = Field(default=2, ge=1)
    """Sampled replies of the champion to each."""
    kept_answers: int = Field(default=40, ge=0)
    """Most right answers on the line's documents that are rehearsed beside them."""
    max_new_tokens: int = Field(default=48, ge=8)
    """Length of one reply."""
    beta: Share = 0.0
    """`LossSpec.distill_beta`: 0 is KL(base || champion)."""
    top_k: int = Field(default=64, ge=1)
    """`LossSpec.distill_top_k`."""


class HealTraining(TrainingSpec):
    """Short and careful: the champion is to be mended, not taught."""

    learning_rate: float = Field(default=2e-4, gt=0.0)
    """Peak of the schedule."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the replies."""


class HealConfig(MethodSettings):
    """Healing: the champion is distilled from its own base on general prompts."""

    type: Literal["heal"] = "heal"
    training: HealTraining = HealTraining()
    heal: HealSpec = HealSpec()


class EditorExamSpec(_Settings):
    """How a new editor is compared with the one before it."""

    held_out_share: Share = 0.2
    """Part of the documents, drawn by hash, whose edits no editor learns; these are written about."""
    documents: int = Field(default=16, ge=1)
    """Held-out documents that are written about, at most."""
    min_documents: int = Field(default=5, ge=1)
    """Fewer documents with enough questions leave the exam undecided."""
    candidates: int = Field(default=2, ge=1, le=16)
    """Edits that each editor writes about a document."""
    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    """Level of the one-sided bootstrap test that the new editor's edits teach more."""


class SealEditorConfig(MethodSettings):
    """SEAL's outer step: the line's editor learns the edits that taught most."""

    type: Literal["seal-editor"] = "seal-editor"
    training: TrainingSpec = TrainingSpec(
        learning_rate=3e-4, epochs=2, batch_size=10, max_tokens=2048, microbatch_tokens=2048
    )
    min_edits: int = Field(default=10, ge=1)
    """Fewer accepted edits than this make no editor."""
    inner: SealConfig = SealConfig()
    """How edits are sampled, learnt and scored in the exam: as in the runs that accepted them."""
    editor_exam: EditorExamSpec = EditorExamSpec()


def editor_config(inner: SealConfig) -> SealEditorConfig:
    """The config of an editor for a line that learns by `inner`."""
    return SealEditorConfig(inner=inner, exam=inner.exam, seed=inner.seed)


class FewShotTraining(TrainingSpec):
    """The optimiser and the loop, as SEAL's few-shot setting has them.

    Classes of their own, so that a setting of one field leaves these defaults of the others.
    """

    learning_rate: float = Field(default=5e-4, gt=0.0)
    """Peak of the schedule, of the default self-edit; otherwise the model's choice."""
    schedule: Literal["linear", "cosine"] = "cosine"
    """How the rate falls to zero after the warm-up."""
    warmup_share: Share = 0.03
    """Part of all steps spent raising the rate from zero."""
    epochs: int = Field(default=3, ge=1)
    """Passes over the augmented examples, of the default self-edit; otherwise the model's choice."""
    batch_size: int = Field(default=2, ge=1)
    """Segments per optimiser step."""
    microbatch_tokens: int = Field(default=2048, ge=16)
    """Most tokens, padding included, in one forward pass; bounds memory."""
    max_tokens: int = Field(default=2048, ge=16)
    """Room for a prompt and its output; what may not fit is not taught."""


class FewShotReplay(ReplaySpec):
    """General prompts answered by the base model; fewer, since a task's lesson is short."""

    prompts_per_epoch: int = Field(default=8, ge=0)
    """Replay segments in each pass, drawn in turn from the prompts; 0 turns replay off."""
    prompts: int = Field(default=24, ge=0)
    """Different prompts answered."""


class FewShotConfig(MethodSettings):
    """SEAL on a task given by examples: the model chooses how it is trained, and tries it out."""

    type: Literal["seal-fewshot"] = "seal-fewshot"
    candidates: int = Field(default=5, ge=1, le=32)
    """Self-edits that are asked for."""
    temperature: float = Field(default=0.8, ge=0.0, le=2.0)
    """Of the self-edits; answers to inputs are greedy."""
    max_new_tokens: int = Field(default=128, ge=16)
    """Length of one self-edit."""
    left_out: int = Field(default=3, ge=1)
    """Examples that are left out in turn, to score a self-edit on."""
    shown: int = Field(default=4, ge=0)
    """Examples that a prompt shows before the input; fewer where they do not fit."""
    together: int = Field(default=5, ge=1)
    """Throw-away adapters that are trained, and served, at once."""
    most_examples: int = Field(default=250, ge=1)
    """Augmented examples of one training."""
    most_steps: int = Field(default=375, ge=1)
    """A self-edit that needs more optimiser steps is dropped."""
    training: FewShotTraining = FewShotTraining()
    replay: FewShotReplay = FewShotReplay()
    """Only in the training on all examples."""


MethodConfig: TypeAlias = Annotated[
    SealConfig | SealEditorConfig | DistillConfig | HealConfig | FewShotConfig,
    Field(discriminator="type"),
]
"""Config of any method, told apart by `type`."""

METHOD_CONFIG: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)
"""Reads a config of any method."""

METHODS: dict[str, type[MethodConfig]] = {
    config.model_fields["type"].default: config for config in get_args(get_args(MethodConfig)[0])
}
"""The config's class of each method, by the method's name."""


class GateThresholds(_Settings):
    """When a challenger may take the champion's place."""

    mode: Literal["margin", "non_inferiority"] = "margin"
    """How "no loss" is shown: `margin`, the net loss is within the margin and not significant;
    `non_inferiority`, the lower confidence bound of the difference is above the margin, too,
    which takes hundreds of items."""

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
    finish_margin_share: Share = 0.1
    """Part of all replies that may newly run into the length limit on balance."""
    refusal_margin_share: Share = 0.05
    """Part of the general suite that may newly be refused on balance."""
    min_entropy_share: Share = 0.5
    """The challenger's mean token entropy on the general suite, as a part of the champion's; below
    it, its replies have collapsed."""
    min_entropy: float = Field(default=0.1, ge=0.0)
    """Nats: a champion below that is too sure already for a fall to tell anything."""
    length_change_share: float = Field(default=0.5, gt=0.0)
    """Part by which the mean length of replies to the general suite may grow or shrink."""
    kl_factor: float = Field(default=2.0, ge=1.0)
    """KL(base || challenger) per token beyond this many medians of the line's accepted exams is an
    alarm."""
    kl_least: float = Field(default=0.1, ge=0.0)
    """Nats: below it no alarm is raised, whatever the median."""
    kl_exams: int = Field(default=3, ge=1)
    """With fewer accepted exams than this there is no median to go by."""
    kl_ceiling: float = Field(default=8.0, gt=0.0)
    """Nats per token on the prompts about documents: beyond it the challenger is rejected."""
    kl_general_ceiling: float = Field(default=1.0, gt=0.0)
    """The same on the general suite, where nothing was to be learnt."""
    drift_prompts: int = Field(default=64, ge=0)
    """Prompts about documents, and of the general suite, on which the KL is measured; 0 turns it
    off."""
    drift_places: int = Field(default=4, ge=1)
    """Tokens of each of those replies at which it is measured; each takes one short request."""
    require_drift: bool = False
    """Whether an engine that can not measure the KL leaves the gate undecided."""
