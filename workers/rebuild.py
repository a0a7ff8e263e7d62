"""A version trained again: what it is made from, and how far the second one is from the first."""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import comparison
from adapters.lesson import Weights, stages_to_json
from adapters.manifest import Manifest
from adapters.model_folder import folder_hash
from server.core.errors import NotRebuildable
from server.db import AdapterVersion
from server.services import artifacts, rebuilds, registry, runs
from server.services.runs import Claim
from workers import training as training_process
from workers.context import WorkerContext
from workers.heart import Heart
from workers.lesson import Lesson, Training, read_lesson
from workers.versions import libraries

_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Source:
    """Everything that made a version, checked to be what it was."""

    name: str
    folder: Path
    """The version's own files, to compare with."""
    manifest: Manifest
    lesson: Lesson
    start: Path | None
    """Files of the version that it was trained on from, if any."""
    base_path: str

    @property
    def threads(self) -> int | None:
        """How many the first training had; with more or fewer, sums come out otherwise."""
        threads = self.manifest.environment.get("threads")
        return threads if isinstance(threads, int) else None


def find_source(context: WorkerContext, owned: Claim) -> Source:
    """What the run's version was made from.

    Raises:
        NotRebuildable: material or lesson are gone, or the base model is another one.
        FilesGone: there is nothing to compare with.
    """
    with context.database.unit_of_work() as session:
        run = runs.get_run(session, owned.run_id)
        adapter = runs.line_of(session, run)
        version = session.get_one(AdapterVersion, run.rebuilds)
        manifest = rebuilds.check_material(session, adapter, version)
    name = registry.version_name(adapter.name, version.number)
    lesson = rebuilds.lesson_of(adapter, version, manifest, runs_path=context.settings.runs_path)
    folder = artifacts.check_files(adapter, version)
    try:
        found = folder_hash(Path(adapter.base_path))
    except OSError as error:
        raise NotRebuildable(name, f"its base model cannot be read ({error}).") from error
    if found != manifest.base_hash:
        raise NotRebuildable(name, f"the base model in {adapter.base_path} has changed.")
    record = read_lesson(lesson, name)
    start = None
    if record.started_from is not None:
        with context.database.unit_of_work() as session:
            begun = registry.by_id(session, record.started_from)
        start = artifacts.check_files(adapter, begun)
    return Source(name, folder, manifest, record, start, adapter.base_path)


def train_again(source: Source, scratch: Path, heart: Heart) -> tuple[Path, dict[str, Any]]:
    """Repeat every training of the lesson; the last folder, and what its training reported.

    Raises:
        TrainingFailed: one diverged or died.
    """
    trainings = source.lesson.trainings
    outputs = [Weights(scratch / f"trained-{number}") for number in range(len(trainings))]
    report: dict[str, Any] = {}

    def folder_of(other: int | str | None) -> str | None:
        match other:
            case None:
                return None
            case int(earlier):
                return str(outputs[earlier].folder)
            case _:
                return str(source.start)

    with training_process.Trainer() as trainer:
        for number, training in enumerate(trainings):
            job = {
                "base_model": source.base_path,
                "stages": stages_to_json([training.stage]),
                "outputs": [str(outputs[number].folder)],
                "start": folder_of(training.start),
                "teacher": folder_of(training.teacher),
                "keeps_moments": any(later.stage.goes_on for later in trainings[number + 1 :]),
                "threads": source.threads,
            }
            report = trainer.train(job, folder=scratch, heart=heart)
            for old in _idle(trainings, number):
                shutil.rmtree(outputs[old].folder, ignore_errors=True)
                outputs[old].moments.unlink(missing_ok=True)
    return outputs[-1].folder, report


def _idle(trainings: Sequence[Training], number: int) -> list[int]:
    """Which weights nobody needs any more from that training on: steps of a policy are many."""
    later = trainings[number + 1 :]
    needed = {each.start for each in later} | {each.teacher for each in later}
    just_used = {trainings[number].start, trainings[number].teacher}
    return [old for old in range(number) if old in just_used - needed]


def compare(source: Source, output: Path, *, environment: dict[str, Any]) -> dict[str, Any]:
    """How the second training came out, for the run's report."""
    found = comparison.compare(source.folder, output)
    figures = dataclasses.asdict(found)
    return {
        **figures,
        "version": source.name,
        "tensors_that_differ": list(found.tensors_that_differ[:_MOST_NAMED]),
        "differing": len(found.tensors_that_differ),
        "libraries": _changes(source.manifest.libraries, libraries()),
        "environment": _changes(source.manifest.environment, environment),
    }


def _changes(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What is not as it was, which may be why the weights are not."""
    return {
        name: {"then": then.get(name), "now": now.get(name)}
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    }
