"""The trainer's process: job after job in one, gone when it is told, when it fails, when it is stopped."""

import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.lesson import Stage, Weights, stages_to_json
from adapters.spec import Precision, TrainingSpec
from adapters.training.batch import lesson
from adapters.training.job import read_job, run_job
from tests.unit.adapters.conftest import save_random_model
from tests.unit.adapters.test_chain import STAGE, bytes_of
from tests.unit.adapters.test_trainer import is_alive
from workers.training import Trainer, TrainingFailed

ENDLESS = replace(STAGE, training=STAGE.training.model_copy(update={"epochs": 100_000}))


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("random-model"))


DIVERGING = replace(
    STAGE,
    training=TrainingSpec(learning_rate=1e30, precision=Precision.FLOAT32, epochs=50),
    units=(lesson((5, 6, 7, 8), 1),),
)


class Watcher:
    """Notes the steps, and stops the training at one of them."""

    def __init__(self, stops_at: int | None = None) -> None:
        self.steps: list[int] = []
        self._stops_at = stops_at

    def check(self) -> None: ...

    def progress(self, done: int, total: int) -> None:
        self.steps.append(done)
        if done == self._stops_at:
            raise Stopped


class Stopped(Exception):
    """Somebody asked for it."""


def order(base: Path, stage: Stage, output: Path, start: Path | None = None) -> dict[str, Any]:
    return {
        "base_model": str(base),
        "stages": stages_to_json([stage]),
        "outputs": [str(output)],
        "start": str(start) if start else None,
        "keeps_moments": True,
        "threads": 1,
    }


def child_of(trainer: Trainer) -> int:
    process = trainer._process
    assert process is not None
    return process._child.pid


def test_a_chain_in_one_process_gives_the_weights_of_trainings_apart(
    random_model: Path, tmp_path: Path
) -> None:
    """Apart: each loads the base anew, here (`test_chain.py` has more kinds of trainings)."""
    on = replace(STAGE, goes_on=True)
    with Trainer() as warm:
        first = order(random_model, STAGE, tmp_path / "warm-0")
        report = warm.train(first, folder=tmp_path, heart=Watcher())
        child = child_of(warm)
        second = order(random_model, on, tmp_path / "warm-1", tmp_path / "warm-0")
        warm.train(second, folder=tmp_path, heart=Watcher())
        assert child_of(warm) == child
    for stage, name, start in ((STAGE, "0", None), (on, "1", tmp_path / "cold-0")):
        apart = order(random_model, stage, tmp_path / f"cold-{name}", start)
        (tmp_path / "apart.json").write_text(json.dumps(apart))
        run_job(read_job(tmp_path / "apart.json"), io.StringIO())

    assert not is_alive(child)
    assert (report["steps"], report["tokens"] > 0) == (1, True)
    for number in "01":
        assert bytes_of(tmp_path / f"warm-{number}") == bytes_of(tmp_path / f"cold-{number}")
        assert Weights(tmp_path / f"warm-{number}").moments.exists()


def test_one_that_was_stopped_or_killed_or_has_failed_is_gone_and_the_next_is_a_fresh_one(
    random_model: Path, tmp_path: Path
) -> None:
    watcher = Watcher(stops_at=2)
    with Trainer() as trainer:
        with pytest.raises(Stopped):
            trainer.train(
                order(random_model, ENDLESS, tmp_path / "a"), folder=tmp_path, heart=watcher
            )
        assert (watcher.steps, trainer._process) == ([1, 2], None)

        fine = order(random_model, STAGE, tmp_path / "b")
        assert trainer.train(fine, folder=tmp_path, heart=Watcher())["event"] == "done"

        child = child_of(trainer)
        os.kill(child, signal.SIGKILL)  # while it waits: by the system, for memory
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        with pytest.raises(TrainingFailed, match="diverged at step"):
            trainer.train(
                order(random_model, DIVERGING, tmp_path / "c"), folder=tmp_path, heart=Watcher()
            )
        assert trainer._process is None


def test_one_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('not today')")
    trainer = Trainer(environment={"PYTHONPATH": str(tmp_path)})

    with pytest.raises(TrainingFailed, match=r"(?s)died with status \d+: .*not today"):
        trainer.train({}, folder=tmp_path, heart=Watcher())
