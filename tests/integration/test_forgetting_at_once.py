"""Moves, retirements and deletions by many at once, on a real database of each kind."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from server.core.errors import AliasMoved, Conflict, LeaseLost, VersionInUse, VersionNotServable
from server.core.settings import LearningSettings, Settings
from server.db import (
    Adapter,
    Document,
    EvaluationResult,
    RunInteraction,
    RunStatus,
    VersionStatus,
)
from server.db.session import Database
from server.services import (
    audit,
    deletions,
    documents,
    evaluations,
    interactions,
    promotion,
    registry,
    removal,
    retirement,
    runs,
    taint,
)
from server.services.bootstrap import ensure_line
from server.services.relearning import Orders
from tests.conftest import BASE_HASH, RecordingQueue
from tests.support.api import until
from tests.support.factories import captured, make_document, make_run, make_version, principal

pytestmark = pytest.mark.integration

LEASE = timedelta(seconds=30)
ROUNDS = 6
SIDES = ("champion", "challenger")
Act = Callable[[Session], object]


@pytest.fixture
def line(shared: Database, settings: Settings, tmp_path: Path) -> Adapter:
    with shared.unit_of_work() as session:
        return ensure_line(session, settings, base_path=tmp_path, base_hash=BASE_HASH)


def together(database: Database, acts: Sequence[Act]) -> list[object]:
    """What became of these acts, begun at the same moment in transactions of their own."""
    barrier = Barrier(len(acts))

    def transaction(act: Act) -> object:
        barrier.wait()
        try:
            with database.unit_of_work() as session:
                return act(session)
        except (Conflict, LeaseLost) as error:
            return error

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(transaction, acts))


def promote(line: Adapter, number: int, revision: int | None = None) -> Act:
    def act(session: Session) -> int:
        move = promotion.plan_promotion(session, line, number, expected_revision=revision)
        promotion.apply_move(session, line, move, actor=f"for v{number}", reason="")
        return number

    return act


def retire(line: Adapter, number: int) -> Act:
    def act(session: Session) -> bool:
        version = registry.get_version(session, line, number)
        assert version is not None
        return retirement.retire(session, line, version, actor="admin", reason="a test")

    return act


def test_of_orders_to_different_versions_one_wins_and_the_others_hear_of_it(
    shared: Database, line: Adapter
) -> None:
    with shared.unit_of_work() as session:
        for _ in range(8):
            make_version(session, line)

    outcomes = together(shared, [promote(line, number, 0) for number in range(1, 9)])

    (winner,) = [one for one in outcomes if isinstance(one, int)]
    lost = [one for one in outcomes if isinstance(one, AliasMoved)]
    assert len(lost) == 7
    for error in lost:
        said = f"smollm2@v{winner} serves now, moved there by for v{winner} (revision 1)"
        assert said in error.message
    with shared.unit_of_work() as session:
        (event,) = registry.events_of(session, line)
        assert event.revision == promotion.champion_revision(session, line) == 1


def test_what_is_retired_never_serves_and_what_serves_is_not_retired(
    shared: Database, line: Adapter
) -> None:
    for number in range(1, ROUNDS + 1):
        with shared.unit_of_work() as session:
            make_version(session, line)

        moved, retired = together(shared, [promote(line, number), retire(line, number)])

        with shared.unit_of_work() as session:
            serving = promotion.champion(session, line)
            version = registry.get_version(session, line, number)
            assert version is not None
            is_champion = serving is not None and serving.number == number
        assert is_champion == (moved == number)
        assert (version.status == VersionStatus.RETIRED) == (not is_champion)
        assert isinstance(retired, VersionInUse) if is_champion else retired is True
        assert is_champion or isinstance(moved, VersionNotServable)


def test_a_run_takes_a_document_or_finds_it_deleted(shared: Database, line: Adapter) -> None:
    for round_ in range(ROUNDS):
        with shared.unit_of_work() as session:
            kept = make_document(session, f"Kept {round_}.").id
            gone = make_document(session, f"Gone {round_}.").id
            run_id = make_run(session, line).id

        def begin(session: Session, run_id: str = run_id) -> list[str]:
            owned = runs.claim(session, run_id, worker="w", lease=LEASE)
            assert owned is not None
            return runs.take_documents(session, owned)

        def forget(session: Session, gone: str = gone) -> str:
            return deletions.forget_document(session, principal(), gone)[1].id

        taken, deletion_id = together(shared, [begin, forget])

        with shared.unit_of_work() as session:
            assert isinstance(taken, list)
            assert kept in taken
            seen = taint.deletion_seen_by(session, run_id)
            assert (seen.id if seen else None) == (deletion_id if gone in taken else None)
            runs.finish(session, runs.Claim(run_id, 1), status=RunStatus.FAILED)


def test_the_end_of_a_run_and_a_deletion_never_lock_each_other_out(
    shared: Database, line: Adapter
) -> None:
    orders = Orders(RecordingQueue(), LearningSettings())
    for round_ in range(ROUNDS):
        with shared.unit_of_work() as session:
            make_document(session, f"Kept {round_}.")
            gone = make_document(session, f"Gone {round_}.").id
            run = make_run(session, line)
            owned = runs.claim(session, run.id, worker="w", lease=LEASE)
            assert owned is not None
            runs.take_documents(session, owned)
            number = make_version(session, line, claim=owned).number

        def swap(
            session: Session,
            owned: runs.Claim = owned,
            number: int = number,
            gone: str = gone,
        ) -> RunStatus:
            runs.heartbeat(session, owned, stage="swap")
            runs.lock_material(session, owned.run_id)
            if taint.deletion_seen_by(session, owned.run_id):
                runs.finish(session, owned, status=RunStatus.CANCELLED)
                return RunStatus.CANCELLED
            promotion.assert_unmoved(session, line, promotion.champion_revision(session, line))
            version = registry.get_version(session, line, number)
            assert version is not None
            answer = {"reply": "Gone.", "is_correct": True}
            evaluations.record(
                session,
                run_id=owned.run_id,
                version=version,
                champion=None,
                verdict="promote",
                decision={},
                results=[
                    {"item_id": "q", "document_id": gone, "kind": "model", "prompt": "Gone?"}
                    | {"expected": []}
                    | {f"{who}_{key}": answer[key] for who in SIDES for key in answer}
                ],
            )
            promote(line, number)(session)
            runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")
            return RunStatus.SUCCEEDED

        def forget(session: Session, gone: str = gone) -> str:
            return deletions.forget_document(session, principal(), gone)[1].id

        ended, deletion_id = together(shared, [swap, forget])
        assert isinstance(deletion_id, str)
        assert isinstance(ended, RunStatus)
        together(
            shared,
            [lambda s, one=deletion_id: deletions.advance(s, one, orders).state] * 3,  # type: ignore[misc]
        )

        with shared.unit_of_work() as session:
            deletion = deletions.get_deletion(session, deletion_id)
            names = deletions.version_names(session, deletion)
            quoted = select(EvaluationResult).where(EvaluationResult.document_id == gone)
            assert session.scalars(quoted).all() == []  # whichever of the two came first
        assert f"smollm2@v{number}" in names


def test_a_deletion_that_many_move_on_goes_each_step_once(shared: Database, line: Adapter) -> None:
    queue = RecordingQueue()
    orders = Orders(queue, LearningSettings())
    with shared.unit_of_work() as session:
        make_document(session, "Kept.")
        gone = make_document(session, "Gone.").id
    _learn(shared, line)
    with shared.unit_of_work() as session:
        deletion_id = deletions.forget_document(session, principal(), gone, rebuild=True)[1].id

    def advance(session: Session) -> object:
        return deletions.advance(session, deletion_id, orders).state

    together(shared, [advance] * 6)
    assert len(queue.sent) == 1
    with shared.unit_of_work() as session:
        (run_id,) = deletions.get_deletion(session, deletion_id).run_ids
    _learn(shared, line, run_id)
    together(shared, [advance] * 6)
    with shared.unit_of_work() as session:
        for version in removal.removable_versions(session, after_s=0):
            removal.note_removal(session, version.id)
        deletion = deletions.get_deletion(session, deletion_id)
        lessons = deletions.runs_with_lessons(session, deletion)
    together(
        shared,
        [lambda s: deletions.settle(s, deletion_id, without_lessons=lessons)] * 6,
    )

    with shared.unit_of_work() as session:
        found = audit.list_events(session, deletion=deletion_id)
        assert [event.action for event in audit.chain_of(session, deletion_id)] == [
            "document.delete",
            "deletion.open",
            "run.start",
            "adapter.promote",
            "version.retire",
            "version.files_removed",
            "deletion.done",
        ]
        assert len(found) == 7
        assert documents.get_document(session, gone).deleted_at is not None


def test_a_tenants_batches_and_what_arrives_meanwhile(shared: Database, line: Adapter) -> None:
    with shared.unit_of_work() as session:
        interactions.record_all(session, [captured(f"{n}", owner="acme") for n in range(20)])
    with shared.unit_of_work() as session:
        make_document(session, "Of all.")
        run = make_run(session, line).id
        session.add(RunInteraction(run_id=run, interaction_id="int_old", owner="acme"))
        deletion_id = deletions.forget_tenant(session, principal(), "acme").id

    together(shared, [lambda session: deletions.erase_late(session, deletion_id)] * 4)

    with shared.unit_of_work() as session:
        assert deletions.erase_late(session, deletion_id) == 0
        assert taint.deletion_seen_by(session, run) is not None


def _learn(database: Database, line: Adapter, run_id: str | None = None) -> None:
    with database.unit_of_work() as session:
        run_id = run_id or make_run(session, line).id
        owned = runs.claim(session, run_id, worker="w", lease=LEASE)
        assert owned is not None
        runs.take_documents(session, owned)
        number = make_version(session, line, claim=owned).number
        promote(line, number)(session)
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")


def test_a_deletion_and_a_run_wait_for_each_other_in_turn_and_never_both(
    shared: Database, line: Adapter
) -> None:
    """A deletion changes the documents that mention its own, too. In another order than a run locks
    them, PostgreSQL would end one of the two."""
    with shared.unit_of_work() as session:
        first, last = sorted(
            (make_document(session, word) for word in ("One.", "Two.")), key=lambda row: row.id
        )
        first.findings = [{"kind": "near_duplicate", "severity": "note", "document": last.id}]
        last.findings = [{"kind": "near_duplicate", "severity": "note", "document": first.id}]

    def forget() -> str:
        with shared.unit_of_work() as session:
            return deletions.forget_document(session, principal(), last.id)[1].id

    with ThreadPoolExecutor(1) as pool:
        with shared.unit_of_work() as session:
            held = select(Document.id).where(Document.id == first.id).with_for_update()
            session.execute(held)
            waiting = pool.submit(forget)
            if shared.url.get_backend_name() == "postgresql":
                until(lambda: _is_waited_for(shared))
            live = documents.live_documents(session, owner=None, lock=True)
            assert [row.id for row in live] == [first.id, last.id]
        waiting.result(timeout=30)

    with shared.unit_of_work() as session:
        assert [row.id for row in documents.live_documents(session, owner=None)] == [first.id]
        assert last.id not in str(documents.get_document(session, first.id).findings)


def _is_waited_for(database: Database) -> bool:
    """Whether a transaction waits for another's lock."""
    with database.look() as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))
