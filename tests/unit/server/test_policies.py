"""The default policy: a run by itself, once, after a pause in the documents."""

from datetime import timedelta

import pytest

from adapters.spec import DistillConfig, SealConfig
from server.core.clock import utc_now
from server.core.queue import INGEST_DOCUMENT, RUN_ADAPTATION
from server.core.settings import LearningSettings
from server.db import AdaptationPolicy, AdaptationRun, Adapter, RunStatus
from server.db.session import Database
from server.services import deletions, documents, evaluations, policies, promotion, runs
from tests.conftest import RecordingQueue
from tests.support.factories import accept_text, make_document, make_run, make_version, principal

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


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, DistillConfig()),
        ({"type": "seal", "seed": 7}, SealConfig(seed=7)),
        ({"seed": 7}, DistillConfig(seed=7)),
    ],
)
def test_a_policy_runs_its_own_method_or_the_settings(
    database: Database,
    adapter: Adapter,
    queue: RecordingQueue,
    own: dict[str, object],
    expected: SealConfig | DistillConfig,
) -> None:
    settings = LearningSettings(quiet_s=0, method="distill")
    with database.unit_of_work() as session:
        make_document(session)
        session.query(AdaptationPolicy).one().config = own

    with database.unit_of_work() as session:
        (run,) = policies.queue_due_runs(
            session, settings, queue=queue, now=utc_now() + timedelta(seconds=1)
        )

        assert run.method == expected.type
        assert run.config == expected.model_dump(mode="json")


# Healing


def serve(database: Database, adapter: Adapter, *, lost: int, won: int = 0) -> str:
    """A champion that learnt a document, and how its exam went; the document's id."""
    with database.unit_of_work() as session:
        line = session.merge(adapter)
        document_id = make_document(session).id
        owned = runs.claim(
            session, make_run(session, line).id, worker="a", lease=timedelta(hours=1)
        )
        assert owned is not None
        runs.take_documents(session, owned)
        version = make_version(session, line, claim=owned)
        results = [
            {
                "item_id": f"{number}",
                "document_id": None,
                "kind": "general" if number < lost + won else "model",
                "prompt": "?",
                "expected": ["yes"],
                "champion_reply": "",
                "champion_is_correct": number < lost or number >= lost + won,
                "challenger_reply": "",
                "challenger_is_correct": lost <= number < lost + won,
            }
            for number in range(lost + won + 5)
        ]
        evaluations.record(
            session,
            run_id=owned.run_id,
            version=version,
            champion=None,
            verdict="promote",
            decision={},
            results=results,
        )
        move = promotion.plan_promotion(session, line, version.number)
        promotion.apply_move(session, line, move, actor="test", reason="")
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")
    return document_id


def healings(
    database: Database, queue: RecordingQueue, settings: LearningSettings = SETTINGS
) -> int:
    now = utc_now() + timedelta(seconds=60)
    with database.unit_of_work() as session:
        started = policies.queue_due_runs(session, settings, queue=queue, now=now)
        return sum(run.method == "heal" for run in started)


@pytest.mark.parametrize(("lost", "won", "expected"), [(3, 0, 1), (2, 0, 0), (4, 2, 0), (5, 2, 1)])
def test_a_champion_that_lost_general_ability_is_healed_once(
    database: Database, adapter: Adapter, queue: RecordingQueue, lost: int, won: int, expected: int
) -> None:
    """The five lost items on documents count for nothing."""
    serve(database, adapter, lost=lost, won=won)

    assert healings(database, queue) == expected
    with database.unit_of_work() as session:
        for run in session.query(AdaptationRun).filter_by(method="heal"):
            runs.request_cancel(session, run.id)
    assert healings(database, queue) == 0


def test_healing_can_be_switched_off(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    serve(database, adapter, lost=9)

    assert healings(database, queue, LearningSettings(heal_after_items=0)) == 0


def test_new_documents_come_before_healing(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    serve(database, adapter, lost=9)
    with database.unit_of_work() as session:
        make_document(session, "Something new.")
        now = utc_now() + timedelta(seconds=60)

        (run,) = policies.queue_due_runs(session, SETTINGS, queue=queue, now=now)

        assert run.method == "seal"


def test_what_is_being_forgotten_is_not_healed(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    document_id = serve(database, adapter, lost=9)
    with database.unit_of_work() as session:
        make_document(session, "Another.")
    with database.unit_of_work() as session:
        deletions.forget_document(session, principal(), document_id)

    assert healings(database, queue) == 0


def test_a_healing_run_takes_what_the_champion_knows_and_no_more(
    database: Database, adapter: Adapter, queue: RecordingQueue
) -> None:
    """Else its version would count as one that has learnt the new document."""
    document_id = serve(database, adapter, lost=9)
    assert healings(database, queue) == 1
    with database.unit_of_work() as session:
        new = make_document(session, "Something new.").id
        run = session.query(AdaptationRun).filter_by(method="heal").one()
        owned = runs.claim(session, run.id, worker="a", lease=timedelta(hours=1))
        assert owned is not None

        assert runs.take_documents(session, owned) == [document_id]
        assert documents.get_document(session, new).state == "ready"
