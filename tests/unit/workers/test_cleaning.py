"""Files of what was retired or forgotten: gone only when nobody holds them, whatever breaks off."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from server.core.clock import new_id, utc_now
from server.core.settings import EngineSettings, Settings, SwapSettings
from server.db import Adapter, AdapterVersion, Gateway, Replica, RunStatus, VersionStatus
from server.db.session import Database
from server.services import deletions, promotion, registry, retirement, runs
from tests.conftest import RecordingQueue
from tests.support.factories import make_document, make_run, make_version, principal
from tests.support.fake_engine import FakeEngine, Served, serve
from workers import cleaning, schedule
from workers.context import WorkerContext

LEASE = timedelta(seconds=30)


@dataclass
class House:
    """A worker, its engine, and a line with files."""

    context: WorkerContext
    adapter: Adapter
    engine: FakeEngine
    served: Served

    @property
    def database(self) -> Database:
        return self.context.database

    @property
    def line(self) -> Path:
        return self.context.settings.artifacts_path / "smollm2"

    def version(self, number: int) -> AdapterVersion:
        with self.database.unit_of_work() as session:
            version = registry.get_version(session, self.adapter, number)
            assert version is not None
            return version

    def retire(self, number: int) -> None:
        with self.database.unit_of_work() as session:
            version = registry.get_version(session, self.adapter, number)
            assert version is not None
            retirement.retire(session, self.adapter, version, actor="admin", reason="a test")

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.line.iterdir())


@pytest.fixture
def house(
    database: Database, adapter: Adapter, settings: Settings, queue: RecordingQueue
) -> Iterator[House]:
    engine = FakeEngine()
    with serve(engine.app()) as served:
        settings = settings.model_copy(
            update={
                "engine": EngineSettings(url=served.url, connect_timeout_s=1),
                "swap": SwapSettings(remove_after_s=0),
            }
        )
        context = WorkerContext(settings, database, cast(Any, queue), "test")
        made = House(context, adapter, engine, served)
        with database.unit_of_work() as session:
            for _ in range(2):
                version = make_version(session, adapter)
                folder = made.line / f"v{version.number:04d}"
                folder.mkdir(parents=True)
                (folder / "adapter_model.safetensors").write_text("weights")
                version.path = str(folder)
        yield made


def test_files_of_a_retired_version_go_and_no_others(house: House) -> None:
    house.retire(1)

    cleaning.remove_files(house.context)

    assert house.names() == ["v0002"]
    assert house.version(1).files_removed_at is not None
    assert house.version(2).files_removed_at is None


def test_they_stay_as_long_as_the_settings_say(house: House) -> None:
    house.retire(1)
    settings = house.context.settings.model_copy(update={"swap": SwapSettings(remove_after_s=3600)})
    context = WorkerContext(settings, house.database, house.context.queue, "test")

    cleaning.remove_files(context)

    assert house.names() == ["v0001", "v0002"]


def test_an_engine_that_holds_it_is_asked_to_let_go(house: House) -> None:
    house.retire(1)
    version = house.version(1)
    name = registry.engine_name("smollm2", version)
    house.engine.adapters[name] = version.path

    cleaning.remove_files(house.context)

    assert name not in house.engine.adapters
    assert house.names() == ["v0002"]


def test_an_engine_that_does_not_answer_keeps_the_files(house: House) -> None:
    house.retire(1)
    with house.database.unit_of_work() as session:
        for url in (house.served.url, "http://127.0.0.1:9"):
            session.add(Replica(id=new_id("rep"), url=url, origin="api"))

    cleaning.remove_files(house.context)

    assert house.names() == ["v0001", "v0002"]
    assert house.version(1).files_removed_at is None
    with house.database.unit_of_work() as session:  # it is taken out of the fleet
        dead = session.query(Replica).filter_by(url="http://127.0.0.1:9").one()
        session.delete(dead)
    cleaning.remove_files(house.context)
    assert house.names() == ["v0002"]


def test_a_request_in_flight_keeps_the_files_and_the_engines_copy(house: House) -> None:
    house.retire(1)
    version = house.version(1)
    name = registry.engine_name("smollm2", version)
    house.engine.adapters[name] = version.path
    with house.database.unit_of_work() as session:
        gateway = Gateway(
            id=new_id("gat"),
            name="host:1",
            seen_at=utc_now() + timedelta(seconds=5),
            revision=1000,
            in_flight={name: 1},
            replicas={},
        )
        session.add(gateway)

    cleaning.remove_files(house.context)
    assert (house.names(), name in house.engine.adapters) == (["v0001", "v0002"], True)

    with house.database.unit_of_work() as session:
        session.get_one(Gateway, gateway.id).in_flight = {}
    cleaning.remove_files(house.context)
    assert (house.names(), name in house.engine.adapters) == (["v0002"], False)


@pytest.mark.parametrize("left", [["v0001"], [".v0001-removed"], []])
def test_a_removal_that_was_broken_off_is_gone_through_again(house: House, left: list[str]) -> None:
    house.retire(1)
    if left != ["v0001"]:
        (house.line / "v0001").rename(house.line / ".v0001-removed")
    if not left:
        cleaning.shutil.rmtree(house.line / ".v0001-removed")

    cleaning.remove_files(house.context)
    cleaning.remove_files(house.context)

    assert house.names() == ["v0002"]
    assert house.version(1).files_removed_at is not None


def test_lessons_go_when_no_version_that_builds_on_them_has_files(house: House) -> None:
    """v1 ← v2; v3 is of the base. A version without files is never rebuilt."""
    with house.database.unit_of_work() as session:
        make_version(session, house.adapter)
        first = registry.get_version(session, house.adapter, 1)
        second = registry.get_version(session, house.adapter, 2)
        assert first is not None
        assert second is not None
        second.parent_id = first.id
    lessons = {
        number: house.context.settings.runs_path / f"run_of_smollm2_v{number}" / "lesson.json"
        for number in (1, 2, 3)
    }
    for lesson in lessons.values():
        lesson.parent.mkdir(parents=True)
        lesson.write_text("{}")

    def left() -> list[int]:
        cleaning.remove_files(house.context)
        return [number for number, lesson in lessons.items() if lesson.exists()]

    house.retire(1)
    assert left() == [1, 2, 3]
    assert house.version(1).files_removed_at is not None
    house.retire(2)
    assert left() == [3]


def test_a_folder_outside_ours_is_never_removed(house: House, tmp_path: Path) -> None:
    foreign = tmp_path / "precious"
    foreign.mkdir()
    with house.database.unit_of_work() as session:
        for number, path in ((1, foreign), (2, house.line / ".." / ".." / ".." / "precious")):
            version = registry.get_version(session, house.adapter, number)
            assert version is not None
            version.path = str(path)
    house.retire(1)
    house.retire(2)

    cleaning.remove_files(house.context)

    assert foreign.exists()
    assert house.version(1).files_removed_at is None


def test_ticks_alone_bring_a_deletion_to_its_end(house: House) -> None:
    with house.database.unit_of_work() as session:
        make_document(session, "Kept.")
        document_id = make_document(session, "Gone.").id
        run = make_run(session, house.adapter)
        owned = runs.claim(session, run.id, worker="w", lease=LEASE)
        assert owned is not None
        runs.take_documents(session, owned)
        version = make_version(session, house.adapter, claim=owned)
        folder = house.line / "v0003"
        folder.mkdir()
        version.path = str(folder)
        move = promotion.plan_promotion(session, house.adapter, 3)
        promotion.apply_move(session, house.adapter, move, actor="run", reason="")
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")
    lesson = house.context.settings.runs_path / run.id
    lesson.mkdir(parents=True)
    (lesson / "lesson.json").write_text('["Gone."]')
    other = house.context.settings.runs_path / "run_of_smollm2_v1"
    other.mkdir()
    (other / "lesson.json").write_text('["Kept."]')

    with house.database.unit_of_work() as session:
        deletion_id = deletions.forget_document(session, principal(), document_id, rebuild=True)[
            1
        ].id
    schedule.tick(house.context)

    assert not lesson.exists()  # what quotes it goes at once
    assert (other / "lesson.json").exists()
    assert house.names() == ["v0001", "v0002", "v0003"]
    with house.database.unit_of_work() as session:
        (run_id,) = deletions.get_deletion(session, deletion_id).run_ids
        owned = runs.claim(session, run_id, worker="w", lease=LEASE)
        assert owned is not None
        runs.take_documents(session, owned)
        make_version(session, house.adapter, claim=owned)
        move = promotion.plan_promotion(session, house.adapter, 4)
        promotion.apply_move(session, house.adapter, move, actor="run", reason="")
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")
    for _ in range(3):
        schedule.tick(house.context)

    assert house.names() == ["v0001", "v0002"]
    assert house.version(3).status == VersionStatus.RETIRED
    with house.database.unit_of_work() as session:
        assert deletions.get_deletion(session, deletion_id).state == "done"
        assert deletions.unfinished(session) == []
