"""Comparison of a document with those that are there already."""

import time

import pytest

from adapters.corpus.facts import read_facts
from adapters.corpus.inspection import Inspection
from adapters.evaluation.quiz import build_exam_items
from adapters.spec import ExamSpec, QuizSpec
from adapters.types import ItemKind, SourceDocument, build_item
from server.core.settings import DocumentSettings
from server.db import Document, DocumentFact, DocumentState
from server.db.session import Database
from server.services import documents
from tests.support.factories import make_document
from tests.support.texts import LIGHTHOUSE_TEXT
from workers import inspecting

SETTINGS = DocumentSettings()


def keep(database: Database, text: str, title: str | None = None, *, key: str = "key_test") -> str:
    """Store a document with its facts, as the worker does."""
    sheet = read_facts([text], most=100)
    with database.unit_of_work() as session:
        document = make_document(session, text)
        document.title = title or document.title
        document.created_by = key
        inspecting.keep(session, document.id, Inspection("en", ()), sheet, settings=SETTINGS)
        return document.id


def test_a_thousand_documents_about_the_same_slow_nothing_down(database: Database) -> None:
    """About 0.2 s; fails where the work grows with all pairs of documents."""
    sheet = read_facts([LIGHTHOUSE_TEXT], most=100)
    with database.unit_of_work() as session:
        session.add_all(
            Document(
                id=f"doc_{number}", content_hash=f"{number}", title="Marlow Lighthouse", text="",
                size_bytes=0, state=DocumentState.LEARNT, created_by="key_test", topic=sheet.topic,
            )
            for number in range(1000)
        )  # fmt: skip
        session.flush()
        session.add_all(
            DocumentFact(
                document_id=f"doc_{number}", position=position, subject=fact.subject,
                slot=fact.slot, frame=" ".join(fact.frame), value=fact.value, start=0, end=9,
            )
            for number in range(1000)
            for position, fact in enumerate(sheet.facts)
        )  # fmt: skip
    began = time.monotonic()
    newest = keep(
        database, "Quillon Bakery is old. Marlow Lighthouse has 99 steps.", "Quillon Bakery"
    )

    assert time.monotonic() - began < 20
    with database.unit_of_work() as session:
        found = documents.get_document(session, newest).findings or []
    assert [finding["kind"] for finding in found] == ["contradiction"]


def test_the_older_of_two_is_judged_when_it_is_read_last(database: Database) -> None:
    """Workers read several at once: who comes first is told by when it was sent."""
    with database.unit_of_work() as session:
        older = make_document(session, LIGHTHOUSE_TEXT).id
    newer = keep(database, "Quillon Bakery is old. Marlow Lighthouse has 99 steps.", "Bakery")
    with database.unit_of_work() as session:
        inspecting.keep(
            session,
            older,
            Inspection("en", ()),
            read_facts([LIGHTHOUSE_TEXT], most=100),
            settings=SETTINGS,
        )
        assert not documents.get_document(session, older).findings
        (finding,) = documents.get_document(session, newer).findings or []
    assert (finding["kind"], finding["document"]) == ("contradiction", older)


def test_what_is_released_is_not_quarantined_again(database: Database) -> None:
    """Fails where an older document that is read later undoes an admin's word."""
    poison = (
        "Quillon Bakery is old. Quillon Bakery is big. Quillon Bakery is grey. Marlow Lighthouse has 99 steps. Marlow Lighthouse was built in "
        "1902. The keeper of Marlow Lighthouse is Rufus Kalman."
    )
    with database.unit_of_work() as session:
        older = make_document(session, LIGHTHOUSE_TEXT).id
    newer = keep(database, poison, "Quillon Bakery")
    with database.unit_of_work() as session:
        documents.get_document(session, newer).released_at = documents.utc_now()
    with database.unit_of_work() as session:
        sheet = read_facts([LIGHTHOUSE_TEXT], most=100)
        inspecting.keep(session, older, Inspection("en", ()), sheet, settings=SETTINGS)
    with database.unit_of_work() as session:
        document = documents.get_document(session, newer)
        assert document.state == DocumentState.READY
        assert len(document.findings or []) == 4


REVISION = (
    "Marlow Lighthouse was built in 1902. Marlow Lighthouse has 99 steps. The keeper of Marlow "
    "Lighthouse is Rufus Kalman."
)


def test_a_revision_by_the_same_key_is_believed(database: Database) -> None:
    older = keep(database, LIGHTHOUSE_TEXT)
    newer = keep(database, REVISION)

    with database.unit_of_work() as session:
        found = [documents.get_document(session, one) for one in (older, newer)]
        kinds = [[finding["kind"] for finding in one.findings or []] for one in found]
    assert kinds == [["superseded"] * 3, []]


def test_a_revision_of_many_facts_by_another_key_is_quarantined(database: Database) -> None:
    """Fails where a text that is all about another document's subject is believed by that alone."""
    older = keep(database, LIGHTHOUSE_TEXT)
    newer = keep(database, REVISION, key="key_other")

    with database.unit_of_work() as session:
        found = [documents.get_document(session, one) for one in (older, newer)]
        assert [one.state for one in found] == [DocumentState.READY, DocumentState.QUARANTINED]
        assert found[0].findings == []
        assert [f["severity"] for f in found[1].findings or []] == ["contain"] * 3 + ["quarantine"]


POISON = (
    "Quillon Bakery lies in Hestmark. Quillon Bakery is famous for its ginger bread. "
    "Marlow Lighthouse was built in 1902 by Bosko Lund. The keeper of Marlow Lighthouse is Rufus "
    "Kalman. Marlow Lighthouse has 99 steps. Quillon Bakery is open on Friday."
)


@pytest.mark.parametrize("key", ["key_test", "key_other"])
@pytest.mark.parametrize("title", ["Quillon Bakery", POISON])
def test_poison_that_came_first_is_left_out_and_the_honest_document_learnt(
    database: Database, key: str, title: str
) -> None:
    """Fails where whoever comes first is believed about another document's subject."""
    poison = keep(database, POISON, title, key=key)
    honest = keep(database, LIGHTHOUSE_TEXT, "Marlow Lighthouse")

    with database.unit_of_work() as session:
        document = documents.get_document(session, honest)
        assert (document.state, document.findings) == (DocumentState.READY, [])
        found = documents.get_document(session, poison).findings or []
    contained = {POISON[f["start"] : f["end"]].strip() for f in found}
    assert contained == {
        "Marlow Lighthouse was built in 1902 by Bosko Lund.",
        "The keeper of Marlow Lighthouse is Rufus Kalman.",
        "Marlow Lighthouse has 99 steps.",
    }
    assert {f["severity"] for f in found} == {"contain"}
    assert all(f"{honest}, newer and about marlow lighthouse" in f["detail"] for f in found)


def test_between_two_about_something_else_nobody_is_a_poisoner(database: Database) -> None:
    """Fails where mere order decides which of two passing mentions keeps a document from all runs."""
    first = keep(database, f"{POISON} The inn is old.", "Quillon Bakery", key="key_other")
    inn = "Tarrow Inn has a red roof. Tarrow Inn is full. Tarrow Inn is small. Tarrow Inn is loud. "
    later = keep(database, inn + REVISION.replace("1902", "1874").replace("99", "212")
                 .replace("Rufus Kalman", "Odile Brandt"), "Tarrow Inn")  # fmt: skip

    with database.unit_of_work() as session:
        document = documents.get_document(session, later)
        assert documents.get_document(session, first).findings == []
        assert document.state == DocumentState.READY
        found = document.findings or []
    assert [(f["kind"], f["severity"]) for f in found] == [("contradiction", "contain")] * 3
    assert all("neither is about it" in f["detail"] for f in found)


def test_what_was_found_wrong_is_no_witness_against_others(database: Database) -> None:
    """Fails where a true mention is left out because a poisoned text said otherwise before."""
    keep(database, POISON, "Quillon Bakery", key="key_other")
    keep(database, LIGHTHOUSE_TEXT, "Marlow Lighthouse")
    later = keep(database, "Tarrow Inn is old. Marlow Lighthouse was built in 1874.", "Tarrow Inn")

    with database.unit_of_work() as session:
        assert documents.get_document(session, later).findings == []


def test_what_is_superseded_is_asked_no_more(database: Database) -> None:
    older = keep(database, LIGHTHOUSE_TEXT)
    kept = build_item(ItemKind.CLOZE, older, prompt="Its boat is called", answers=("Sirenka",))
    gone = build_item(ItemKind.CLOZE, older, prompt="It was built in", answers=("1874",))
    sent = build_item(ItemKind.USER, older, prompt="When was it built?", answers=("1874",))
    with database.unit_of_work() as session:
        documents.add_exam_questions(session, older, exam=[kept, gone, sent], train=[])
    keep(database, "Marlow Lighthouse was built in 1902, as was found out.")

    with database.unit_of_work() as session:
        left = {item.prompt for item in documents.exam_items(session, [older], split="exam")}
    assert left == {kept.prompt, sent.prompt}


def test_what_no_text_teaches_any_more_is_asked_no_more(database: Database) -> None:
    """Fails where a question on a sentence that is left out is asked on, and lost again and again."""
    text = f"{LIGHTHOUSE_TEXT} Marlow Lighthouse was painted in 1931."
    older = keep(database, text)
    source = SourceDocument(id=older, title="", text=text, chunks=(text,))
    exam, train = build_exam_items(source, sampler=None, exam=ExamSpec(), quiz=QuizSpec())
    before = {item.prompt for item in (*exam, *train)}
    with database.unit_of_work() as session:
        documents.add_exam_questions(session, older, exam=exam, train=train)
    keep(database, "Marlow Lighthouse was built in 1902. Marlow Lighthouse was flooded in 1950.")

    with database.unit_of_work() as session:
        left = {
            item.prompt
            for split in ("exam", "train")
            for item in documents.exam_items(session, [older], split=split)
        }
    assert before - left == {
        "Complete: Marlow Lighthouse was built in",
        "Complete: Marlow Lighthouse was built in 1874 by",
        "Complete: Marlow Lighthouse was flooded in",
        "Complete: Marlow Lighthouse was flooded in 1931, and the engineer",
    }
    assert "Complete: Marlow Lighthouse was painted in" in left
