"""A workbench without an engine: scripted samplers, trainings that are only written down."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapters.lesson import Stage, Weights
from adapters.sampling import NotScored, Reply
from adapters.spec import VerifierSpec
from adapters.types import (
    JSON,
    Attempt,
    ChatMessage,
    ProgressCallback,
    Rollout,
    SamplingParams,
    TopK,
    Verdict,
)

Script = Callable[[Sequence[ChatMessage]], str]

END_ID = 0
"""The token that ends a scripted rollout."""
LOGPROB = -0.1
"""Of each token of a scripted rollout."""


@dataclass
class ScriptedSampler:
    """Answers a conversation by a function, and remembers what it was asked."""

    reply: Script
    asked: list[Sequence[ChatMessage]] = field(default_factory=list)
    asked_with: list[SamplingParams] = field(default_factory=list)
    """Of each call, whatever it asked for."""

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        self.asked += conversations
        self.asked_with.append(params)
        if on_progress is not None:
            on_progress(len(conversations), len(conversations))
        return [self.reply(conversation) for conversation in conversations]

    def replies(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[Reply]:
        texts = self.chat(conversations, params, on_progress=on_progress)
        return [Reply(text, "stop") for text in texts]

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> list[tuple[Rollout, ...]]:
        """A token a character, then END_ID; what is longer than `max_tokens` is cut off there.

        The script is asked for each of the group, one conversation after the other.
        """
        repeated = [one for one in conversations for _ in range(group)]
        texts = self.chat(repeated, params, on_progress=on_progress)
        found = [
            _rollout(conversation, text, params.max_tokens)
            for conversation, text in zip(repeated, texts, strict=True)
        ]
        return [tuple(found[at : at + group]) for at in range(0, len(found), group)]

    def score(
        self, beginnings: Sequence[Sequence[int]], *, on_progress: ProgressCallback | None = None
    ) -> list[TopK]:
        raise NotScored("a script tells no probabilities")


def _rollout(conversation: Sequence[ChatMessage], text: str, most: int) -> Rollout:
    prompt_ids = _ids_of("\n".join(message["content"] for message in conversation))
    ids = (*_ids_of(text), END_ID)[:most]
    return Rollout(text[:most], prompt_ids, ids, (LOGPROB,) * len(ids), ids[-1] != END_ID)


def _ids_of(text: str) -> tuple[int, ...]:
    return tuple(1 + ord(character) % 255 for character in text)


def names_an_answer(attempt: Attempt) -> Verdict:
    """Right if one of the prompt's answers stands in the reply; unknown where it has none."""
    if not attempt.prompt.answers:
        return Verdict(None, "no answer known")
    is_right = any(answer in attempt.reply for answer in attempt.prompt.answers)
    return Verdict(is_right, "" if is_right else "wrong answer")


@dataclass
class ScriptedVerifier:
    """Judges by a function, and remembers what it was asked."""

    judge: Callable[[Attempt], Verdict]
    asked: list[Attempt] = field(default_factory=list)

    def verify(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        self.asked += attempts
        return [self.judge(attempt) for attempt in attempts]


@dataclass
class PaperBench:
    """A workbench on paper; `trained_reply` says how the trained weights answer."""

    base: ScriptedSampler
    trained_reply: Callable[[Weights], Script]
    writer: ScriptedSampler = field(init=False)
    editor: ScriptedSampler = field(init=False)
    stages: list[str] = field(default_factory=list)
    trainings: list[tuple[Stage, Weights | None]] = field(default_factory=list)
    teachers: list[Weights | None] = field(default_factory=list)
    """Of each training."""
    trainings_paid: int | None = None
    """How many trainings the budget lasts for; None: it never ends."""
    judge: ScriptedVerifier = field(default_factory=lambda: ScriptedVerifier(names_an_answer))
    verifier_specs: list[VerifierSpec] = field(default_factory=list)
    """What verifiers were asked for; `judge` is all of them."""
    trials: list[Stage] = field(default_factory=list)
    diverging: frozenset[int] = frozenset()
    """Numbers of the trials that come to nothing."""
    kept: dict[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writer = self.editor = self.base

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(name)
        yield

    def progress(self, done: int, total: int) -> None: ...

    def once(self, name: str, make: Callable[[], JSON]) -> JSON:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def has_budget(self) -> bool:
        return self.trainings_paid is None or len(self.trainings) < self.trainings_paid

    def verifier(self, spec: VerifierSpec) -> ScriptedVerifier:
        self.verifier_specs.append(spec)
        return self.judge

    def train(
        self, stage: Stage, *, start: Weights | None = None, teacher: Weights | None = None
    ) -> Weights:
        self.trainings.append((stage, start))
        self.teachers.append(teacher)
        return Weights(Path(f"trained-{len(self.trainings) - 1}"))

    def try_out(self, stages: Sequence[Stage]) -> list[Weights | None]:
        first = len(self.trials)
        self.trials += stages
        numbers = range(first, len(self.trials))
        return [None if n in self.diverging else Weights(Path(f"trial-{n}")) for n in numbers]

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[ScriptedSampler]]:
        yield [ScriptedSampler(self.trained_reply(each)) for each in weights]
