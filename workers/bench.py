"""The workbench of a run: samplers over the serving engine, trainings in child processes."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog

from adapters.lesson import Stage, Weights, stages_to_json
from adapters.rewards.build import build_verifier
from adapters.rewards.verifiers import Verifier
from adapters.sampling import RolloutSampler, SamplingError
from adapters.spec import BudgetSpec, HttpVerifier, VerifierSpec
from adapters.types import JSON
from server.core.clock import monotonic
from server.core.errors import EngineError, EngineUnavailable
from server.services.rebuilds import LESSON
from server.services.runs import Claim
from workers import replicas
from workers.context import WorkerContext
from workers.courtesy import Courtesy, Manners
from workers.heart import Heart
from workers.lesson import CHAMPION, Training, row_of, write_json, write_lesson, write_text
from workers.patience import PAUSE_S, Patience
from workers.sampler import EngineSampler
from workers.spending import Account, AnySampler, CountedSampler, Spent
from workers.training import Trainer
from workers.verifiers import ServiceVerifier

log = structlog.get_logger(__name__)

_CHECKPOINTS = "checkpoints"
_SPENT = "spent.json"
_LAST_LINKS = 4
"""Trainings of a chain, from its end, whose weights stay."""
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

    Training N leaves there its record, `trained-N.stage.json`, before it begins; then its weights,
    its optimiser's moments, and last what it reported, `trained-N.json`. Of trainings that go on
    from one another the last few and those that taught keep their weights.
    """

    context: WorkerContext
    heart: Heart
    origin: Origin
    folder: Path
    owned: Claim
    seconds: dict[str, float] = field(default_factory=dict)
    closings: list[dict[str, Any]] = field(default_factory=list)
    """What each training of the lesson reported at its end."""
    budget: BudgetSpec = field(default_factory=BudgetSpec)
    _trained: list[Weights] = field(default_factory=list)
    _champions: list[bool] = field(default_factory=list)
    """Whether each began at the champion, or was taught by it."""
    _gone_on_from: list[int] = field(default_factory=list)
    """Numbers of the trainings that a later one went on from."""
    _teachers: set[Weights] = field(default_factory=set)
    _served: list[Weights] = field(default_factory=list)
    """What an engine may hold."""
    _trainer: Trainer = field(default_factory=lambda: Trainer())
    _courtesy: Courtesy = field(init=False)
    """Of the whole run: it remembers users from one call to the next."""

    def __post_init__(self) -> None:
        self._courtesy = Courtesy(Manners.of(self.context.settings.learning))

    @property
    def scratch(self) -> Path:
        return scratch_of(self.folder, self.owned.attempt)

    @property
    def base(self) -> RolloutSampler:
        return self._sampler(self.origin.base_engine_name)

    @property
    def writer(self) -> RolloutSampler:
        return self._sampler(self.origin.writer_engine_name)

    @property
    def editor(self) -> RolloutSampler:
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

    @property
    def spent(self) -> Spent:
        """By all attempts at the run."""
        return Account(self.folder / _SPENT).total

    def has_budget(self) -> bool:
        """What an earlier attempt had the budget for is not asked for again: it is done."""
        return self._closing(len(self._trained)).exists() or self.spent.is_within(self.budget)

    def train(
        self, stage: Stage, *, start: Weights | None = None, teacher: Weights | None = None
    ) -> Weights:
        number = len(self._trained)
        stage = self._within_budget(stage, number)
        training = Training(stage, self._number_of(start), self._number_of(teacher))
        is_champions = CHAMPION in (training.start, training.teacher)
        weights = Weights(self.folder / f"trained-{number}")
        closing = self._closing(number)
        record = row_of(training, self.origin.champion_id if is_champions else None)
        if not (closing.exists() and self._record(number).read_text() == record):
            self.heart.confirm()
            self._forget_from(number)
            write_text(self._record(number), record)
            made = Weights(self.scratch / weights.folder.name)
            report = self._run_trainer(
                [stage], [made.folder], start=start, teacher=teacher, keeps_moments=True
            )
            self.heart.confirm()
            _move(made, weights)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            write_json(closing, report)
        self.closings.append(json.loads(closing.read_text()))
        self._trained.append(weights)
        self._champions.append(is_champions)
        self._drop_old_links(training, teacher)
        return weights

    def close(self) -> None:
        """End the trainer's process, whose memory others need; what was trained stays."""
        self._trainer.close()

    def try_out(self, stages: Sequence[Stage]) -> list[Weights | None]:
        if not stages:
            return []
        folder = self.scratch / f"try-{uuid4().hex[:8]}"
        outputs = [folder / str(number) for number in range(len(stages))]
        self._run_trainer(stages, outputs, trials=folder)
        return [Weights(output) if output.exists() else None for output in outputs]

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[RolloutSampler]]:
        """See the protocol; one replica holds them, and is given them again if it is restarted."""
        urls = replicas.urls_holding(self.context, self.origin.base_engine_name)
        if not urls:
            raise SamplingError("Every replica is draining; a trial adapter is served by none.")
        samplers = [
            EngineSampler(
                self.context.settings,
                self._name_of_try(),
                urls[:1],
                courtesy=self._courtesy,
                folder=each.folder,
            )
            for each in weights
        ]
        held = self.scratch / _HELD
        held.touch()
        self._served += weights
        try:
            self._load(
                [one for one, each in zip(samplers, weights, strict=True) if self._has(each)]
            )
            yield [self._counted(sampler) for sampler in samplers]
        finally:
            are_gone = [sampler.unload() for sampler in samplers]
            if all(are_gone):
                held.unlink(missing_ok=True)
                del self._served[len(self._served) - len(weights) :]

    @property
    def checkpoints(self) -> Path:
        """Of the training at work; they outlive an attempt, but not the training."""
        return self.folder / _CHECKPOINTS

    def settle(self, weights: Weights) -> Path:
        """End the lesson with the training that made these; the lesson's file."""
        count = self._trained.index(weights) + 1
        path = self.folder / LESSON
        self.heart.confirm()
        rows = (self._record(number).read_text() for number in range(count))
        is_champions = any(self._champions[:count])
        write_lesson(path, rows, self.origin.champion_id if is_champions else None)
        del self.closings[count:]
        return path

    def _sampler(self, engine_name: str) -> RolloutSampler:
        urls = replicas.urls_holding(self.context, engine_name)
        return self._counted(
            EngineSampler(self.context.settings, engine_name, urls, courtesy=self._courtesy)
        )

    def _counted(self, sampler: AnySampler) -> RolloutSampler:
        return CountedSampler(sampler, self._spend)

    def _name_of_try(self) -> str:
        return _TRY.format(
            line=self.origin.line,
            run=self.owned.run_id,
            attempt=self.owned.attempt,
            token=uuid4().hex[:12],
        )

    def _within_budget(self, stage: Stage, number: int) -> Stage:
        """With no more steps than are left, as the first attempt found it, so that what is done
        stays done. A method that asks for a training that it has no budget for gets one step."""
        most = self.budget.steps
        if most is None:
            return stage
        left = self.once(f"steps-left-{number}", lambda: max(1, most - self.spent.steps))
        assert isinstance(left, int)
        return replace(stage, most_steps=left)

    def _number_of(self, weights: Weights | None) -> int | str | None:
        if weights is None:
            return None
        if weights == self.origin.champion:
            return CHAMPION
        return self._trained.index(weights)

    def _record(self, number: int) -> Path:
        return self.folder / f"trained-{number}.stage.json"

    def _closing(self, number: int) -> Path:
        return self.folder / f"trained-{number}.json"

    def _forget_from(self, number: int) -> None:
        """What an earlier attempt trained from there on came of another lesson."""
        while (record := self._record(number)).exists():
            self._closing(number).unlink(missing_ok=True)
            record.unlink()
            number += 1

    def _has(self, weights: Weights) -> bool:
        """An attempt after a crash goes once more through steps whose weights were dropped, and
        finds there what they had said."""
        return weights not in self._trained or weights.folder.exists()

    def _drop_old_links(self, training: Training, teacher: Weights | None) -> None:
        """Steps of a policy are many; who is gone on from serves as nothing else."""
        if teacher is not None:
            self._teachers.add(teacher)
        if training.stage.goes_on and isinstance(training.start, int):
            self._gone_on_from.append(training.start)
        others = (path for path in self.folder.glob("attempt-*") if path != self.scratch)
        if any(map(may_be_held, others)):
            return
        needed = {*self._teachers, *self._served}
        for number in self._gone_on_from:
            weights = self._trained[number]
            if number < len(self._trained) - _LAST_LINKS and weights not in needed:
                shutil.rmtree(weights.folder, ignore_errors=True)
                weights.moments.unlink(missing_ok=True)

    def _run_trainer(
        self,
        stages: Sequence[Stage],
        outputs: Sequence[Path],
        *,
        start: Weights | None = None,
        teacher: Weights | None = None,
        keeps_moments: bool = False,
        trials: Path | None = None,
    ) -> dict[str, Any]:
        """The trainer's report; ``trials`` is the folder of those that are no part of the lesson."""
        job = {
            "base_model": self.origin.base_path,
            "stages": stages_to_json(list(stages)),
            "outputs": [str(output) for output in outputs],
            "start": str(start.folder) if start else None,
            "teacher": str(teacher.folder) if teacher else None,
            "keeps_moments": keeps_moments,
            "nice": self.context.settings.learning.nice,
            "threads": self.context.settings.learning.threads or spare_threads(),
            "checkpoints": str(self.checkpoints) if trials is None else None,
            "are_trials": trials is not None,
        }
        place = trials or self.scratch
        place.mkdir(parents=True, exist_ok=True)
        began = monotonic()
        report = self._trainer.train(job, folder=place, heart=self.heart)
        tokens, steps = report.get("tokens", 0), report.get("steps", 0)
        self._spend(Spent(tokens, steps, monotonic() - began))
        return report

    def _spend(self, spent: Spent) -> None:
        self.heart.confirm()
        Account(self.folder / _SPENT).add(spent)

    def _load(self, samplers: Sequence[EngineSampler]) -> None:
        """Load them all; an engine that is being restarted is waited for."""
        patience = Patience(self.context.settings.engine.start_timeout_s)
        while True:
            try:
                for sampler in samplers:
                    sampler.load()
                return
            except EngineUnavailable as error:
                self.heart.confirm()
                if patience.must_end():
                    raise SamplingError(f"a trial adapter is not served: {error}") from error
                time.sleep(PAUSE_S)
            except EngineError as error:
                raise SamplingError(f"a trial adapter is not served: {error}") from error


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


def _move(made: Weights, to: Weights) -> None:
    """Put weights and moments in the place of what may be there."""
    shutil.rmtree(to.folder, ignore_errors=True)
    to.moments.unlink(missing_ok=True)
    if made.moments.exists():
        made.moments.rename(to.moments)
    made.folder.rename(to.folder)


def drop_trained(folder: Path) -> None:
    """Remove what a run trained, once it is an artifact or will never be one.

    Where an engine may hold any of it, the worker's tick does that later.
    """
    if any(map(may_be_held, folder.glob("attempt-*"))):
        return
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    for path in (*folder.glob(f"{Path(_SPENT).stem}.*"), *folder.glob("trained-*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def spare_threads() -> int:
    """All cores but one, at least one. With as many threads as cores, trainer and engine wait for
    each other's descheduled threads at every barrier: a step then took 100 s instead of 2."""
    return max(1, len(os.sched_getaffinity(0)) - 1)
