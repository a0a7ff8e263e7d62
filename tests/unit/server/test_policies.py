"""The default policy: a run by itself, once, after a pause in the documents."""

from datetime import timedelta

from server.core.clock import utc_now
from server.core.queue import INGEST_DOCUMENT, RUN_ADAPTATION
from server.core.settings import LearningSettings
from server.db import Adapter, RunStatus
from server.db.session import Database
from server.services import policies, runs
from tests.conftest import RecordingQueue
from tests.support.factories import accept_text, make_document

SETTINGS = LearningSettings(quiet_s=10)


def due(database: Database, queue: RecordingQueue, after_s: float) -> int:
    now = utc_now() + timedelta(seconds=after_s)
    with database.unit_of_work() as session:
        return len(policies.queue_due_runs(session, SETTINGS, queue=queue, now=now))


def test_a_run_starts_once_documents_have_settled(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    with database.unit_of_work() as session:
        make_document(session)

    assert due(database, queue, after_s=5) == 0
    assert due(database, queue, after_s=11) == 1
    assert due(database, queue, after_s=12) == 0
    assert [task for task, _ in queue.sent] == [RUN_ADAPTATION]


def test_documents_that_a_run_has_seen_start_no_other(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    with database.unit_of_work() as session:
        make_document(session)
    assert due(database, queue, after_s=11) == 1
    with database.unit_of_work() as session:
        owned = runs.claim(session, queue.sent[0][1], worker="a", lease=timedelta(seconds=30))
        assert owned is not None
        runs.take_documents(session, owned)
        runs.finish(session, owned, status=RunStatus.FAILED, error="no luck")

    assert due(database, queue, after_s=20) == 0

    with database.unit_of_work() as session:
        make_document(session, "Something new.")
    assert due(database, queue, after_s=20) == 1


def test_a_policy_switched_off_starts_nothing(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        policies.ensure_default_policy(session, adapter, is_enabled=False)

    assert due(database, queue, after_s=11) == 0


def test_a_lost_ingest_message_is_sent_again(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    with database.unit_of_work() as session:
        document, _ = accept_text(
            session, "Lost on the way.", created_by="key_test", queue=RecordingQueue()
        )

    for after_s in (1, 6):
        now = utc_now() + timedelta(seconds=after_s)
        with database.unit_of_work() as session:
            policies.resend_ingests(session, queue=queue, now=now)

    assert queue.sent == [(INGEST_DOCUMENT, document.id)]


def test_a_cancelled_run_is_not_started_again_by_itself(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    with database.unit_of_work() as session:
        make_document(session)
    assert due(database, queue, after_s=11) == 1
    with database.unit_of_work() as session:
        runs.request_cancel(session, queue.sent[0][1])

    assert due(database, queue, after_s=20) == 0
