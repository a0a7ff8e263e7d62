"""Rows of replicas and gateways when many write at once, on each database."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.core.errors import AppError
from server.db.session import Database
from server.services import fleet

pytestmark = pytest.mark.integration

ONE, TWO, OLD = "http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://10.0.0.9:8000"


def at_once(database: Database, *acts: Callable[[Session], Any]) -> list[str | None]:
    """The code of what went wrong with each act, in a thread and a transaction of its own."""

    def transaction(act: Callable[[Session], Any]) -> str | None:
        try:
            with database.unit_of_work() as session:
                act(session)
        except AppError as error:
            return error.code
        return None

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(transaction, acts))


def test_gateways_that_start_at_once_agree_on_the_settings_rows(shared: Database) -> None:
    with shared.unit_of_work() as session:
        fleet.sync_from_settings(session, [OLD])

    failed = at_once(shared, *[lambda session: fleet.sync_from_settings(session, [ONE, TWO])] * 8)

    assert failed == [None] * 8
    with shared.unit_of_work() as session:
        assert set(fleet.wanted(session)) == {ONE, TWO}


def test_an_address_is_added_once(shared: Database) -> None:
    failed = at_once(shared, *[lambda session: fleet.add_replica(session, ONE)] * 8)

    assert sorted(map(str, failed)) == ["None", *["conflict"] * 7]


def test_the_last_replica_is_never_removed(shared: Database) -> None:
    with shared.unit_of_work() as session:
        ids = [fleet.add_replica(session, url).id for url in (ONE, TWO)]

    failed = at_once(
        shared, *(lambda session, each=each: fleet.remove_replica(session, each) for each in ids)
    )

    assert sorted(map(str, failed)) == ["None", "conflict"]
    with shared.unit_of_work() as session:
        assert len(fleet.list_replicas(session)) == 1


def test_a_gateways_row_is_written_again_and_again(shared: Database) -> None:
    for revision in (1, 2):
        with shared.unit_of_work() as session:
            fleet.record_gateway(
                session,
                "gwy_1",
                name="host:7",
                revision=revision,
                in_flight={"smollm2@v1.0": revision},
                replicas={},
                now=utc_now(),
            )

    with shared.unit_of_work() as session:
        (row,) = fleet.live_gateways(session, now=utc_now())
        assert (row.revision, row.in_flight) == (2, {"smollm2@v1.0": 2})
        fleet.forget_gateway(session, "gwy_1")
    with shared.unit_of_work() as session:
        assert fleet.live_gateways(session, now=utc_now()) == []
