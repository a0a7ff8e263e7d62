"""A lesson of many steps, trained for real: what is dropped on the way is made again by a rebuild."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.core.settings import Settings
from server.db.session import Database
from server.services.runs import Claim
from tests.conftest import RecordingQueue
from tests.support.trainings import scripted
from tests.unit.adapters.conftest import save_random_model
from tests.unit.adapters.test_chain import STAGE, TAUGHT, bytes_of
from tests.unit.workers.test_bench import Quiet
from tests.unit.workers.test_rebuild import train_here
from workers import bench, training
from workers.bench import Origin, RunBench
from workers.context import WorkerContext
from workers.heart import Heart
from workers.lesson import read_lesson
from workers.rebuild import Source, train_again


def test_steps_that_go_on_are_rebuilt_bit_by_bit(
    settings: Settings,
    database: Database,
    queue: RecordingQueue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails when the moments or the teacher are not those of the first time."""
    for module in (bench, training):
        monkeypatch.setattr(module, "Trainer", scripted(train_here))
    learning = settings.learning.model_copy(update={"threads": 1, "nice": 0})
    context = WorkerContext(
        settings.model_copy(update={"learning": learning}), database, cast(Any, queue), "test"
    )
    base, heart = str(save_random_model(tmp_path / "base")), cast(Heart, Quiet())
    origin = Origin("m", base, "m@base", "m@base", "m@base")
    made = RunBench(context, heart, origin, folder=tmp_path / "run", owned=Claim("run_1", 1))
    made.scratch.mkdir(parents=True)

    first = weights = made.train(STAGE)
    for number in range(6):
        step = replace(STAGE, seed=number, goes_on=True)
        if number == 1:
            step = replace(step, units=(), distillations=(TAUGHT,))
        weights = made.train(step, start=weights, teacher=first if number == 1 else None)
    lesson = read_lesson(made.settle(weights), "m@v1")

    manifest = cast(Any, SimpleNamespace(environment={"threads": 1}))
    source = Source("m@v1", weights.folder, manifest, lesson, None, base)
    (tmp_path / "again").mkdir()
    again, report = train_again(source, tmp_path / "again", heart)

    assert report["steps"] == 1
    assert (tmp_path / "run" / "trained-1").exists() is False
    assert [path.name for path in (tmp_path / "again").glob("trained-*")] == [again.name]
    assert bytes_of(again)[0] == bytes_of(weights.folder)[0]
