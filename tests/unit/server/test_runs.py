"""The state machine of runs: whoever asks, twice or late, a run is owned once and ends once."""

from datetime import timedelta

import pytest

from server.core.clock import utc_now
from server.core.errors import LeaseLost, NothingToLearn, RunNotCancellable
from server.core.queue import RUN_ADAPTATION
from server.db import Adapter, DocumentState, RunStatus, VersionStatus
from server.db.session import Database
from server.services import documents, promotion, registry, runs
from tests.conftest import RecordingQueue
from tests.support.factories import make_document, make_run, make_version

LEASE = timedelta(seconds=30)


def test_learning_without_a_document_is_refused(database: Database, adapter: Adapter) -> None:
    with (
        pytest.raises(NothingToLearn, match="everlearn ingest"),
        database.unit_of_work() as session,
    ):
        make_run(session, adapter)


def test_message_is_sent_only_after_the_commit(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        run, _ = runs.queue_run(
            session, adapter, method="seal", config={}, requested_by="test", queue=queue
        )
        sent_before_commit = list(queue.sent)

    assert sent_before_commit == []
    assert queue.sent == [(RUN_ADAPTATION, run.id)]


def test_rolled_back_run_sends_no_message(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    def fail_after_queueing() -> None:
        with database.unit_of_work() as session:
            make_document(session)
            runs.queue_run(
                session, adapter, method="seal", config={}, requested_by="test", queue=queue
            )
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_queueing()

    assert queue.sent == []


def test_second_order_returns_the_open_run(database: Database, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        first = make_run(session, adapter)
        second = make_run(session, adapter)

    assert second.id == first.id


def test_a_run_is_claimed_by_one_worker_only(database: Database, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, adapter)

    with database.unit_of_work() as session:
        first = runs.claim(session, run.id, worker="a", lease=LEASE)
    with database.unit_of_work() as session:
        second = runs.claim(session, run.id, worker="b", lease=LEASE)

    assert first == runs.Claim(run.id, attempt=1)
    assert second is None


def test_silent_worker_loses_its_run(database: Database, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, adapter)
        dead = runs.claim(session, run.id, worker="a", lease=LEASE)
    assert dead is not None

    later = utc_now() + timedelta(seconds=31)
    with database.unit_of_work() as session:
        heir = runs.claim(session, run.id, worker="b", lease=LEASE, now=later)

    assert heir == runs.Claim(run.id, attempt=2)
    with pytest.raises(LeaseLost), database.unit_of_work() as session:
        runs.heartbeat(session, dead, stage="training")
    with pytest.raises(LeaseLost), database.unit_of_work() as session:
        runs.finish(session, dead, status=RunStatus.SUCCEEDED, verdict="promote")
    with database.unit_of_work() as session:
        assert runs.get_run(session, run.id).status == RunStatus.RUNNING


def test_sweep_sends_lost_runs_again_and_gives_up_in_the_end(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, adapter)
    moment = utc_now()
    for attempt in (1, 2, 3):
        with database.unit_of_work() as session:
            runs.sweep(session, lease=LEASE, max_attempts=3, queue=queue, now=moment)
        assert queue.sent == [(RUN_ADAPTATION, run.id)] * attempt
        with database.unit_of_work() as session:
            runs.claim(session, run.id, worker="dies", lease=LEASE, now=moment)
        moment += timedelta(seconds=31)

    with database.unit_of_work() as session:
        runs.sweep(session, lease=LEASE, max_attempts=3, queue=queue, now=moment)

    with database.unit_of_work() as session:
        failed = runs.get_run(session, run.id)
    assert failed.status == RunStatus.FAILED
    assert failed.error is not None
    assert "3 workers" in failed.error
    assert len(queue.sent) == 3


def test_cancel_of_a_queued_run_ends_it(database: Database, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, adapter)
        runs.request_cancel(session, run.id)

    with database.unit_of_work() as session:
        assert runs.get_run(session, run.id).status == RunStatus.CANCELLED
        assert runs.claim(session, run.id, worker="a", lease=LEASE) is None
    with pytest.raises(RunNotCancellable), database.unit_of_work() as session:
        runs.request_cancel(session, run.id)


def test_cancel_of_a_running_run_reaches_its_worker(database: Database, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, adapter)
        owned = runs.claim(session, run.id, worker="a", lease=LEASE)
        assert owned is not None
        before = runs.heartbeat(session, owned, stage="training")
        runs.request_cancel(session, run.id)
        session.flush()
        after = runs.heartbeat(session, owned, stage="training")

    assert (before, after) == (False, True)


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        ("promote", DocumentState.LEARNT),
        ("reject", DocumentState.NOT_LEARNT),
        (None, DocumentState.NOT_LEARNT),
    ],
)
def test_documents_follow_the_verdict(
    database: Database, adapter: Adapter, verdict: str | None, state: DocumentState
) -> None:
    with database.unit_of_work() as session:
        document = make_document(session)
        run = make_run(session, adapter)
        owned = runs.claim(session, run.id, worker="a", lease=LEASE)
        assert owned is not None
        assert runs.take_documents(session, owned) == [document.id]
        during = documents.get_document(session, document.id).state
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict=verdict)

    with database.unit_of_work() as session:
        assert during == DocumentState.LEARNING
        assert documents.get_document(session, document.id).state == state


def test_a_second_attempt_learns_what_the_first_had_taken(
    database: Database, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        document = make_document(session)
        run = make_run(session, adapter)
        owned = runs.claim(session, run.id, worker="a", lease=LEASE)
        assert owned is not None
        runs.take_documents(session, owned)
        make_document(session, "Another text that came later.")

    with database.unit_of_work() as session:
        assert runs.take_documents(session, owned) == [document.id]


def test_a_run_that_the_sweep_gives_up_closes_its_candidate(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, adapter)
        owned = runs.claim(session, run.id, worker="dies", lease=LEASE)
        version = make_version(session, adapter, status=VersionStatus.CANDIDATE, claim=owned)

    with database.unit_of_work() as session:
        later = utc_now() + 2 * LEASE
        runs.sweep(session, lease=LEASE, max_attempts=1, queue=queue, now=later)

    with database.unit_of_work() as session:
        assert registry.by_id(session, version.id).status == VersionStatus.REJECTED


def test_a_failed_run_does_not_unlearn_what_the_champion_knows(
    database: Database, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        document = make_document(session)
        run = make_run(session, adapter)
        owned = runs.claim(session, run.id, worker="a", lease=LEASE)
        assert owned is not None
        runs.take_documents(session, owned)
        make_version(session, adapter, claim=owned)
        move = promotion.plan_promotion(session, adapter, 1)
        promotion.apply_move(session, adapter, move, actor="test", reason="")
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")
    with database.unit_of_work() as session:
        run = make_run(session, adapter)
        owned = runs.claim(session, run.id, worker="a", lease=LEASE)
        assert owned is not None
        runs.take_documents(session, owned)
        runs.finish(session, owned, status=RunStatus.FAILED, error="no luck")

    with database.unit_of_work() as session:
        assert documents.get_document(session, document.id).state == DocumentState.LEARNT
