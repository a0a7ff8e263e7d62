"""What runs and killed workers leave behind: gone once nobody is at work on it and no engine holds it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from server.core.clock import utc_now
from server.core.settings import EngineSettings, Settings
from server.db import Adapter, RunStatus
from server.db.session import Database
from server.services import deletions, runs
from server.services.runs import Claim
from tests.conftest import RecordingQueue
from tests.support.factories import make_document, make_run, make_version, principal
from tests.support.fake_engine import FakeEngine, serve
from workers import cleaning, leftovers, schedule
from workers.context import WorkerContext

LEASE = timedelta(seconds=30)
WORKING_FILES = ("checkpoints", "once", "quiz.json", "trained-0", "trained-0.json")


@dataclass
class Yard:
    """A run in the hands of a worker that is killed, with a throw-away adapter in the engine."""

    context: WorkerContext
    adapter: Adapter
    engine: FakeEngine
    owned: Claim
    document_id: str

    @property
    def folder(self) -> Path:
        return self.context.settings.runs_path / self.owned.run_id

    @property
    def name(self) -> str:
        return f"smollm2@try.{self.owned.run_id}.1.0a1b2c3d4e5f"

    @property
    def pending(self) -> Path:
        return self.context.settings.artifacts_path / "smollm2" / f".{self.owned.run_id}-1"

    def left(self) -> list[str]:
        if not self.folder.exists():
            return []
        return sorted(path.name for path in self.folder.iterdir())

    def is_taken_over(self) -> None:
        with self.context.database.unit_of_work() as session:
            later = utc_now() + 2 * LEASE
            assert runs.claim(session, self.owned.run_id, worker="b", lease=LEASE, now=later)

    def ends(self, *, with_version: bool = False) -> None:
        """As the sweep ends it: no worker is there to remove anything."""
        with self.context.database.unit_of_work() as session:
            if with_version:
                make_version(session, self.adapter, claim=self.owned)
            runs.finish(session, self.owned, status=RunStatus.FAILED)


@pytest.fixture
def yard(
    database: Database, adapter: Adapter, settings: Settings, queue: RecordingQueue
) -> Iterator[Yard]:
    engine = FakeEngine()
    with serve(engine.app()) as served:
        with database.unit_of_work() as session:
            document_id = make_document(session, "Gone.").id
            run = make_run(session, adapter)
            session.flush()
            owned = runs.claim(session, run.id, worker="a", lease=LEASE)
            assert owned is not None
            runs.take_documents(session, owned)
        served_by = EngineSettings(url=served.url, connect_timeout_s=1)
        settings = settings.model_copy(update={"engine": served_by})
        context = WorkerContext(settings, database, cast(Any, queue), "test")
        made = Yard(context, adapter, engine, owned, document_id)
        for name in ("attempt-1/try-1/0", "checkpoints", "once", "trained-0"):
            (made.folder / name).mkdir(parents=True)
        for name in ("attempt-1/held", "quiz.json", "trained-0.json", "lesson.json"):
            (made.folder / name).write_text("Gone.")
        made.pending.mkdir(parents=True)
        engine.adapters[made.name] = str(made.folder / "attempt-1" / "try-1" / "0")
        engine.adapters["smollm2@v1.0a1b2c3d"] = "/somewhere"
        engine.adapters["smollm2@try.run_of_another_server.1.0a1b2c3d4e5f"] = "/elsewhere"
        yield made


def test_what_is_at_work_is_left_alone(yard: Yard) -> None:
    leftovers.tidy(yard.context)

    assert yard.left() == ["attempt-1", *WORKING_FILES[:1], "lesson.json", *WORKING_FILES[1:]]
    assert yard.name in yard.engine.adapters
    assert yard.pending.exists()


def test_of_an_attempt_that_died_its_own_files_go_and_the_runs_stay(yard: Yard) -> None:
    yard.is_taken_over()

    leftovers.tidy(yard.context)

    assert yard.left() == ["checkpoints", "lesson.json", *WORKING_FILES[1:]]
    assert yard.engine.unloads == [yard.name]  # and no name that is another's
    assert not yard.pending.exists()


def test_of_a_run_that_is_over_only_the_lesson_of_a_version_stays(yard: Yard) -> None:
    yard.ends(with_version=True)

    leftovers.tidy(yard.context)

    assert yard.left() == ["lesson.json"]
    assert yard.engine.unloads == [yard.name]


def test_of_a_run_without_a_version_nothing_stays(yard: Yard) -> None:
    yard.ends()

    for _ in range(3):
        leftovers.tidy(yard.context)

    assert not yard.folder.exists()


@pytest.mark.parametrize("fault", ["away", "keeps it"])
def test_no_file_goes_that_an_engine_may_hold(yard: Yard, fault: str) -> None:
    yard.ends()
    context = yard.context
    if fault == "away":
        nobody = EngineSettings(url="http://127.0.0.1:9", connect_timeout_s=1)
        settings = context.settings.model_copy(update={"engine": nobody})
        context = WorkerContext(settings, context.database, context.queue, "test")
    else:
        yard.engine.refuses_unload = 500

    leftovers.tidy(context)
    assert {"attempt-1", "trained-0"} <= set(yard.left())

    yard.engine.refuses_unload = None
    leftovers.tidy(yard.context)
    assert yard.left() == []


def test_a_deletion_waits_for_an_engine_that_may_hold_what_learnt_it(yard: Yard) -> None:
    yard.ends()
    with yard.context.database.unit_of_work() as session:
        deletions.forget_document(session, principal(), yard.document_id)
    yard.engine.refuses_unload = 500

    cleaning.remove_files(yard.context)
    assert yard.folder.exists()

    yard.engine.refuses_unload = None
    schedule.tick(yard.context)
    assert not yard.folder.exists()
    assert yard.name not in yard.engine.adapters


def test_a_folder_of_another_database_is_left_alone(yard: Yard) -> None:
    foreign = yard.context.settings.runs_path / "run_unknown" / "attempt-1"
    foreign.mkdir(parents=True)

    leftovers.tidy(yard.context)

    assert foreign.exists()
