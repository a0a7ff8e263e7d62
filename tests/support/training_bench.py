"""A workbench with the real trainer, in this process, on a model so small that a step takes nothing.

What the engine says is scripted: the same conversation, seed and number in the group get the same
reply, so that whatever differs between two runs is the method's or the trainer's doing.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adapters.lesson import Stage, Weights, stages_to_json
from adapters.sampling import NotScored, Reply
from adapters.spec import VerifierSpec
from adapters.training.job import read_job, run_job
from adapters.training.trainer import TrainingDiverged
from adapters.types import JSON, ChatMessage, ProgressCallback, Rollout, SamplingParams, TopK
from tests.support.workbench import ScriptedSampler, ScriptedVerifier, names_an_answer

Answering = Callable[[Sequence[ChatMessage], int], str]
"""A conversation, and a number that differs between draws: the reply."""


class Cancelled(RuntimeError):
    """As the heart of a run ends it."""


class TrainingFailed(RuntimeError):
    """The trainer left no adapter."""


@dataclass
class SeededSampler:
    """Answers by a function of the conversation and the draw."""

    answering: Answering
    on_call: Callable[[int], None] = lambda _: None
    """Told how many replies are asked for; single tokens, which only measure, are none."""
    refused: str | None = None
    """Conversations that hold this are too long for the engine."""

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        self.on_call(len(conversations))
        if on_progress is not None:
            on_progress(len(conversations), len(conversations))
        return [self.answering(one, params.seed or 0) for one in conversations]

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
        self.on_call(len(conversations) * group if params.max_tokens > 1 else 0)
        if on_progress is not None:
            on_progress(len(conversations), len(conversations))
        first = params.seed or 0
        rounds = [
            ScriptedSampler(partial(self._draw, first + number)).rollouts(conversations, params)
            for number in range(group)
        ]
        groups = [tuple(one for (one,) in found) for found in zip(*rounds, strict=True)]
        return [
            () if self._is_refused(one) else group
            for one, group in zip(conversations, groups, strict=True)
        ]

    def _is_refused(self, conversation: Sequence[ChatMessage]) -> bool:
        return self.refused is not None and self.refused in str(conversation)

    def _draw(self, draw: int, conversation: Sequence[ChatMessage]) -> str:
        return self.answering(conversation, draw)

    def score(
        self, beginnings: Sequence[Sequence[int]], *, on_progress: ProgressCallback | None = None
    ) -> list[TopK]:
        raise NotScored("a script tells no probabilities")


@dataclass
class TrainingBench:
    """See `adapters.methods.workbench.Workbench`; what is under `folder` outlives an attempt."""

    model: Path
    folder: Path
    answering: Answering
    trained_answering: Answering | None = None
    """Of what it has trained; None: as before."""
    trainings_paid: int | None = None
    """How many trainings the budget lasts for."""
    cancel_at_call: int | None = None
    """Which request to the engine is the one during which the run is cancelled, from 0."""
    refused: str | None = None
    """What stands in conversations that are too long for the engine."""
    cancel_at_step: int | None = None
    """Which optimiser step is the last that is seen, from 1."""
    stages: list[Stage] = field(default_factory=list)
    """Every training that was asked for, throw-away ones too."""
    calls: int = 0
    replies: int = 0
    """That were asked for, in all calls."""
    steps: int = 0
    trained: list[Weights] = field(default_factory=list)
    tries: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.base = self.writer = self.editor = SeededSampler(
            self.answering, self._called, self.refused
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def progress(self, done: int, total: int) -> None: ...

    def once(self, name: str, make: Callable[[], JSON]) -> JSON:
        path = self.folder / f"{name}.once.json"
        if not path.exists():
            path.write_text(json.dumps(make()))
        kept: JSON = json.loads(path.read_text())
        return kept

    def has_budget(self) -> bool:
        return self.trainings_paid is None or len(self.trained) < self.trainings_paid

    def verifier(self, spec: VerifierSpec) -> ScriptedVerifier:
        return ScriptedVerifier(names_an_answer)

    def train(
        self, stage: Stage, *, start: Weights | None = None, teacher: Weights | None = None
    ) -> Weights:
        self.stages.append(stage)
        order = f"{stage.digest()} {_digest_of(start)} {_digest_of(teacher)}"
        output = self.folder / f"trained-{len(self.trained)}"
        note = output.with_suffix(".order")
        if not (note.exists() and note.read_text() == order):
            self._run([stage], [output], start=start, teacher=teacher, is_lesson=True)
            note.write_text(order)
        self.trained.append(Weights(output))
        return self.trained[-1]

    def try_out(self, stages: Sequence[Stage]) -> list[Weights | None]:
        if not stages:
            return []
        self.stages += stages
        self.tries += 1
        outputs = [self.folder / f"try-{self.tries}-{n}" for n in range(len(stages))]
        self._run(stages, outputs)
        return [Weights(output) if output.exists() else None for output in outputs]

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[SeededSampler]]:
        answering = self.trained_answering or self.answering
        yield [SeededSampler(answering, self._called, self.refused) for _ in weights]

    def _called(self, replies: int) -> None:
        if self.calls == self.cancel_at_call:
            raise Cancelled
        self.calls += 1
        self.replies += replies

    def _stepped(self) -> None:
        self.steps += 1
        if self.steps == self.cancel_at_step:
            raise Cancelled

    def _run(
        self,
        stages: Sequence[Stage],
        outputs: Sequence[Path],
        *,
        start: Weights | None = None,
        teacher: Weights | None = None,
        is_lesson: bool = False,
    ) -> None:
        for output in outputs:
            shutil.rmtree(output, ignore_errors=True)
        job = self.folder / "job.json"
        fields = {
            "base_model": str(self.model),
            "stages": stages_to_json(list(stages)),
            "outputs": [str(output) for output in outputs],
            "start": str(start.folder) if start else None,
            "teacher": str(teacher.folder) if teacher else None,
            "keeps_moments": is_lesson,
            "are_trials": not is_lesson,
            "threads": 1,
        }
        job.write_text(json.dumps(fields))
        try:
            run_job(read_job(job), _Events(self._stepped))  # type: ignore[arg-type]
        except (TrainingDiverged, ValueError) as error:  # as its process would tell it
            raise TrainingFailed(str(error)) from error


@dataclass
class _Events:
    """Where the trainer writes its events."""

    on_step: Callable[[], None]

    def write(self, line: str) -> None:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "step":
            self.on_step()

    def flush(self) -> None: ...


def digest_of(weights: Weights) -> str:
    """sha256 of the adapter's tensors."""
    return hashlib.sha256((weights.folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def _digest_of(weights: Weights | None) -> str | None:
    return None if weights is None else digest_of(weights)
