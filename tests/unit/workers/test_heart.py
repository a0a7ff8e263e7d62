"""The heart: keeps the lease, carries progress, and stops the work on a cancel or a lost lease."""

import time
from datetime import timedelta

import pytest

from server.core.clock import utc_now
from server.core.errors import LeaseLost
from server.db import Adapter
from server.db.session import Database
from server.services import runs
from tests.support.factories import make_document, make_run
from workers.heart import Heart, RunCancelled

LEASE = timedelta(seconds=30)


@pytest.fixture
def owned(database: Database, adapter: Adapter) -> runs.Claim:
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, adapter)
        claim = runs.claim(session, run.id, worker="a", lease=LEASE)
    assert claim is not None
    return claim


def until_stopped(heart: Heart, timeout_s: float = 5) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        heart.check()
        time.sleep(0.01)


def test_stage_and_progress_reach_the_row(database: Database, owned: runs.Claim) -> None:
    with Heart(database, owned, every_s=0.02, lease_s=30) as heart:
        heart.begin("training")
        heart.progress(3, 9)
        time.sleep(0.3)
        with database.unit_of_work() as session:
            run = runs.get_run(session, owned.run_id)

    assert (run.stage, run.done, run.total) == ("training", 3, 9)
    assert run.heartbeat_at is not None
    assert utc_now() - run.heartbeat_at < timedelta(seconds=1)


def test_a_cancel_stops_the_work(database: Database, owned: runs.Claim) -> None:
    with Heart(database, owned, every_s=0.02, lease_s=30) as heart:
        with database.unit_of_work() as session:
            runs.request_cancel(session, owned.run_id)

        with pytest.raises(RunCancelled):
            until_stopped(heart)


def test_a_lost_lease_stops_the_work(database: Database, owned: runs.Claim) -> None:
    with Heart(database, owned, every_s=0.02, lease_s=30) as heart:
        with database.unit_of_work() as session:
            later = utc_now() + 2 * LEASE
            runs.claim(session, owned.run_id, worker="b", lease=LEASE, now=later)

        with pytest.raises(LeaseLost):
            until_stopped(heart)
