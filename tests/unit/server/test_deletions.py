"""Forgetting: what was deleted is learnt by nobody, and what had learnt it leaves, step by step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.types import ItemKind, build_item
from server.core.clock import new_id, utc_now
from server.core.errors import ForeignTenant, RowNotFound
from server.core.settings import LearningSettings, Settings
from server.db import (
    Adapter,
    AdapterVersion,
    Alias,
    Deletion,
    Document,
    ExamQuestion,
    Feedback,
    Interaction,
    Message,
    RunInteraction,
    RunStatus,
    Trial,
    VersionStatus,
)
from server.db.session import Database
from server.services import (
    audit,
    bootstrap,
    deletions,
    documents,
    interactions,
    policies,
    promotion,
    registry,
    removal,
    runs,
    taint,
)
from server.services.relearning import Orders
from tests.conftest import RecordingQueue
from tests.support.factories import captured, make_document, make_run, make_version, principal

LEASE = timedelta(seconds=30)
OPERATOR = principal()


@dataclass
class Memory:
    """A line that learns and forgets, with a worker that never trains anything."""

    database: Database
    line: Adapter
    queue: RecordingQueue
    orders: Orders = field(init=False)

    def __post_init__(self) -> None:
        self.orders = Orders(self.queue, LearningSettings())

    def document(self, text: str, owner: str | None = None) -> str:
        with self.database.unit_of_work() as session:
            return make_document(session, text, owner=owner).id

    def begin(self) -> runs.Claim:
        """A run that is at work, with all live documents taken."""
        with self.database.unit_of_work() as session:
            run = make_run(session, self.line)
        return self.claim(run.id)

    def claim(self, run_id: str) -> runs.Claim:
        with self.database.unit_of_work() as session:
            owned = runs.claim(session, run_id, worker="w", lease=LEASE)
            assert owned is not None
            runs.take_documents(session, owned)
            return owned

    def end(self, owned: runs.Claim, verdict: str = "promote") -> int:
        """The number of the version that the run makes; champion if that is the verdict."""
        with self.database.unit_of_work() as session:
            version = make_version(session, self.line, status=VersionStatus.CANDIDATE, claim=owned)
            if verdict == "promote":
                registry.set_status(session, version, VersionStatus.SERVABLE)
                move = promotion.plan_promotion(session, self.line, version.number)
                promotion.apply_move(session, self.line, move, actor="run", reason="")
            runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict=verdict)
            return version.number

    def learn(self, verdict: str = "promote") -> int:
        return self.end(self.begin(), verdict)

    def forget(self, document_id: str, *, rebuild: bool = False) -> str:
        with self.database.unit_of_work() as session:
            deletion_id = deletions.forget_document(
                session, OPERATOR, document_id, rebuild=rebuild
            )[1].id
        self.advance(deletion_id)
        return deletion_id

    def advance(self, deletion_id: str) -> None:
        with self.database.unit_of_work() as session:
            deletions.advance(session, deletion_id, self.orders)

    def deletion(self, deletion_id: str) -> Deletion:
        with self.database.unit_of_work() as session:
            return deletions.get_deletion(session, deletion_id)

    def status(self, *numbers: int) -> list[str]:
        with self.database.unit_of_work() as session:
            return [self._version(session, number).status for number in numbers]

    def champion(self) -> int | None:
        with self.database.unit_of_work() as session:
            serving = promotion.champion(session, self.line)
            return serving.number if serving else None

    def chain(self, deletion_id: str) -> list[str]:
        with self.database.unit_of_work() as session:
            return [event.action for event in audit.chain_of(session, deletion_id)]

    def settle(self, deletion_id: str, *, now_in_s: float = 0) -> str:
        """What the worker does once files are gone."""
        with self.database.unit_of_work() as session:
            deletion = deletions.get_deletion(session, deletion_id)
            for version in removal.removable_versions(session, after_s=0):
                removal.note_removal(session, version.id)
            deletions.settle(
                session,
                deletion_id,
                without_lessons=deletions.runs_with_lessons(session, deletion),
                now=utc_now() + timedelta(seconds=now_in_s),
            )
        return self.deletion(deletion_id).state

    def _version(self, session: Session, number: int) -> AdapterVersion:
        version = registry.get_version(session, self.line, number)
        assert version is not None
        return version


@pytest.fixture
def memory(database: Database, adapter: Adapter, queue: RecordingQueue) -> Memory:
    return Memory(database, adapter, queue)


def test_what_nobody_learnt_is_forgotten_at_once(memory: Memory) -> None:
    deletion_id = memory.forget(memory.document("Odile keeps the lamp."))

    done = memory.deletion(deletion_id)
    assert (done.state, done.version_ids, done.run_ids) == ("done", [], [])
    assert done.finished_at is not None
    assert memory.chain(deletion_id) == ["document.delete", "deletion.open", "deletion.done"]


def test_without_a_rebuild_it_names_who_saw_it_and_waits(memory: Memory) -> None:
    kept, gone = memory.document("Kept."), memory.document("Gone.")
    memory.learn()
    memory.learn(verdict="reject")

    deletion_id = memory.forget(gone)
    memory.advance(deletion_id)

    assert memory.settle(deletion_id) == "open"
    assert memory.status(1, 2) == ["servable", "rejected"]
    assert memory.champion() == 1
    assert memory.queue.sent == []
    with memory.database.unit_of_work() as session:
        deletion = deletions.get_deletion(session, deletion_id)
        assert deletions.version_names(session, deletion) == ["smollm2@v1", "smollm2@v2"]
        assert [row.id for row in documents.live_documents(session, owner=None)] == [kept]


def test_a_rebuild_replaces_retires_and_is_done_with_the_whole_chain(memory: Memory) -> None:
    memory.document("Kept.")
    gone = memory.document("Gone.")
    memory.learn()
    memory.learn(verdict="reject")

    deletion_id = memory.forget(gone, rebuild=True)

    waiting = memory.deletion(deletion_id)
    assert (waiting.state, len(waiting.run_ids)) == ("rebuilding", 1)
    assert memory.queue.sent == [("adaptation.run", waiting.run_ids[0])]
    assert memory.status(1, 2) == ["servable", "rejected"]  # nothing goes before the new one serves
    memory.advance(deletion_id)
    assert memory.champion() == 1

    owned = memory.claim(waiting.run_ids[0])
    with memory.database.unit_of_work() as session:
        assert gone not in runs.documents_of(session, owned.run_id)
    assert memory.end(owned) == 3
    memory.advance(deletion_id)

    assert memory.champion() == 3
    assert memory.status(1, 2, 3) == ["retired", "retired", "servable"]
    assert memory.deletion(deletion_id).state == "rebuilding"  # their files are still there
    assert memory.settle(deletion_id) == "done"
    memory.advance(deletion_id)
    assert memory.chain(deletion_id) == [
        "document.delete",
        "deletion.open",
        "run.start",
        "adapter.promote",
        "version.retire",
        "version.retire",
        "version.files_removed",
        "version.files_removed",
        "deletion.done",
    ]


def test_a_rebuild_may_be_ordered_later(memory: Memory) -> None:
    memory.document("Kept.")
    gone = memory.document("Gone.")
    memory.learn()
    deletion_id = memory.forget(gone)

    for _ in range(2):
        with memory.database.unit_of_work() as session:
            deletion = deletions.get_deletion(session, deletion_id)
            deletions.order_rebuild(session, OPERATOR, deletion)
        memory.advance(deletion_id)

    assert len(memory.queue.sent) == 1
    memory.end(memory.claim(memory.deletion(deletion_id).run_ids[0]))
    memory.advance(deletion_id)
    assert memory.status(1, 2) == ["retired", "servable"]


def test_a_rejected_rebuild_leaves_the_champion_and_says_so(memory: Memory) -> None:
    memory.document("Kept.")
    gone = memory.document("Gone.")
    memory.learn()
    deletion_id = memory.forget(gone, rebuild=True)

    memory.end(memory.claim(memory.deletion(deletion_id).run_ids[0]), verdict="reject")
    memory.advance(deletion_id)
    memory.advance(deletion_id)

    stuck = memory.deletion(deletion_id)
    assert (stuck.state, memory.champion()) == ("open", 1)
    assert "verdict reject" in stuck.reason
    assert memory.status(1, 2) == ["servable", "rejected"]
    assert memory.chain(deletion_id).count("deletion.stuck") == 1
    assert len(memory.queue.sent) == 1


@pytest.mark.parametrize("way_out", ["base", "force"])
def test_an_admin_gets_a_stuck_rebuild_going(memory: Memory, way_out: str) -> None:
    memory.document("Kept.")
    gone = memory.document("Gone.")
    memory.learn()
    deletion_id = memory.forget(gone, rebuild=True)
    memory.end(memory.claim(memory.deletion(deletion_id).run_ids[0]), verdict="reject")
    memory.advance(deletion_id)

    with memory.database.unit_of_work() as session:
        move = (
            promotion.plan_rollback(session, memory.line, "base")
            if way_out == "base"
            else promotion.plan_promotion(session, memory.line, 2, force=True)
        )
        promotion.apply_move(
            session, memory.line, move, actor="admin", reason="", is_forced=way_out == "force"
        )
    memory.advance(deletion_id)

    assert memory.status(1) == ["retired"]
    assert memory.settle(deletion_id) == "done"


def test_when_nothing_is_left_to_learn_the_base_serves_again(memory: Memory) -> None:
    gone = memory.document("Gone.")
    memory.learn()

    deletion_id = memory.forget(gone, rebuild=True)

    assert memory.champion() is None
    assert memory.status(1) == ["retired"]
    assert memory.queue.sent == []
    with memory.database.unit_of_work() as session:
        last = registry.events_of(session, memory.line)[0]
    assert last.actor == f"deletion:{deletion_id}"
    assert "Nothing is left to learn" in last.reason
    assert memory.settle(deletion_id) == "done"


def test_what_serves_and_has_not_seen_it_needs_no_run(memory: Memory) -> None:
    gone = memory.document("Gone.")
    memory.learn(verdict="reject")

    deletion_id = memory.forget(gone, rebuild=True)

    assert memory.status(1) == ["retired"]
    assert memory.queue.sent == []
    assert memory.settle(deletion_id) == "done"


def test_a_run_that_has_taken_it_is_stopped_and_makes_no_version(memory: Memory) -> None:
    kept, gone = memory.document("Kept."), memory.document("Gone.")
    owned = memory.begin()
    with memory.database.unit_of_work() as session:
        make_version(session, memory.line, status=VersionStatus.CANDIDATE, claim=owned)

    deletion_id = memory.forget(gone)

    with memory.database.unit_of_work() as session:
        assert runs.heartbeat(session, owned, stage="training")  # the worker hears of the cancel
        assert taint.deletion_seen_by(session, owned.run_id) is not None
    assert memory.deletion(deletion_id).state == "open"
    with memory.database.unit_of_work() as session:
        runs.finish(session, owned, status=RunStatus.CANCELLED)
    with memory.database.unit_of_work() as session:
        ended = runs.get_run(session, owned.run_id)
        assert ended.error is not None
        assert deletion_id in ended.error
    assert memory.status(1) == ["retired"]
    assert memory.settle(deletion_id) == "done"
    with memory.database.unit_of_work() as session:  # its other document still waits to be learnt
        later = utc_now() + timedelta(minutes=1)
        started = policies.queue_due_runs(
            session, LearningSettings(), queue=memory.queue, now=later
        )
    again = memory.claim(started[0].id)
    with memory.database.unit_of_work() as session:
        assert runs.documents_of(session, again.run_id) == [kept]
        assert taint.deletion_seen_by(session, again.run_id) is None


def test_with_a_rebuild_a_stopped_run_is_followed_by_another(memory: Memory) -> None:
    memory.document("Kept.")
    gone = memory.document("Gone.")
    owned = memory.begin()

    deletion_id = memory.forget(gone, rebuild=True)
    assert memory.deletion(deletion_id).run_ids == []
    with memory.database.unit_of_work() as session:
        runs.finish(session, owned, status=RunStatus.CANCELLED)
    memory.advance(deletion_id)
    memory.advance(deletion_id)

    (run_id,) = memory.deletion(deletion_id).run_ids
    assert run_id != owned.run_id
    assert memory.queue.sent == [("adaptation.run", run_id)]


def test_a_queued_run_has_taken_nothing_yet_and_counts_as_the_rebuild(memory: Memory) -> None:
    memory.document("Kept.")
    gone = memory.document("Gone.")
    memory.learn()
    with memory.database.unit_of_work() as session:
        queued = make_run(session, memory.line)

    deletion_id = memory.forget(gone, rebuild=True)

    assert memory.deletion(deletion_id).run_ids == [queued.id]
    memory.end(memory.claim(queued.id))
    memory.advance(deletion_id)
    assert memory.status(1, 2) == ["retired", "servable"]


def test_a_second_deletion_waits_for_no_run_that_has_seen_it(memory: Memory) -> None:
    memory.document("Kept.")
    first, second = memory.document("First."), memory.document("Second.")
    memory.learn()
    one = memory.forget(first, rebuild=True)
    owned = memory.claim(memory.deletion(one).run_ids[0])

    two = memory.forget(second, rebuild=True)
    with memory.database.unit_of_work() as session:
        assert runs.heartbeat(session, owned, stage="training")
        runs.finish(session, owned, status=RunStatus.CANCELLED)
    for deletion_id in (one, two, one, two):
        memory.advance(deletion_id)

    assert memory.deletion(one).run_ids[-1:] == memory.deletion(two).run_ids
    assert len(memory.queue.sent) == 2
    assert memory.deletion(one).state == "rebuilding"
    memory.end(memory.claim(memory.deletion(two).run_ids[0]))
    for deletion_id in (one, two):
        memory.advance(deletion_id)
        assert memory.settle(deletion_id) == "done"
    assert memory.status(1, 2) == ["retired", "servable"]


def test_what_is_sent_anew_after_its_deletion_is_another_document(memory: Memory) -> None:
    text = "Said twice."
    document_id = memory.document(text)
    memory.learn()
    deletion_id = memory.forget(document_id, rebuild=True)
    assert memory.champion() is None

    assert memory.document(text) == document_id
    memory.learn()
    memory.advance(deletion_id)

    assert memory.champion() == 2
    with memory.database.unit_of_work() as session:
        assert not taint.is_tainted(session, promotion.champion(session, memory.line))
    again = memory.forget(document_id)
    assert again != deletion_id
    with memory.database.unit_of_work() as session:
        names = deletions.version_names(session, deletions.get_deletion(session, again))
    assert names == ["smollm2@v1", "smollm2@v2"]


def test_a_version_on_trial_that_saw_it_loses_the_trial(memory: Memory) -> None:
    gone = memory.document("Gone.")
    memory.learn(verdict="reject")
    with memory.database.unit_of_work() as session:
        version = registry.get_version(session, memory.line, 1)
        assert version is not None
        version.status = VersionStatus.SERVABLE
        session.add(
            Alias(
                id=new_id("ali"),
                adapter_id=memory.line.id,
                name="challenger",
                version_id=version.id,
            )
        )
        trial = Trial(
            id=new_id("tri"),
            adapter_id=memory.line.id,
            version_id=version.id,
            mode="canary",
            share=10,
            salt="s",
            started_by="admin",
        )
        session.add(trial)

    deletion_id = memory.forget(gone, rebuild=True)

    with memory.database.unit_of_work() as session:
        ended = session.get_one(Trial, trial.id)
        assert ended.state == "aborted"
        assert ended.outcome is not None
        assert deletion_id in ended.outcome
        assert list(registry.aliases_of(session, memory.line)) == ["champion"]
    assert memory.status(1) == ["retired"]


def test_questions_written_while_it_was_deleted_are_not_kept(memory: Memory) -> None:
    document_id = memory.document("Gone.")
    memory.forget(document_id)
    item = build_item(ItemKind.USER, document_id, prompt="Who?", answers=["Odile"])

    with memory.database.unit_of_work() as session:
        documents.add_exam_questions(session, document_id, exam=[item], train=[])

    with memory.database.unit_of_work() as session:
        assert session.scalars(select(ExamQuestion)).all() == []


def test_an_interaction_leads_to_the_versions_that_saw_it(memory: Memory) -> None:
    memory.document("Kept.")
    record = captured("What of Odile?")
    copy = captured("What of Odile?", shadow_of=record["id"], arm="shadow")
    with memory.database.unit_of_work() as session:
        interactions.record_all(session, [record])
        interactions.record_all(session, [copy])
        session.get_one(Interaction, copy["id"]).shadow_of = record["id"]
    owned = memory.begin()
    with memory.database.unit_of_work() as session:
        session.add(RunInteraction(run_id=owned.run_id, interaction_id=record["id"]))
    memory.end(owned)

    with memory.database.unit_of_work() as session:
        deletion_id = deletions.forget_interaction(session, OPERATOR, record["id"], rebuild=True).id
    memory.advance(deletion_id)

    with memory.database.unit_of_work() as session:
        assert session.scalars(select(Interaction)).all() == []
        assert session.scalars(select(Message)).all() == []
        deletion = deletions.get_deletion(session, deletion_id)
        assert deletions.version_names(session, deletion) == ["smollm2@v1"]
    memory.end(memory.claim(memory.deletion(deletion_id).run_ids[0]))
    memory.advance(deletion_id)
    assert memory.status(1, 2) == ["retired", "servable"]


@pytest.fixture
def acme(memory: Memory, settings: Settings) -> Memory:
    """The same database from the view of a tenant with a line of its own."""
    with memory.database.unit_of_work() as session:
        line = bootstrap.create_line(session, settings, "acme-line", owner="acme")
    return Memory(memory.database, line, memory.queue)


def test_a_tenants_data_goes_bit_by_bit_and_nobody_elses(
    acme: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "DOCUMENTS_AT_ONCE", 2)
    monkeypatch.setattr(deletions, "INTERACTIONS_AT_ONCE", 2)
    for number in range(3):
        acme.document(f"Of acme, {number}.", owner="acme")
    others = acme.document("Of the operator.")
    acme.learn()
    records = [captured(f"Of acme, {n}", owner="acme") for n in range(5)]
    with acme.database.unit_of_work() as session:
        interactions.record_all(session, [*records, captured("Of the operator")])
    with acme.database.unit_of_work() as session:
        deletion_id = deletions.forget_tenant(session, OPERATOR, "acme", rebuild=True).id

    batches = 0
    while True:
        with acme.database.unit_of_work() as session:
            if not deletions.erase_late(session, deletion_id):
                break
        batches += 1
    acme.advance(deletion_id)

    assert batches == 5  # two of documents, three of interactions
    with acme.database.unit_of_work() as session:
        left = session.scalars(select(Interaction)).all()
        assert [row.owner for row in left] == [None]
        assert len(session.scalars(select(Message)).all()) == 1
        live = select(Document.id).where(Document.deleted_at.is_(None))
        assert session.scalars(live).all() == [others]
    assert acme.champion() is None
    assert acme.status(1) == ["retired"]
    assert acme.settle(deletion_id) == "rebuilding"  # a gateway may still have rows to ship
    assert acme.settle(deletion_id, now_in_s=11) == "done"


def test_what_a_gateway_ships_late_is_deleted_too_and_what_is_new_is_kept(acme: Memory) -> None:
    late = captured("Captured before", owner="acme")
    acme.document("Of acme.", owner="acme")
    with acme.database.unit_of_work() as session:
        deletion_id = deletions.forget_tenant(session, OPERATOR, "acme").id
        session.flush()
    new = captured("Asked after", owner="acme")
    with acme.database.unit_of_work() as session:
        interactions.record_all(session, [late, new])

    with acme.database.unit_of_work() as session:
        deletions.erase_late(session, deletion_id)
    with acme.database.unit_of_work() as session:
        deletions.erase_late(session, deletion_id)

    with acme.database.unit_of_work() as session:
        assert session.scalars(select(Interaction.id)).all() == [new["id"]]


def test_feedback_that_waits_for_its_interaction_goes_with_the_tenant(acme: Memory) -> None:
    acme.document("Of acme.", owner="acme")
    with acme.database.unit_of_work() as session:
        for owner in ("acme", None):
            session.add(
                Feedback(
                    id=new_id("fee"),
                    completion_id="chatcmpl-int_" + "0" * 32,
                    owner=owner,
                    key_id="key_1",
                    kind="comment",
                    value={"text": "Odile"},
                    idempotency_hash=str(owner),
                )
            )
    with acme.database.unit_of_work() as session:
        deletion_id = deletions.forget_tenant(session, OPERATOR, "acme").id
    for _ in range(2):
        with acme.database.unit_of_work() as session:
            deletions.erase_late(session, deletion_id)

    with acme.database.unit_of_work() as session:
        assert session.scalars(select(Feedback.owner)).all() == [None]


def test_tenants_forget_only_their_own(acme: Memory) -> None:
    of_acme = acme.document("Of acme.", owner="acme")
    stranger = principal("other")

    def refused(error: type[Exception], act: Callable[[Session], object]) -> None:
        with pytest.raises(error), acme.database.unit_of_work() as session:
            act(session)

    refused(RowNotFound, lambda s: deletions.forget_document(s, stranger, of_acme))
    refused(ForeignTenant, lambda s: deletions.forget_tenant(s, stranger, "acme"))
    refused(RowNotFound, lambda s: deletions.forget_tenant(s, OPERATOR, "nobody"))
    deletion_id = acme.forget(of_acme)
    refused(RowNotFound, lambda s: deletions.get_deletion(s, deletion_id, tenant="other"))
    with acme.database.unit_of_work() as session:
        assert deletions.list_deletions(session, tenant="other").rows == []
        assert [row.id for row in deletions.list_deletions(session, tenant="acme").rows] == [
            deletion_id
        ]


# Versions that were trained on from others


def test_what_a_version_was_trained_on_from_has_seen_it_has_seen(
    memory: Memory, database: Database
) -> None:
    """None of the later runs took the document; fails where only runs are asked."""
    secret = memory.document("The code is 4711.")
    memory.document("The lamp is green.")
    memory.learn()
    with database.unit_of_work() as session:
        line = session.merge(memory.line)
        first = registry.versions_of(session, line)[0]
        second = make_version(session, line, parent=first)
        third = make_version(session, line, parent=second)
        clean = make_version(session, line)
        ids = {first.id, second.id, third.id}
        move = promotion.plan_promotion(session, line, third.number)
        promotion.apply_move(session, line, move, actor="test", reason="")

    deletion_id = memory.forget(secret)

    deletion = memory.deletion(deletion_id)
    assert set(deletion.version_ids) == ids
    with database.unit_of_work() as session:
        tainted = {
            version.id
            for version in registry.versions_of(session, session.merge(memory.line))
            if taint.is_tainted(session, version)
        }
        assert tainted == ids
        assert clean.id not in tainted
        seen_by = {run.id for run in taint.runs_that_saw(session, deletion)}
        assert third.run_id in seen_by
        assert clean.run_id not in seen_by


def test_they_all_leave_when_the_line_is_rebuilt(memory: Memory, database: Database) -> None:
    secret = memory.document("The code is 4711.")
    memory.document("The lamp is green.")
    memory.learn()
    with database.unit_of_work() as session:
        line = session.merge(memory.line)
        second = make_version(session, line, parent=registry.versions_of(session, line)[0])
        move = promotion.plan_promotion(session, line, second.number)
        promotion.apply_move(session, line, move, actor="test", reason="")

    deletion_id = memory.forget(secret, rebuild=True)
    (run_id,) = memory.deletion(deletion_id).run_ids
    memory.end(memory.claim(run_id))
    memory.advance(deletion_id)

    assert memory.status(1, 2, 3) == ["retired", "retired", "servable"]
    assert memory.champion() == 3


def test_a_run_that_heals_is_no_rebuild(memory: Memory, database: Database) -> None:
    """It would build on the version that has to go; the line waits for it and then learns anew."""
    secret = memory.document("The code is 4711.")
    memory.document("The lamp is green.")
    memory.learn()
    with database.unit_of_work() as session:
        healing = make_run(session, session.merge(memory.line))
        healing.method = runs.HEAL
        healing_id = healing.id

    deletion_id = memory.forget(secret, rebuild=True)
    assert memory.deletion(deletion_id).run_ids == []
    with database.unit_of_work() as session:
        runs.request_cancel(session, healing_id)
    memory.advance(deletion_id)

    (run_id,) = memory.deletion(deletion_id).run_ids
    assert run_id != healing_id
