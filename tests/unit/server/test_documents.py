"""Documents: the same text is the same document; what is no text is refused."""

import pytest

from adapters.types import Grader, ItemKind, build_item
from server.core.errors import DocumentEmpty, DocumentNotText
from server.core.queue import INGEST_DOCUMENT
from server.db import DocumentState
from server.db.session import Database
from server.services import documents, ingestion
from server.services.documents import SentQuestion
from tests.conftest import RecordingQueue
from tests.support.factories import accept_text, make_document


def accept(
    database: Database, queue: RecordingQueue, text: str, **fields: object
) -> tuple[str, bool]:
    with database.unit_of_work() as session:
        document, is_new = accept_text(session, text, created_by="key_test", queue=queue, **fields)
        return document.id, is_new


def test_the_same_text_is_the_same_document(database: Database, queue: RecordingQueue) -> None:
    first, is_first_new = accept(database, queue, "A text.\r\nTwo lines.")
    second, is_second_new = accept(database, queue, "A text.\nTwo lines.", title="Other title")

    assert first == second
    assert (is_first_new, is_second_new) == (True, False)
    assert queue.sent == [(INGEST_DOCUMENT, first)]


@pytest.mark.parametrize("text", ["", " \n\t ", "\ufeff"])
def test_an_empty_document_is_refused(database: Database, queue: RecordingQueue, text: str) -> None:
    with pytest.raises(DocumentEmpty):
        accept(database, queue, text)
    assert queue.sent == []


def test_a_binary_document_is_refused(database: Database, queue: RecordingQueue) -> None:
    with pytest.raises(DocumentNotText, match="control characters"):
        accept(database, queue, "PK\x03\x04\x00")


def test_a_long_first_line_is_cut_for_the_title(database: Database, queue: RecordingQueue) -> None:
    document_id, _ = accept(database, queue, "word " * 100)

    with database.unit_of_work() as session:
        title = documents.get_document(session, document_id).title
    assert len(title) <= 80
    assert title.endswith("word…")


def test_title_defaults_to_the_first_line(database: Database, queue: RecordingQueue) -> None:
    document_id, _ = accept(database, queue, "\n# The Marlow light\n\nIt is old.")

    with database.unit_of_work() as session:
        assert documents.get_document(session, document_id).title == "The Marlow light"


def test_questions_sent_later_are_added_once(database: Database, queue: RecordingQueue) -> None:
    question = SentQuestion("Who keeps it?", ("Odile",), Grader.NUMERIC)
    document_id, _ = accept(database, queue, "Odile keeps it.")
    for _ in range(2):
        accept(database, queue, "Odile keeps it.", questions=[question])

    with database.unit_of_work() as session:
        [item] = documents.exam_items(session, [document_id], split="exam")
    assert SentQuestion(item.prompt, item.answers, item.grader) == question


def test_a_question_keeps_the_split_it_was_given(database: Database) -> None:
    with database.unit_of_work() as session:
        document = make_document(session)
        item = build_item(ItemKind.CLOZE, document.id, prompt="The keeper is", answers=("Odile",))
        documents.add_exam_questions(session, document.id, exam=[item], train=[])
        documents.add_exam_questions(session, document.id, exam=[], train=[item])

        assert documents.exam_items(session, [document.id], split="exam") == [item]
        assert documents.exam_items(session, [document.id], split="train") == []


def test_chunking_twice_changes_nothing(database: Database) -> None:
    with database.unit_of_work() as session:
        document = make_document(session, "One piece.")
        ingestion.store_chunks(session, document.id, ["other", "pieces"])
        session.flush()

        assert documents.chunks_of(session, document.id) == ["One piece."]
        assert document.state == DocumentState.READY
