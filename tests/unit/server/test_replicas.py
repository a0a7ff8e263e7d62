"""Rows of replicas and gateways: what settings and admins want, and when a version is let go."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from server.core.clock import utc_now
from server.core.errors import Conflict, RowNotFound
from server.db import Gateway
from server.db.session import Database
from server.services import fleet

ONE, TWO, THREE = (f"http://10.0.0.{number}:8000" for number in (1, 2, 3))


def urls(database: Database) -> dict[str, bool]:
    with database.unit_of_work() as session:
        return fleet.wanted(session)


def sync(database: Database, *configured: str) -> None:
    with database.unit_of_work() as session:
        fleet.sync_from_settings(session, configured)


def add(database: Database, url: str) -> str:
    with database.unit_of_work() as session:
        return fleet.add_replica(session, url).id


def test_rows_from_settings_follow_the_settings_and_others_stay(database: Database) -> None:
    sync(database, ONE, TWO)
    add(database, THREE)
    assert list(urls(database)) == [ONE, TWO, THREE]

    sync(database, TWO)
    sync(database, TWO)

    assert list(urls(database)) == [TWO, THREE]


def test_what_an_admin_added_and_the_settings_name_is_the_settings_from_then_on(
    database: Database,
) -> None:
    add(database, ONE)
    sync(database, ONE)
    sync(database, TWO)

    assert list(urls(database)) == [TWO]


def test_a_start_does_not_end_a_drain(database: Database) -> None:
    sync(database, ONE, TWO)
    with database.unit_of_work() as session:
        first = fleet.list_replicas(session)[0]
        fleet.set_draining(session, first.id, is_draining=True)

    sync(database, ONE, TWO)

    assert urls(database) == {ONE: True, TWO: False}
    with database.unit_of_work() as session:
        assert fleet.urls(session, ["http://elsewhere"]) == [TWO]


def test_a_worker_without_rows_asks_the_settings_engine(database: Database) -> None:
    with database.unit_of_work() as session:
        assert fleet.urls(session, [ONE]) == [ONE]


def test_an_address_is_taken_once_however_it_ends(database: Database) -> None:
    add(database, f" {ONE}/ ")

    with pytest.raises(Conflict, match="there already"):
        add(database, ONE)


def test_an_unknown_replica_and_the_last_one(database: Database) -> None:
    only = add(database, ONE)
    with database.unit_of_work() as session:
        with pytest.raises(RowNotFound, match="everlearn fleet"):
            fleet.set_draining(session, "rep_x", is_draining=True)
        with pytest.raises(Conflict, match="only replica"):
            fleet.remove_replica(session, only)


NOW = utc_now()
NAME = "smollm2@v1.00000001"


def tell(database: Database, gateway: str, **fields: Any) -> None:
    said = {"revision": 7, "in_flight": {}, "replicas": {}, "now": NOW, **fields}
    with database.unit_of_work() as session:
        fleet.record_gateway(session, gateway, name=gateway, **said)


def is_let_go(database: Database, *, now: datetime = NOW) -> bool:
    with database.unit_of_work() as session:
        return fleet.is_let_go(session, NAME, 7, now=now)


def test_a_version_is_let_go_when_every_gateway_says_so(database: Database) -> None:
    assert is_let_go(database)  # there is none
    tell(database, "gwy_1")
    tell(database, "gwy_2", revision=9)

    assert is_let_go(database)


@pytest.mark.parametrize(
    "fields",
    [
        {"revision": 6},
        {"in_flight": {NAME: 1}},
        {"replicas": {ONE: {"state": "away", "error": None, "resident": [NAME]}}},
    ],
    ids=["routes by older rows", "has a request", "sees it on a replica"],
)
def test_one_gateway_that_still_knows_it_is_enough_to_keep_it(
    database: Database, fields: dict[str, Any]
) -> None:
    tell(database, "gwy_1")
    tell(database, "gwy_2", **fields)
    assert not is_let_go(database)

    tell(database, "gwy_2", in_flight={"smollm2@v2.00000002": 3})
    assert is_let_go(database)


def test_a_silent_gateway_counts_for_half_a_minute_and_its_row_goes_after_a_day(
    database: Database,
) -> None:
    tell(database, "gwy_1", in_flight={NAME: 1})
    assert not is_let_go(database, now=NOW + timedelta(seconds=30))
    assert is_let_go(database, now=NOW + timedelta(seconds=31))

    tell(database, "gwy_2", now=NOW + timedelta(days=1, seconds=1))

    with database.unit_of_work() as session:
        assert [row.id for row in session.scalars(select(Gateway))] == ["gwy_2"]
