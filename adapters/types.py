"""The values that pass between the parts of `adapters`; plain data, free of torch and pydantic."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

ChatMessage: TypeAlias = dict[str, str]
"""One message of a conversation: `{"role": ..., "content": ...}`."""

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) while a long stage advances."""

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""Anything `json.dumps` takes."""


class ItemKind(StrEnum):
    """Where an exam item comes from."""

    USER = "user"
    """Posted by the user together with the document."""
    MODEL = "model"
    """Written by the served model while it saw the text, and checked against the text."""
    CLOZE = "cloze"
    """A sentence of the text cut before a name or number, made by rule."""
    TRAFFIC = "traffic"
    """Asked by a user of the served model, and answered by the text."""
    TASK = "task"
    """A held-out example of a task; its `document_id` is the task's id."""
    PROMPT = "prompt"
    """A held-out prompt of traffic or of a user's set, asked as it came."""
    GENERAL = "general"
    """From the general suite; belongs to no document."""


class Grader(StrEnum):
    """How a reply to an exam item is judged."""

    MATCH = "match"
    """It contains an accepted answer, normalised."""
    NUMERIC = "numeric"
    """The number that it gives equals an accepted one."""
    EXACT = "exact"
    """It is an accepted answer, but for white space: grids, labels, JSON."""
    JUDGE = "judge"
    """The base model, shown question, accepted answers and reply, says that it is right."""
    ANSWER = "answer"
    """The answer read from the reply to a prompt equals an accepted one."""
    MAJORITY = "majority"
    """The same, where the accepted one is only what most of the champion's replies say."""
    VERIFIER = "verifier"
    """A verifier says so."""
    CONTRACT = "contract"
    """It keeps the contract, and gives an accepted answer where one is known."""
    CORRECTION = "correction"
    """It says what a user corrected an earlier reply to."""


class EditKind(StrEnum):
    """The form of a self-edit."""

    PASSAGE = "passage"
    """A chunk of the document as it stands."""
    SENTENCE = "sentence"
    """One sentence with its subject named."""
    CLOZE = "cloze"
    """A sentence cut before a name or number, to be completed."""
    QUESTION = "question"
    """A question about the text and its answer."""
    IMPLICATION = "implication"
    """What follows from the text, in the model's words."""
    REWRITE = "rewrite"
    """The text, or a part of it, said another way."""
    TASK = "task"
    """An input of a task and its output."""
    REPLAY = "replay"
    """A general prompt answered by the base model, against forgetting."""


class MediaType(StrEnum):
    """The forms in which a document may come."""

    TEXT = "text/plain"
    MARKDOWN = "text/markdown"
    HTML = "text/html"
    PDF = "application/pdf"
    DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """One source of text to learn; the chunks cover the text exactly."""

    id: str
    title: str
    text: str
    chunks: tuple[str, ...]
    foreign_chunks: frozenset[int] = frozenset()
    """Numbers of the chunks that are in a language which the rules cannot read."""

    @property
    def rule_text(self) -> str:
        """The part of the text that rules may make questions from."""
        if not self.foreign_chunks:
            return self.text
        chunks = enumerate(self.chunks)
        return "".join(chunk for at, chunk in chunks if at not in self.foreign_chunks)


@dataclass(frozen=True, slots=True)
class Example:
    """One input of a task and the output it should have."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task given by examples; `tests` are only ever asked."""

    id: str
    title: str
    instruction: str
    """Empty where the examples speak for themselves."""
    examples: tuple[Example, ...]
    tests: tuple[Example, ...]
    form: Literal["text", "grid"] = "text"
    """Grids are lines of digits with spaces between, as in ARC."""


@dataclass(frozen=True, slots=True)
class ExamItem:
    """One question asked closed-book; any of `answers` is right."""

    id: str
    kind: ItemKind
    document_id: str | None
    prompt: str
    answers: tuple[str, ...]
    grader: Grader = Grader.MATCH
    messages: tuple[ChatMessage, ...] = ()
    """The whole conversation, where there is more than the prompt to it."""

    @property
    def conversation(self) -> tuple[ChatMessage, ...]:
        """What the model is shown."""
        return self.messages or ({"role": "user", "content": self.prompt},)

    @property
    def is_general(self) -> bool:
        """Whether it is about nothing that any run teaches."""
        return self.document_id is None and self.kind is not ItemKind.PROMPT


@dataclass(frozen=True, slots=True)
class SelfEdit:
    """One piece of training text.

    With `prompt` None every token of `text` is trained; otherwise `prompt` is a user message and
    only the reply, `text`, is trained.
    """

    kind: EditKind
    document_id: str | None
    prompt: str | None
    text: str
    written_by: Literal["model", "rule"]


@dataclass(frozen=True, slots=True)
class Distillation:
    """A reply that the student gave, and what the teacher saw besides when it is asked the same.

    The student learns, token by token of `reply`, what the teacher would have said after
    `teacher_prompt`: the base model with its adapter off, or weights that the training is given.
    """

    prompt: tuple[ChatMessage, ...]
    teacher_prompt: tuple[ChatMessage, ...]
    reply: str
    document_id: str | None = None
    teacher_prefix: str = ""
    """What the teacher has said already, in the same turn, when it comes to the reply."""
    reply_ids: tuple[int, ...] = ()
    """The reply's tokens as the engine sampled them, its end of turn among them where it came to
    one; empty where only the text is known."""


@dataclass(frozen=True, slots=True)
class GivenReply:
    """A reply to a conversation, as text, that is to be learnt, or to be liked or disliked."""

    prompt: tuple[ChatMessage, ...]
    reply: str
    is_liked: bool | None = None
    """For KTO: whether it shall become likelier than the reference finds it, or less likely. None:
    it is learnt as it stands."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two replies to one conversation, in text; the chosen one is to be preferred (DPO).

    Raises:
        ValueError: there is nothing to learn in it.
    """

    prompt: tuple[ChatMessage, ...]
    chosen: str
    rejected: str | None = None
    """None: nothing is compared, the chosen one is only to be said."""
    sft_weight: float = 1.0
    """Weight of saying the chosen one, per token, beside preferring it."""

    def __post_init__(self) -> None:
        if self.sft_weight < 0 or (self.rejected is None and not self.sft_weight):
            raise ValueError("a pair needs a rejected reply, or a weight above 0 for the chosen")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that the served model is asked to answer, to learn from its own replies."""

    id: str
    messages: tuple[ChatMessage, ...]
    tag: str | None = None
    """The kind of task, as whoever sent it named it."""
    answers: tuple[str, ...] = ()
    """Any of them is right; empty where nobody has said."""
    tests: str | None = None
    """Python code that exercises the code of a reply."""
    asked_by: str | None = None
    """The end user, where one was named, else the key; None for what was sent to be learnt."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a user said of a reply that a version gave."""

    prompt: Prompt
    reply: str
    version: str
    """Which gave it."""
    is_liked: bool | None = None
    """Thumb up or down; None where none was given."""
    correction: str | None = None
    """What the reply should have been."""
    versions_ago: int = 0
    """How many versions have taken over since the one that gave the reply served; 0: it still does."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion; N tokens."""

    text: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token when it was sampled, in nats, at temperature 1."""
    is_truncated: bool = False
    """Whether it was cut off at the length limit."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A reply that is to be judged."""

    prompt: Prompt
    reply: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of a reply."""

    is_right: bool | None
    """None: it could not tell, and the reply counts for nothing."""
    reason: str = ""
    """Why it is not right, or could not be told; a short closed phrase, to be counted by."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to generate; temperature 0 is greedy."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    may_be_refused: bool = False
    """Whether a conversation that the engine refuses, as one too long, gets an empty reply; else it
    is an error. Rollouts of one are always an empty group."""


class Component(StrEnum):
    """A part of the training loss."""

    CE = "ce"
    """Say the token."""
    RL = "rl"
    """Say the token more or less often, by its advantage."""
    REF_KL = "ref_kl"
    """Stay with what the reference, the base without its adapter, would say."""
    DISTILL = "distill"
    """Say what a teacher would say, by its most likely tokens."""


@dataclass(frozen=True, slots=True)
class TopK:
    """A teacher's K most likely tokens at one place, with their true log-probabilities, in nats."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A sequence of T tokens, N of them trained; whatever is per token has N entries, in order.

    A step's loss is the sum over samples, components and trained tokens of weight times loss,
    divided by the sum of the samples' `mass`. So 1 per token with mass N is a mean over tokens,
    1/N per token with mass 1 a mean over sequences.

    Raises:
        ValueError: nothing is trained, lengths differ, a number is not finite, or a component
            lacks what it is computed from.
    """

    ids: tuple[int, ...]
    is_trained: tuple[bool, ...]
    """Per token; never the first one, which nothing predicts."""
    weights: Mapping[Component, tuple[float, ...]]
    mass: float
    group: str | None = None
    """Samples of one group share a long beginning, which is computed once: rollouts of a prompt."""
    advantages: tuple[float, ...] | None = None
    """For `rl`."""
    sampler_logprobs: tuple[float, ...] | None = None
    """What the engine said when it sampled; None takes the trainer's own word for it."""
    old_logprobs: tuple[float, ...] | None = None
    """Of the policy when it sampled, by the trainer; None is the present policy."""
    reference_logprobs: tuple[float, ...] | None = None
    """Of the reference; None lets the trainer compute them."""
    teacher: tuple[TopK, ...] | None = None
    """For `distill`."""

    def __post_init__(self) -> None:
        if len(self.is_trained) != len(self.ids) or not any(self.is_trained) or self.is_trained[0]:
            raise ValueError(
                "is_trained must mark at least one token, one flag each, not the first"
            )
        if not (math.isfinite(self.mass) and self.mass > 0):
            raise ValueError(f"mass must be finite and above 0, not {self.mass}")
        for name, values in self._per_token().items():
            if len(values) != self.trained_count:
                raise ValueError(
                    f"{name} has {len(values)} entries for {self.trained_count} tokens"
                )
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{name} holds a number that is not finite")
        if Component.RL in self.weights and self.advantages is None:
            raise ValueError("rl needs advantages")
        if Component.DISTILL in self.weights:
            _check_teacher(self.teacher, self.trained_count)

    @property
    def trained_count(self) -> int:
        """How many tokens carry loss."""
        return sum(self.is_trained)

    @property
    def trained_from(self) -> int:
        """Index of the first token that carries loss."""
        return self.is_trained.index(True)

    def _per_token(self) -> dict[str, tuple[float, ...]]:
        optional = {
            "advantages": self.advantages,
            "sampler_logprobs": self.sampler_logprobs,
            "old_logprobs": self.old_logprobs,
            "reference_logprobs": self.reference_logprobs,
        }
        given = {name: values for name, values in optional.items() if values is not None}
        return given | {f"weights of {name}": values for name, values in self.weights.items()}


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt, for the DPO loss; the sums over their trained tokens are compared.

    The members' own weights count beside it: `ce` on the chosen one is DPO's usual SFT term.
    Their masses do not count, the pair's does.
    """

    chosen: TrainingSample
    rejected: TrainingSample
    weight: float = 1.0
    mass: float = 1.0


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer that somebody liked or did not, for the KTO loss; its trained tokens are summed.

    The sample's own weights count beside it. Its mass does not count, this one's does.
    """

    sample: TrainingSample
    is_liked: bool
    weight: float = 1.0
    mass: float = 1.0


Unit: TypeAlias = TrainingSample | PreferencePair | Judged
"""What is packed whole."""


def reply_mask(prompt_tokens: int, total: int) -> tuple[bool, ...]:
    """Flags of a sequence whose tokens from `prompt_tokens` (at least 1) on are trained."""
    return (False,) * prompt_tokens + (True,) * (total - prompt_tokens)


def _check_teacher(teacher: Sequence[TopK] | None, trained_count: int) -> None:
    if teacher is None or len(teacher) != trained_count:
        raise ValueError("distill needs a teacher's most likely tokens for each trained token")
    for place in teacher:
        if not place.ids or len(place.ids) != len(place.logprobs):
            raise ValueError("a teacher's place needs at least one token, each with its logprob")
        if len(set(place.ids)) < len(place.ids):
            raise ValueError("a teacher's place names a token twice")
        if not all(logprob <= 1e-3 for logprob in place.logprobs):  # NaN is refused too
            raise ValueError("a teacher's logprob is above 0 or not a number")


def build_item(
    kind: ItemKind,
    document_id: str | None,
    *,
    prompt: str,
    answers: tuple[str, ...],
    grader: Grader = Grader.MATCH,
) -> ExamItem:
    """An exam item under the id that its content gives it: the same item, the same id."""
    content = "\0".join((kind.value, document_id or "", prompt))
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return ExamItem(digest, kind, document_id, prompt, answers, grader)
