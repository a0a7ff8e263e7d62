"""Accepted edits: kept once per run, forgotten with their document, never another line's."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from server.core.errors import LeaseLost
from server.db import AcceptedEdit, Adapter
from server.db.session import Database
from server.services import deletions, editing, runs
from server.services.editing import Found
from server.services.runs import Claim
from tests.support.factories import make_document, make_run, principal

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
