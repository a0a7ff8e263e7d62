"""Aliases: promotion and rollback are one move, refused when it makes no sense or comes too late."""

import pytest

from server.core.errors import (
    AliasMoved,
    AlreadyChampion,
    InvalidRequest,
    NothingToRollBack,
    RowNotFound,
    VersionNotServable,
)
from server.db import Adapter, VersionStatus
from server.db.session import Database
from server.services import promotion, registry
from tests.support.factories import make_version


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
