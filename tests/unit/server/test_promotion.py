"""Aliases: promotion and rollback are one move, refused when it makes no sense or comes too late."""

from dataclasses import dataclass
from datetime import timedelta

import pytest

from server.core.errors import (
    AliasMoved,
    AlreadyChampion,
    InvalidRequest,
    NothingToRollBack,
    RowNotFound,
    VersionInUse,
    VersionNotServable,
)
from server.db import Adapter, VersionStatus
from server.db.session import Database
from server.engine.routing import public_models, resolve
from server.services import history, promotion, registry, retirement, runs
from tests.support.factories import make_document, make_run, make_version


def promote(database: Database, adapter: Adapter, wanted: str) -> None:
    with database.unit_of_work() as session:
        move = promotion.plan_promotion(session, adapter, wanted)
        promotion.apply_move(session, adapter, move, actor="test", reason="")


def roll_back(database: Database, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        move = promotion.plan_rollback(session, adapter)
        promotion.apply_move(session, adapter, move, actor="test", reason="")


def champion_number(database: Database, adapter: Adapter) -> int | None:
    with database.unit_of_work() as session:
        champion = promotion.champion(session, adapter)
        return champion.number if champion else None


def test_rollback_walks_back_through_what_served(database: Database, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        for _ in range(3):
            make_version(session, adapter)
    for wanted in ("v1", "v3"):
        promote(database, adapter, wanted)

    seen = [champion_number(database, adapter)]
    for _ in range(2):
        roll_back(database, adapter)
        seen.append(champion_number(database, adapter))

    assert seen == [3, 1, None]
    with pytest.raises(NothingToRollBack):
        roll_back(database, adapter)


def test_promotion_after_a_rollback_restores_the_version(
    database: Database, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        make_version(session, adapter)
    promote(database, adapter, "v1")
    roll_back(database, adapter)

    promote(database, adapter, "smollm2@v1")

    assert champion_number(database, adapter) == 1


@pytest.mark.parametrize("status", [VersionStatus.CANDIDATE, VersionStatus.REJECTED])
def test_only_what_passed_the_gate_is_promoted(
    database: Database, adapter: Adapter, status: VersionStatus
) -> None:
    with database.unit_of_work() as session:
        make_version(session, adapter, status=status)

    with pytest.raises(VersionNotServable):
        promote(database, adapter, "v1")
    assert champion_number(database, adapter) is None


@pytest.mark.parametrize("wanted", ["v9", "9"])
def test_unknown_version_is_named_with_what_there_is(
    database: Database, adapter: Adapter, wanted: str
) -> None:
    with database.unit_of_work() as session:
        make_version(session, adapter)

    with pytest.raises(RowNotFound, match=r"has v1\."):
        promote(database, adapter, wanted)


@pytest.mark.parametrize("wanted", ["latest", "v-1", "v1.5", "", "other@v1"])
def test_what_is_no_version_name_is_refused(
    database: Database, adapter: Adapter, wanted: str
) -> None:
    with pytest.raises(InvalidRequest):
        promote(database, adapter, wanted)


def test_of_two_orders_planned_together_the_second_loses(
    database: Database, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        make_version(session, adapter)
        make_version(session, adapter)
        first = promotion.plan_promotion(session, adapter, "v1")
        second = promotion.plan_promotion(session, adapter, "v2")

    with database.unit_of_work() as session:
        promotion.apply_move(session, adapter, first, actor="a", reason="")
    with pytest.raises(AliasMoved), database.unit_of_work() as session:
        promotion.apply_move(session, adapter, second, actor="b", reason="")

    assert champion_number(database, adapter) == 1


def test_every_move_is_an_event_and_changes_the_revision(
    database: Database, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        make_version(session, adapter)
        before = registry.snapshot_revision(session)
    promote(database, adapter, "v1")
    roll_back(database, adapter)

    with database.unit_of_work() as session:
        events = registry.events_of(session, adapter)
        after = registry.snapshot_revision(session)

    assert [event.kind for event in events] == ["rollback", "promote"]
    assert after >= before + 2


def test_snapshot_keeps_the_newest_and_the_champion_resident(
    database: Database, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        for _ in range(4):
            make_version(session, adapter)
        make_version(session, adapter, status=VersionStatus.REJECTED)
    promote(database, adapter, "v1")

    with database.unit_of_work() as session:
        routes = registry.snapshot(session, resident_versions=2, served="smollm2").adapters[
            "smollm2"
        ]

    resident = [number for number, version in routes.versions.items() if version.is_resident]
    assert resident == [1, 3, 4]
    assert routes.aliases == {"champion": 1}
    assert routes.versions[1].engine_name == "smollm2@v1.00000000"


def test_rollback_goes_to_what_served_before_also_after_a_step_back_by_name(
    database: Database, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        make_version(session, adapter)
        make_version(session, adapter)
    for wanted in ("v1", "v2", "v1"):
        promote(database, adapter, wanted)

    roll_back(database, adapter)

    assert champion_number(database, adapter) == 2


def test_a_move_to_where_it_is_changes_nothing(database: Database, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        make_version(session, adapter)
    promote(database, adapter, "v1")

    with pytest.raises(AlreadyChampion):
        promote(database, adapter, "v1")
    with database.unit_of_work() as session:
        assert len(registry.events_of(session, adapter)) == 1


@dataclass(frozen=True)
class Line:
    """A line of servable versions, and orders on it."""

    database: Database
    adapter: Adapter

    def add(self, *statuses: VersionStatus) -> None:
        with self.database.unit_of_work() as session:
            for status in statuses:
                make_version(session, self.adapter, status=status)

    def retire(self, number: int, reason: str = "tried it") -> bool:
        with self.database.unit_of_work() as session:
            version = registry.get_version(session, self.adapter, number)
            assert version is not None
            return retirement.retire(session, self.adapter, version, actor="admin", reason=reason)

    def status(self, number: int) -> str:
        with self.database.unit_of_work() as session:
            version = registry.get_version(session, self.adapter, number)
            assert version is not None
            return version.status

    def resident(self, newest: int) -> list[int]:
        with self.database.unit_of_work() as session:
            snapshot = registry.snapshot(session, resident_versions=newest, served="smollm2")
        versions = snapshot.adapters["smollm2"].versions
        return [number for number, version in versions.items() if version.is_resident]


@pytest.fixture
def line(database: Database, adapter: Adapter) -> Line:
    return Line(database, adapter)


GOOD = VersionStatus.SERVABLE


def test_an_order_for_an_older_revision_loses_and_is_told_what_won(
    database: Database, adapter: Adapter, line: Line
) -> None:
    line.add(GOOD, GOOD)
    promote(database, adapter, "v1")

    for plan in (promotion.plan_promotion, promotion.plan_rollback):
        with pytest.raises(AliasMoved) as lost, database.unit_of_work() as session:
            plan(session, adapter, "v2", expected_revision=0)
        assert "smollm2@v1 serves now, moved there by test (revision 1)" in lost.value.message
    with database.unit_of_work() as session:
        move = promotion.plan_promotion(session, adapter, "v2", expected_revision=1)
        event = promotion.apply_move(session, adapter, move, actor="test", reason="")
    assert (event.revision, event.is_forced) == (2, False)


@pytest.mark.parametrize("status", [VersionStatus.REJECTED, VersionStatus.UNPROVEN])
def test_force_lets_an_unproven_version_serve_and_the_event_keeps_it(
    database: Database, adapter: Adapter, line: Line, status: VersionStatus
) -> None:
    line.add(status)

    with database.unit_of_work() as session:
        move = promotion.plan_promotion(session, adapter, "v1", force=True)
        event = promotion.apply_move(
            session, adapter, move, actor="admin", reason="I know better", is_forced=True
        )

    assert move.overruled == status
    assert event.is_forced
    assert line.status(1) == GOOD
    assert champion_number(database, adapter) == 1


def test_force_moves_no_retired_version_and_no_open_candidate(
    database: Database, adapter: Adapter, line: Line
) -> None:
    line.add(GOOD)
    line.retire(1, "it swears")
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, adapter)
        owned = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=30))
        make_version(session, adapter, status=VersionStatus.CANDIDATE, claim=owned)

    for wanted, why in (("v1", "it swears"), ("v2", "cancel that first")):
        with pytest.raises(VersionNotServable, match=why), database.unit_of_work() as session:
            promotion.plan_promotion(session, adapter, wanted, force=True)
    with pytest.raises(VersionInUse, match="cancel that first"):
        line.retire(2)


def test_a_version_retired_between_plan_and_move_does_not_serve(
    database: Database, adapter: Adapter, line: Line
) -> None:
    line.add(GOOD)
    with database.unit_of_work() as session:
        move = promotion.plan_promotion(session, adapter, "v1")
    line.retire(1)

    with pytest.raises(VersionNotServable), database.unit_of_work() as session:
        promotion.apply_move(session, adapter, move, actor="test", reason="")

    assert champion_number(database, adapter) is None


def test_what_serves_is_not_retired(database: Database, adapter: Adapter, line: Line) -> None:
    line.add(GOOD)
    promote(database, adapter, "v1")

    with pytest.raises(VersionInUse, match="everlearn rollback smollm2"):
        line.retire(1)

    assert line.status(1) == GOOD


def test_retiring_twice_is_retiring_once(line: Line) -> None:
    line.add(GOOD)

    assert [line.retire(1, "first"), line.retire(1, "second")] == [True, False]
    with line.database.unit_of_work() as session:
        version = registry.get_version(session, line.adapter, 1)
    assert version is not None
    assert (version.retire_reason, version.retired_at is None) == ("first", False)


def test_a_rollback_steps_over_what_was_retired_and_says_so(
    database: Database, adapter: Adapter, line: Line
) -> None:
    line.add(GOOD, GOOD, GOOD)
    for wanted in ("v1", "v2", "v3"):
        promote(database, adapter, wanted)
    line.retire(2)

    with database.unit_of_work() as session:
        move = promotion.plan_rollback(session, adapter)
    assert (move.to_number, move.skipped) == (1, (2,))
    roll_back(database, adapter)
    line.retire(3)
    roll_back(database, adapter)

    assert champion_number(database, adapter) is None
    with pytest.raises(NothingToRollBack):
        roll_back(database, adapter)


def test_a_rollback_never_goes_to_what_serves_already(
    database: Database, adapter: Adapter, line: Line
) -> None:
    line.add(GOOD, GOOD)
    for wanted in ("v1", "v2", "v1"):
        promote(database, adapter, wanted)
    line.retire(2)

    roll_back(database, adapter)

    assert champion_number(database, adapter) is None


def test_what_a_rollback_goes_to_is_resident_however_old_it_is(
    database: Database, adapter: Adapter, line: Line
) -> None:
    line.add(*[GOOD] * 6)
    for wanted in ("v1", "v2"):
        promote(database, adapter, wanted)
    assert line.resident(newest=2) == [1, 2, 5, 6]

    line.retire(5)
    assert line.resident(newest=2) == [1, 2, 4, 6]
    roll_back(database, adapter)
    assert line.resident(newest=2) == [1, 4, 6]


def test_a_retired_version_answers_nobody_and_says_why(
    database: Database, adapter: Adapter, line: Line
) -> None:
    line.add(GOOD, GOOD)
    line.retire(1, "it swears")

    with database.unit_of_work() as session:
        snapshot = registry.snapshot(session, resident_versions=3, served="smollm2")

    assert "smollm2@v1" not in public_models(snapshot)
    for name in ("smollm2@v1", "smollm2@v1.00000000"):
        with pytest.raises(VersionNotServable, match=r"retired for good \(it swears\)"):
            resolve(snapshot, name)


def test_a_long_history_is_looked_back_over_only_so_far(
    database: Database, adapter: Adapter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "REMEMBERED_MOVES", 2)
    line.add(GOOD, GOOD, GOOD, GOOD)
    for wanted in ("v1", "v2", "v3", "v4"):
        promote(database, adapter, wanted)

    with database.unit_of_work() as session:
        path = history.path_back(session, adapter.id)
        names = [one and registry.by_id(session, one).number for one in path]

    assert names == [3, 2, None]
