"""The workbench of a run: samplers over the serving engine, trainings in child processes."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog

from adapters.lesson import Stage, Weights, stages_to_json
from adapters.rewards.build import build_verifier
from adapters.rewards.verifiers import Verifier
from adapters.sampling import Sampler, SamplingError
from adapters.spec import HttpVerifier, VerifierSpec
from adapters.types import JSON
from server.core.clock import monotonic
from server.core.errors import EngineError
from server.engine.control import open_control
from server.services.rebuilds import LESSON
from server.services.runs import Claim
from workers import replicas
from workers.context import WorkerContext
from workers.heart import Heart
from workers.lesson import CHAMPION, Lesson, Training, read_lesson, write_json
from workers.sampler import EngineSampler
from workers.training import train
from workers.verifiers import ServiceVerifier

log = structlog.get_logger(__name__)

_CHECKPOINTS = "checkpoints"
_TRY = "{line}@try.{run}.{attempt}.{token}"
_TRY_NAME = re.compile(r".+@try\.(?P<run>[a-z0-9_]+)\.(?P<attempt>[0-9]+)\.[0-9a-f]+")
_SCRATCH = re.compile(r"attempt-(?P<attempt>[0-9]+)")
_HELD = "held"
"""Marks a scratch folder whose files an engine may hold: they stay until it has let go."""


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

    ``folder`` is the run's and outlives an attempt. What takes long is done in the attempt's own
    folder, and put there only by the worker that owns the run at that moment.
    """

    context: WorkerContext
    heart: Heart
    origin: Origin
    folder: Path
    owned: Claim
    seconds: dict[str, float] = field(default_factory=dict)
    closings: list[dict[str, Any]] = field(default_factory=list)
    """What each training of the lesson reported at its end."""
    _lesson: Lesson = field(default_factory=Lesson)
    _trained: list[Weights] = field(default_factory=list)

    @property
    def scratch(self) -> Path:
        return scratch_of(self.folder, self.owned.attempt)

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
            self.heart.confirm()
            path.parent.mkdir(exist_ok=True)
            write_json(path, value)
        kept: JSON = json.loads(path.read_text())
        return kept

    def verifier(self, spec: VerifierSpec) -> Verifier:
        hosts = self.context.settings.learning.verifier_hosts
        http = ServiceVerifier(spec, hosts) if isinstance(spec, HttpVerifier) else None
        return build_verifier(spec, http)

    def train(self, stage: Stage, *, start: Weights | None = None) -> Weights:
        number = len(self._trained)
        training = Training(stage, self._start_of(start))
        self._lesson = self._lesson_of((*self._lesson.trainings, training))
        output = self.folder / f"trained-{number}"
        closing = self.folder / f"trained-{number}.json"
        if not (closing.exists() and self._was_trained(number, training)):
            self.heart.confirm()
            shutil.rmtree(output, ignore_errors=True)
            closing.unlink(missing_ok=True)
            self._lesson.write(self.folder / LESSON)
            made = self.scratch / output.name
            report = self._run_trainer([stage], [made], start=start)
            self.heart.confirm()
            shutil.rmtree(output, ignore_errors=True)
            made.rename(output)
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
        urls = replicas.urls_holding(self.context, self.origin.base_engine_name)
        if not urls:
            raise SamplingError("Every replica is draining; a trial adapter is served by none.")
        names = [self._name_of_try() for _ in weights]
        loaded = dict(zip(names, (str(each.folder) for each in weights), strict=True))
        held = self.scratch / _HELD
        held.touch()
        try:
            asyncio.run(self._load(loaded, urls[0]))
            yield [EngineSampler(self.context.settings, name, urls[:1]) for name in names]
        finally:
            if asyncio.run(self._unload(names, urls[0])):
                held.unlink(missing_ok=True)

    @property
    def checkpoints(self) -> Path:
        """Of the training at work; they outlive an attempt, but not the training."""
        return self.folder / _CHECKPOINTS

    def settle(self, weights: Weights) -> Path:
        """End the lesson with the training that made these; the lesson's file."""
        count = self._trained.index(weights) + 1
        path = self.folder / LESSON
        self.heart.confirm()
        self._lesson_of(self._lesson.trainings[:count]).write(path)
        del self.closings[count:]
        return path

    def _sampler(self, engine_name: str) -> EngineSampler:
        urls = replicas.urls_holding(self.context, engine_name)
        return EngineSampler(self.context.settings, engine_name, urls)

    def _name_of_try(self) -> str:
        return _TRY.format(
            line=self.origin.line,
            run=self.owned.run_id,
            attempt=self.owned.attempt,
            token=uuid4().hex[:12],
        )

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

    async def _unload(self, names: Sequence[str], url: str) -> bool:
        """Whether the engine holds none of them; else the worker's tick asks it again."""
        has_let_go = True
        async with open_control(self.context.settings.engine, url) as control:
            for name in names:
                try:
                    await control.unload_adapter(name)
                except EngineError as error:
                    has_let_go = False
                    log.warning("trial_adapter_not_unloaded", name=name, error=str(error))
        return has_let_go


def claim_of_try(engine_name: str) -> Claim | None:
    """Whose throw-away adapter a name in an engine is; None for any other name."""
    match = _TRY_NAME.fullmatch(engine_name)
    return Claim(match["run"], int(match["attempt"])) if match else None


def scratch_of(folder: Path, attempt: int) -> Path:
    """What only one attempt at a run needs."""
    return folder / f"attempt-{attempt}"


def attempt_of(scratch: Path) -> int | None:
    """Whose scratch a folder is; None for any other."""
    match = _SCRATCH.fullmatch(scratch.name)
    return int(match["attempt"]) if match else None


def may_be_held(scratch: Path) -> bool:
    """Whether an engine may hold throw-away adapters whose files are here."""
    return (scratch / _HELD).exists()


def drop_trained(folder: Path) -> None:
    """Remove what a run trained, once it is an artifact or will never be one.

    Where an engine may hold any of it, the worker's tick does that later.
    """
    if any(map(may_be_held, folder.glob("attempt-*"))):
        return
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
