"""A workbench without an engine: scripted samplers, trainings that are only written down."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapters.lesson import Stage, Weights
from adapters.sampling import NotScored, Reply
from adapters.types import JSON, ChatMessage, ProgressCallback, SamplingParams, TopK

Script = Callable[[Sequence[ChatMessage]], str]


@dataclass
class ScriptedSampler:
    """Answers a conversation by a function, and remembers what it was asked."""

    reply: Script
    asked: list[Sequence[ChatMessage]] = field(default_factory=list)

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        self.asked += conversations
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

    def score(
        self, beginnings: Sequence[Sequence[int]], *, on_progress: ProgressCallback | None = None
    ) -> list[TopK]:
        raise NotScored("a script tells no probabilities")


@dataclass
class PaperBench:
    """A workbench on paper; `trained_reply` says how the trained weights answer."""

    base: ScriptedSampler
    trained_reply: Callable[[Weights], Script]
    writer: ScriptedSampler = field(init=False)
    editor: ScriptedSampler = field(init=False)
    stages: list[str] = field(default_factory=list)
    trainings: list[tuple[Stage, Weights | None]] = field(default_factory=list)
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

    def train(self, stage: Stage, *, start: Weights | None = None) -> Weights:
        self.trainings.append((stage, start))
        return Weights(Path(f"trained-{len(self.trainings) - 1}"))

    def try_out(self, stages: Sequence[Stage]) -> list[Weights | None]:
        first = len(self.trials)
        self.trials += stages
        numbers = range(first, len(self.trials))
        return [None if n in self.diverging else Weights(Path(f"trial-{n}")) for n in numbers]

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[ScriptedSampler]]:
        yield [ScriptedSampler(self.trained_reply(each)) for each in weights]
