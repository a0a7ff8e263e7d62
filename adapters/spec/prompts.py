"""What the configs of the methods that learn from prompts share: rollouts, answers, contracts, verdicts."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from adapters.spec.base import (
    ContinualSpec,
    MethodSettings,
    ReplaySpec,
    Settings,
    Share,
    TrainingSpec,
)
from adapters.spec.patterns import compile_pattern
from adapters.spec.schemas import check_schema


class AnswerKind(StrEnum):
    """What the final answer in a reply is, and so how it is found and compared."""

    NUMBER = "number"
    """The number that the reply gives; 0.5 equals 1/2 and 50 %."""
    MATH = "math"
    """A formula or number, boxed or last in the reply, compared as mathematics."""
    CHOICE = "choice"
    """One letter of a list of choices."""
    LABEL = "label"
    """One of the labels that the spec names."""
    JSON = "json"
    """A JSON value, compared as a value: order of keys and white space do not count."""
    REGEX = "regex"
    """What the spec's pattern finds: its group `answer`, else its first group, else all of it."""
    TEXT = "text"
    """The whole reply, normalised."""


class AnswerSpec(Settings):
    """How the final answer is read from a reply."""

    kind: AnswerKind = AnswerKind.NUMBER
    """What the answer is."""
    labels: tuple[str, ...] = ()
    """`label`: the answers that there are."""
    pattern: str | None = Field(default=None, max_length=500)
    """`regex`: where the answer stands."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if self.kind is AnswerKind.LABEL and len(set(self.labels)) < 2:
            raise ValueError(
                "answers of kind `label` need two labels at least; name them in labels"
            )
        if self.kind is AnswerKind.REGEX:
            if self.pattern is None:
                raise ValueError("answers of kind `regex` need a pattern")
            try:
                re.compile(self.pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"pattern is no regular expression: {error}") from error
            compile_pattern(self.pattern)  # by what it is matched with
        return self


def _checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    check_schema(schema)
    return schema


def _checked_pattern(pattern: str) -> str:
    compile_pattern(pattern)
    return pattern


def _checked_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(tags)) < len(tags):
        raise ValueError("a tag stands twice")
    return tags


JsonSchema: TypeAlias = Annotated[dict[str, Any], AfterValidator(_checked_schema)]
"""A JSON schema that stands by itself: no references to elsewhere, no `unevaluated…`."""


class JsonSchemaContract(Settings):
    """The reply is JSON and nothing else, and valid by a schema."""

    type: Literal["json-schema"] = "json-schema"
    json_schema: JsonSchema = Field(default_factory=dict)
    """JSON Schema, 2020-12 where it names no other; `{}` takes any JSON. `format` is not checked."""
    answer_name: str = "answer"
    """Of an object the name under which the final answer stands; where it has no such name and one
    value only, that is the answer, else all of it."""
    may_be_fenced: bool = False
    """Whether one Markdown fence around the JSON is valid, too."""


class TagsContract(Settings):
    """The reply is these tagged parts, once each and in this order, with nothing between."""

    type: Literal["tags"] = "tags"
    tags: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,39}$")], ...],
        AfterValidator(_checked_tags),
    ] = Field(default=("think", "answer"), min_length=1, max_length=16)
    """Names of the tags; the answer is what the last one holds."""


class RegexContract(Settings):
    """The whole reply matches a pattern."""

    type: Literal["regex"] = "regex"
    pattern: Annotated[str, AfterValidator(_checked_pattern)] = Field(
        default=r"(?s).+", max_length=500
    )
    """As Python's `re.fullmatch` takes it; the answer is its group `answer`, else its first group,
    else the whole reply."""


class ToolCallContract(Settings):
    """The reply is one call of a known tool, its arguments valid by that tool's schema."""

    type: Literal["tool-call"] = "tool-call"
    tools: dict[str, JsonSchema] = Field(min_length=1, max_length=64)
    """JSON Schema of the arguments, by the tool's name."""


ContractSpec: TypeAlias = Annotated[
    JsonSchemaContract | TagsContract | RegexContract | ToolCallContract,
    Field(discriminator="type"),
]
"""A form that code can validate."""

CONTRACT: TypeAdapter[ContractSpec] = TypeAdapter(ContractSpec)
"""Reads a contract."""


class AnswerVerifier(Settings):
    """Right is a reply whose answer equals one of the prompt's."""

    type: Literal["answer"] = "answer"
    answer: AnswerSpec = AnswerSpec()
    """How it is found and compared."""


class ContractVerifier(Settings):
    """Right is a reply that keeps a contract."""

    type: Literal["contract"] = "contract"
    contract: ContractSpec
    """The form."""


class UnitTestsVerifier(Settings):
    """Right is a reply whose Python code passes the prompt's tests, in a locked-down process."""

    type: Literal["unit-tests"] = "unit-tests"
    timeout_s: float = Field(default=5.0, gt=0.0, le=60.0)
    """For code and tests together."""
    memory_mib: int = Field(default=256, ge=32, le=4096)
    """Address space of the process."""


class HttpVerifier(Settings):
    """Right is what a user's own service says; its host must be on the operator's list."""

    type: Literal["http"] = "http"
    url: str = Field(max_length=2000)
    """Gets prompt and reply as JSON, and answers `{"is_right": true}`."""
    timeout_s: float = Field(default=5.0, gt=0.0, le=60.0)
    """For one verdict."""


VerifierSpec: TypeAlias = Annotated[
    AnswerVerifier | ContractVerifier | UnitTestsVerifier | HttpVerifier,
    Field(discriminator="type"),
]
"""Who says whether a reply is right."""

VERIFIER: TypeAdapter[VerifierSpec] = TypeAdapter(VerifierSpec)
"""Reads a verifier."""


class RolloutSpec(Settings):
    """What the policy is asked for in each step."""

    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts of one step, drawn without repetition until all have had their turn."""
    group: int = Field(default=16, ge=1)
    """Rollouts of one prompt."""
    steps: int = Field(default=24, ge=1)
    """Most steps: a rollout and an update of the policy each."""
    temperature: float = Field(default=1.0, gt=0.0, le=2.0)
    """Of the rollouts; at 1 the engine's log-probabilities are those of its own sampling."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Of the rollouts."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Length of one rollout."""

    def most_replies(self, prompts: int, *, group: int | None = None) -> int:
        """Rollouts of all steps on so many prompts; `group` where another number is sampled."""
        size = self.group if group is None else group
        return self.steps * min(self.prompts_per_step, prompts) * size


class PolicyGradientSpec(Settings):
    """From rewards to the loss: GRPO (arXiv 2402.03300) and its kin."""

    loss: Literal["grpo", "dr_grpo", "dapo"] = "dapo"
    """How tokens are weighed: mean per reply, a constant, or mean over all tokens of the step."""
    scale: Literal["group", "none"] = "group"
    """Whether advantages are divided by the group's standard deviation."""
    clip_low: float = Field(default=0.2, ge=0.0, lt=1.0)
    """As `LossSpec.clip_low`."""
    clip_high: float = Field(default=0.28, ge=0.0)
    """As `LossSpec.clip_high`."""
    importance_cap: float = Field(default=2.0, gt=0.0)
    """As `LossSpec.importance_cap`."""
    reference_kl: float = Field(default=0.001, ge=0.0)
    """Weight of the KL to the base with its adapter off."""
    keeps_truncated: bool = False
    """Whether rollouts that were cut off are trained on; DAPO leaves them out."""


class PromptTraining(TrainingSpec):
    """The optimiser of a training in many small steps: a constant rate, one pass over each step."""

    learning_rate: float = Field(default=1e-5, gt=0.0)
    """Constant after the warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "constant"
    """How the rate falls to zero after the warm-up; or not at all."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the samples of one step."""
    batch_size: int = Field(default=128, ge=1)
    """Samples per optimiser step; a step of the policy may take several."""
    microbatch_tokens: int = Field(default=4096, ge=16)
    """Most tokens, padding included, in one forward pass; bounds memory."""
    max_tokens: int = Field(default=2048, ge=16)
    """Longest sample, its prompt included; a longer one is left out."""


class PromptExamSpec(Settings):
    """How held-out prompts examine a version that learnt from prompts."""

    share: Share = 0.3
    """Part of the prompts, drawn by hash, that no run ever trains on."""
    max_items: int = Field(default=128, ge=1)
    """Most prompts of one exam."""
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    """At which both versions answer, one reply to each prompt."""
    votes: int = Field(default=16, ge=1)
    """Where nobody knows the answer, the champion's replies whose majority stands in for it."""
    least_agreement: Share = 0.4
    """Part of the votes that must agree; other prompts are not asked."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Length of one reply."""
    answer: AnswerSpec = AnswerSpec()
    """How answers are read and compared where the method does not say."""


class PromptContinual(ContinualSpec):
    """Where a training on prompts begins: a skill is added to what the champion knows."""

    mode: Literal["retrain", "continue"] = "continue"
    """As `mode` of the other methods."""


class PromptSettings(MethodSettings):
    """What the config of every method that learns from prompts has."""

    training: PromptTraining = PromptTraining()
    prompt_exam: PromptExamSpec = PromptExamSpec()
    min_prompts: int = Field(default=8, ge=1)
    """With fewer usable prompts than this there is no update."""
    prompts_per_user: Share = 0.25
    """Most of a run's prompts, or opinions, that may come from one end user."""
    continual: PromptContinual = PromptContinual()

    @model_validator(mode="after")
    def _asks_for_no_replay(self) -> Self:
        """Its default is stored with every config and says nothing; what is asked for would be ignored."""
        if self.replay.prompts_per_epoch and self.replay != ReplaySpec():
            raise ValueError(
                "replay: methods that learn from prompts replay nothing; leave it out, or set "
                "replay.prompts_per_epoch to 0"
            )
        return self

    def most_replies(self, count: int) -> int | None:
        """Replies that the learning asks for at most; None where that is not known before.

        The exam's are not among them, nor are single tokens that only measure a prompt.

        Args:
            count: of the prompts that the run may learn from; of opinions, where it learns those.
        """
        return None
