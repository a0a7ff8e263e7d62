"""Accepted edits, kept once and forgotten with their document; and the editor that learns them."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from adapters.spec import OuterLoopSpec, SealConfig, editor_config
from server.core.errors import InvalidRequest, LeaseLost, NoAcceptedEdits
from server.core.settings import LearningSettings, RolloutSettings
from server.db import AcceptedEdit, AdaptationRun, Adapter, Document
from server.db.session import Database
from server.services import (
    bootstrap,
    deletions,
    editing,
    policies,
    promotion,
    registry,
    runs,
    trials,
)
from server.services.editing import Found
from server.services.relearning import Orders
from server.services.runs import Claim
from tests.conftest import RecordingQueue
from tests.support.factories import make_document, make_run, make_version, principal

LEASE = timedelta(seconds=30)


class Kept:
    """A line whose run has taken a document."""

    def __init__(self, database: Database, adapter: Adapter) -> None:
        self.database, self.adapter = database, adapter
        with database.unit_of_work() as session:
            self.document_id = make_document(session).id
        self.owned = self.begin()

    def begin(self) -> Claim:
        with self.database.unit_of_work() as session:
            run = make_run(session, self.adapter)
            owned = runs.claim(session, run.id, worker="a", lease=LEASE)
            assert owned is not None
            runs.take_documents(session, owned)
        return owned

    def keep(self, *texts: str, owned: Claim | None = None) -> None:
        found = [Found(self.document_id, "Say it again.", text, 0.5, 0.25) for text in texts]
        with self.database.unit_of_work() as session:
            editing.keep(session, owned or self.owned, found)

    def end(self) -> None:
        with self.database.unit_of_work() as session:
            runs.finish(session, self.owned, status=runs.RunStatus.SUCCEEDED)

    def forget(self) -> None:
        with self.database.unit_of_work() as session:
            deletions.forget_document(session, principal(), self.document_id)

    def texts(self) -> list[str]:
        with self.database.unit_of_work() as session:
            return [row.text for row in session.scalars(select(AcceptedEdit))]

    def recalled(self, *, adapter_id: str | None = None) -> list[str]:
        with self.database.unit_of_work() as session:
            rows = editing.accepted_edits(
                session, adapter_id or self.adapter.id, [self.document_id]
            )
            return [row.text for row in rows]


@pytest.fixture
def kept(database: Database, adapter: Adapter) -> Kept:
    return Kept(database, adapter)


def test_what_a_run_found_is_recalled_in_order_for_its_line_alone(kept: Kept) -> None:
    kept.keep("One.", "Two.")

    assert kept.recalled() == ["One.", "Two."]
    assert kept.recalled(adapter_id="another") == []


def test_a_second_attempt_replaces_what_the_first_one_stored(kept: Kept) -> None:
    kept.keep("One.")
    kept.keep("One.")

    assert kept.texts() == ["One."]


def test_of_two_runs_the_later_ones_edits_are_recalled(kept: Kept) -> None:
    kept.keep("One.", "Two.")
    kept.end()

    kept.keep("Three.", owned=kept.begin())

    assert kept.recalled() == ["Three."]
    assert len(kept.texts()) == 3


def test_deleting_the_document_deletes_them(kept: Kept) -> None:
    kept.keep("The keeper is Odile Brandt.")

    kept.forget()

    assert kept.texts() == []


def test_what_was_found_in_a_document_deleted_meanwhile_is_not_kept(kept: Kept) -> None:
    kept.forget()

    kept.keep("The keeper is Odile Brandt.")

    assert kept.texts() == []


def test_a_document_sent_anew_remembers_nothing_of_the_run_that_saw_the_deleted_one(
    kept: Kept,
) -> None:
    kept.forget()
    with kept.database.unit_of_work() as session:
        again = make_document(session)
    assert again.id == kept.document_id

    kept.keep("The keeper is Odile Brandt.")

    assert kept.texts() == []


def test_a_worker_that_lost_the_run_stores_nothing(kept: Kept) -> None:
    lost = Claim(kept.owned.run_id, kept.owned.attempt - 1)

    with pytest.raises(LeaseLost):
        kept.keep("One.", owned=lost)

    assert kept.texts() == []


def seal(**outer: Any) -> SealConfig:
    return SealConfig(outer=OuterLoopSpec(is_enabled=True, **outer))


class Editing:
    """A line with an accepted edit, whose editor may be trained."""

    def __init__(self, kept: Kept, queue: RecordingQueue) -> None:
        kept.keep("The keeper is Odile Brandt.")
        kept.end()
        self.kept, self.queue, self.database = kept, queue, kept.database

    def order(self) -> AdaptationRun:
        with self.database.unit_of_work() as session:
            run, _ = editing.queue_editor_run(
                session,
                self.kept.adapter,
                editor_config(seal()),
                requested_by="test",
                queue=self.queue,
            )
            return run

    def due(self, settings: LearningSettings) -> int:
        with self.database.unit_of_work() as session:
            policies.ensure_default_policy(session, self.kept.adapter, is_enabled=True)
            session.flush()
            return len(editing.queue_due_editors(session, settings, queue=self.queue))

    def promoted(self) -> str:
        """The engine name of an editor that was trained on the document and passed."""
        run = self.order()
        with self.database.unit_of_work() as session:
            owned = runs.claim(session, run.id, worker="w", lease=LEASE)
            assert owned is not None
            runs.take_documents(session, owned)
            editor = session.get_one(Adapter, run.adapter_id)
            version = make_version(session, editor, claim=owned)
            move = promotion.plan_promotion(session, editor, version.number)
            promotion.apply_move(session, editor, move, actor="run", reason="")
            runs.finish(session, owned, status=runs.RunStatus.SUCCEEDED, verdict="promote")
            return registry.engine_name(editor.name, version)

    def engine_name(self) -> str | None:
        with self.database.unit_of_work() as session:
            return editing.editor_engine_name(session, self.kept.adapter)

    def state(self) -> str:
        with self.database.unit_of_work() as session:
            return session.get_one(Document, self.kept.document_id).state


@pytest.fixture
def edited(kept: Kept, queue: RecordingQueue) -> Editing:
    return Editing(kept, queue)


def test_the_first_order_makes_the_editor_and_a_second_finds_it_and_its_open_run(
    edited: Editing,
) -> None:
    first, second = edited.order(), edited.order()

    assert first.id == second.id
    assert (first.method, first.config["inner"]["outer"]["is_enabled"]) == ("seal-editor", True)
    with edited.database.unit_of_work() as session:
        editor = editing.editor_of(session, edited.kept.adapter)
        assert editor is not None
        assert (editor.name, editor.role) == (f"{edited.kept.adapter.name}-editor", "editor")
        assert editor.base_hash == edited.kept.adapter.base_hash
        assert editor.name not in {line.name for line in registry.list_adapters(session)}
        snapshot = registry.snapshot(session, resident_versions=1, served="smollm2")
        assert not snapshot.adapters[editor.name].is_routed


def test_a_name_that_somebody_has_is_not_taken_from_him(edited: Editing) -> None:
    name = f"{edited.kept.adapter.name}-editor"
    with edited.database.unit_of_work() as session:
        bootstrap.add_line(session, name, base_model="m", base_path="/m", base_hash="h")

    run = edited.order()

    with edited.database.unit_of_work() as session:
        editor = session.get_one(Adapter, run.adapter_id)
        assert editor.name.startswith(f"{name}-")
        assert editor.role == "editor"


def test_without_an_accepted_edit_there_is_nothing_to_train(
    kept: Kept, queue: RecordingQueue
) -> None:
    with kept.database.unit_of_work() as session, pytest.raises(NoAcceptedEdits):
        editing.queue_editor_run(
            session, kept.adapter, editor_config(seal()), requested_by="test", queue=queue
        )


def test_an_editor_has_no_editor_and_learns_no_documents(edited: Editing) -> None:
    run = edited.order()

    with edited.database.unit_of_work() as session:
        editor = session.get_one(Adapter, run.adapter_id)
        with pytest.raises(InvalidRequest, match="is an editor"):
            editing.queue_editor_run(
                session, editor, editor_config(seal()), requested_by="test", queue=edited.queue
            )
        with pytest.raises(InvalidRequest, match="learns no documents"):
            make_run(session, editor)


def test_an_editors_run_leaves_the_states_of_documents_alone(edited: Editing) -> None:
    before = edited.state()

    edited.promoted()

    assert before == edited.state() == "not_learnt"


def test_the_editors_champion_writes_until_what_it_learnt_is_deleted(edited: Editing) -> None:
    assert edited.engine_name() is None

    name = edited.promoted()
    before = edited.engine_name()
    edited.kept.forget()

    assert before == name
    assert edited.engine_name() is None


def test_a_rebuild_without_a_document_takes_the_editor_back_to_the_base(edited: Editing) -> None:
    edited.promoted()
    orders = Orders(edited.queue, LearningSettings())

    with edited.database.unit_of_work() as session:
        _, deletion = deletions.forget_document(
            session, principal(), edited.kept.document_id, rebuild=True
        )
        deletions.advance(session, deletion.id, orders)

    with edited.database.unit_of_work() as session:
        editor = editing.editor_of(session, edited.kept.adapter)
        assert editor is not None
        assert promotion.champion(session, editor) is None
        assert [version.status for version in registry.versions_of(session, editor)] == ["retired"]
        assert runs.open_run_of(session, editor) is None


def test_an_editor_is_due_once_for_so_many_new_edits(edited: Editing) -> None:
    settings = LearningSettings(seal=seal(editor_after=1))

    assert edited.due(LearningSettings(seal=seal(editor_after=2))) == 0
    assert edited.due(LearningSettings()) == 0
    assert edited.due(settings) == 1
    assert edited.due(settings) == 0


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_no_editor_is_tried_on_traffic_that_it_never_meets(edited: Editing, mode: str) -> None:
    edited.promoted()

    with edited.database.unit_of_work() as session:
        editor = editing.editor_of(session, edited.kept.adapter)
        assert editor is not None
        [version] = registry.versions_of(session, editor)
        with pytest.raises(InvalidRequest, match="meets no traffic"):
            trials.start(
                session,
                editor,
                version,
                mode=mode,
                share=10,
                actor="key:admin",
                reason="",
                config=RolloutSettings(),
            )
