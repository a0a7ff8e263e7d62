"""The workbench of a run: samplers over the serving engine, trainings in child processes."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog

from adapters.lesson import Stage, Weights, stages_to_json
from adapters.sampling import Sampler, SamplingError
from adapters.types import JSON
from server.core.clock import monotonic
from server.core.errors import EngineError
from server.engine.control import open_control
from server.services.rebuilds import LESSON
from workers import replicas
from workers.context import WorkerContext
from workers.heart import Heart
from workers.lesson import CHAMPION, Lesson, Training, read_lesson, write_json
from workers.sampler import EngineSampler
from workers.training import train

log = structlog.get_logger(__name__)

_CHECKPOINTS = "checkpoints"
_TRY = "{line}@try.{token}"


@dataclass(frozen=True, slots=True)
class Origin:
    """The models that a run works with."""

    line: str
    base_path: str
    base_engine_name: str
    writer_engine_name: str
    editor_engine_name: str
    champion: Weights | None = None
    champion_id: str | None = None


@dataclass(slots=True)
class RunBench:
    """See :class:`adapters.methods.workbench.Workbench`.

    ``folder`` is the run's and outlives an attempt; ``scratch`` is the attempt's.
    """

    context: WorkerContext
    heart: Heart
    origin: Origin
    folder: Path
    scratch: Path
    seconds: dict[str, float] = field(default_factory=dict)
    closings: list[dict[str, Any]] = field(default_factory=list)
    """What each training of the lesson reported at its end."""
    _lesson: Lesson = field(default_factory=Lesson)
    _trained: list[Weights] = field(default_factory=list)

    @property
    def base(self) -> Sampler:
        return self._sampler(self.origin.base_engine_name)

    @property
    def writer(self) -> Sampler:
        return self._sampler(self.origin.writer_engine_name)

    @property
    def editor(self) -> Sampler:
        return self._sampler(self.origin.editor_engine_name)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = monotonic()
        self.heart.begin(name)
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + monotonic() - began, 1)

    def progress(self, done: int, total: int) -> None:
        self.heart.progress(done, total)

    def once(self, name: str, make: Callable[[], JSON]) -> JSON:
        path = self.folder / "once" / f"{name}.json"
        if not path.exists():
            value = make()
            path.parent.mkdir(exist_ok=True)
            write_json(path, value)
        kept: JSON = json.loads(path.read_text())
        return kept

    def train(self, stage: Stage, *, start: Weights | None = None) -> Weights:
        number = len(self._trained)
        training = Training(stage, self._start_of(start))
        self._lesson = self._lesson_of((*self._lesson.trainings, training))
        output = self.folder / f"trained-{number}"
        closing = self.folder / f"trained-{number}.json"
        if not (closing.exists() and self._was_trained(number, training)):
            shutil.rmtree(output, ignore_errors=True)
            closing.unlink(missing_ok=True)
            self._lesson.write(self.folder / LESSON)
            report = self._run_trainer([stage], [output], start=start)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            write_json(closing, report)
        self.closings.append(json.loads(closing.read_text()))
        self._trained.append(Weights(output))
        return self._trained[-1]

    def try_out(self, stages: Sequence[Stage]) -> list[Weights | None]:
        if not stages:
            return []
        folder = self.scratch / f"try-{uuid4().hex[:8]}"
        outputs = [folder / str(number) for number in range(len(stages))]
        self._run_trainer(stages, outputs, folder=folder)
        return [Weights(output) if output.exists() else None for output in outputs]

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[Sampler]]:
        url = replicas.urls_holding(self.context, self.origin.base_engine_name)[0]
        names = [_TRY.format(line=self.origin.line, token=uuid4().hex[:12]) for _ in weights]
        loaded = dict(zip(names, (str(each.folder) for each in weights), strict=True))
        try:
            asyncio.run(self._load(loaded, url))
            yield [EngineSampler(self.context.settings, name, [url]) for name in names]
        finally:
            asyncio.run(self._unload(names, url))

    @property
    def checkpoints(self) -> Path:
        """Of the training at work; they outlive an attempt, but not the training."""
        return self.folder / _CHECKPOINTS

    def settle(self, weights: Weights) -> Path:
        """End the lesson with the training that made these; the lesson's file."""
        count = self._trained.index(weights) + 1
        path = self.folder / LESSON
        self._lesson_of(self._lesson.trainings[:count]).write(path)
        del self.closings[count:]
        return path

    def _sampler(self, engine_name: str) -> EngineSampler:
        urls = replicas.urls_holding(self.context, engine_name)
        return EngineSampler(self.context.settings, engine_name, urls)

    def _start_of(self, start: Weights | None) -> int | str | None:
        if start is None:
            return None
        if start == self.origin.champion:
            return CHAMPION
        return self._trained.index(start)

    def _was_trained(self, number: int, training: Training) -> bool:
        """Whether an earlier attempt of this run did the same; a lesson that differs is replaced."""
        kept = read_lesson(self.folder / LESSON, self.origin.line)
        if training.start == CHAMPION and kept.started_from != self.origin.champion_id:
            return False  # another version serves by now
        return len(kept.trainings) > number and kept.trainings[number] == training

    def _lesson_of(self, trainings: tuple[Training, ...]) -> Lesson:
        goes_on = any(training.start == CHAMPION for training in trainings)
        return Lesson(trainings, self.origin.champion_id if goes_on else None)

    def _run_trainer(
        self,
        stages: Sequence[Stage],
        outputs: Sequence[Path],
        *,
        start: Weights | None = None,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        job = {
            "base_model": self.origin.base_path,
            "stages": stages_to_json(list(stages)),
            "outputs": [str(output) for output in outputs],
            "start": str(start.folder) if start else None,
            "threads": self.context.settings.learning.threads or spare_threads(),
            "checkpoints": str(self.checkpoints) if len(stages) == 1 and not folder else None,
        }
        place = folder or self.scratch
        place.mkdir(parents=True, exist_ok=True)
        return train(job, folder=place, heart=self.heart)

    async def _load(self, folders: dict[str, str], url: str) -> None:
        async with open_control(self.context.settings.engine, url) as control:
            for name, folder in folders.items():
                try:
                    await control.load_adapter(name, folder)
                except EngineError as error:
                    raise SamplingError(f"a trial adapter is not served: {error}") from error

    async def _unload(self, names: Sequence[str], url: str) -> None:
        async with open_control(self.context.settings.engine, url) as control:
            for name in names:
                try:
                    await control.unload_adapter(name)
                except EngineError as error:  # an engine that was restarted has forgotten it anyway
                    log.warning("trial_adapter_not_unloaded", name=name, error=str(error))


def drop_trained(folder: Path) -> None:
    """Remove what a run trained, once it is an artifact or will never be one."""
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    for path in folder.glob("trained-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def spare_threads() -> int:
    """All cores but one, at least one. With as many threads as cores, trainer and engine wait for
    each other's descheduled threads at every barrier: a step then took 100 s instead of 2."""
    return max(1, len(os.sched_getaffinity(0)) - 1)
