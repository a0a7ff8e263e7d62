"""Documents: accept once, list, forget, and keep the questions about them."""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from adapters.types import ExamItem, Grader, ItemKind, MediaType, build_item
from server.core.clock import new_id, utc_now
from server.core.errors import DocumentEmpty, DocumentNotText, InvalidRequest, RowNotFound
from server.core.queue import INGEST_DOCUMENT, Queue
from server.db import (
    AcceptedEdit,
    AdapterVersion,
    Chunk,
    Document,
    DocumentFact,
    DocumentSource,
    DocumentState,
    EvaluationResult,
    ExamQuestion,
    RunDocument,
    SketchHash,
)
from server.db.session import after_commit
from server.services.paging import Page, page_of
from server.services.tenants import only, sees

MOST_USER_QUESTIONS = 2000
"""Users' questions on one document, because a run asks each of them twice."""

DELETED_TITLE = "(deleted)"
_TITLE_CHARS = 500
_FILENAME_CHARS = 300
_BINARY = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")
_DERIVED_TITLE_CHARS = 80


@dataclass(frozen=True, slots=True)
class SentQuestion:
    """A question as a user sends it; any of the answers is right."""

    prompt: str
    answers: tuple[str, ...]
    grader: Grader = Grader.MATCH


@dataclass(frozen=True, slots=True)
class Upload:
    """A document as it arrives: a text, or a file that a worker has yet to read."""

    text: str = ""
    content: bytes | None = None
    """Of a file; None for a text."""
    media_type: MediaType = MediaType.TEXT
    charset: str | None = None
    """What the sender says of an HTML file."""
    filename: str | None = None
    title: str | None = None
    questions: Sequence[SentQuestion] = ()
    """Only ever asked, never trained on."""


def checked(upload: Upload) -> Upload:
    """The document with its text in the form in which it is kept; checking twice changes nothing.

    Raises:
        DocumentEmpty: nothing but white space, or no byte.
        DocumentNotText: control characters of a binary file in a text.
    """
    if upload.content is not None:
        if not upload.content:
            raise DocumentEmpty("The file is empty.", "file")
        return upload
    text = upload.text.replace("\r\n", "\n").strip("\ufeff")
    if not text.strip():
        raise DocumentEmpty("The document is empty. Send some text.", "text")
    if _BINARY.search(text):
        raise DocumentNotText(
            "The document holds control characters, as a binary file does. "
            "Send its text: UTF-8, without NUL bytes.",
            "text",
        )
    return replace(upload, text=text)


def accept(
    session: Session, upload: Upload, *, owner: str | None, created_by: str, queue: Queue
) -> tuple[Document, bool]:
    """Store a document, unless its owner has sent it already; True when there is work to do.

    The id follows from owner and content, so sending it twice is safe; one that could not be read,
    or was deleted, is tried anew. Questions sent along are added to those already there.

    Raises:
        DocumentEmpty, DocumentNotText: see :func:`checked`.
        InvalidRequest: see :func:`add_user_questions`.
    """
    upload = checked(upload)
    raw = upload.text.encode() if upload.content is None else upload.content
    content_hash = "b2:" + hashlib.blake2b(raw, digest_size=32).hexdigest()
    document_id = _document_id(owner, content_hash)
    same = select(Document).where(Document.id == document_id)
    document = session.scalar(same)
    is_new = document is None or _is_over(document)
    if document is None:
        document = Document(id=document_id, owner=owner, content_hash=content_hash)
        _fill(document, upload, len(raw), created_by)
        try:
            with session.begin_nested():
                session.add(document)
        except IntegrityError:  # the same came by another request at the same moment
            document, is_new = session.scalars(same).one(), False
    elif is_new:
        _fill(document, upload, len(raw), created_by)
    if is_new:
        if upload.content is not None:
            session.merge(DocumentSource(document_id=document_id, content=upload.content))
        after_commit(session, lambda: queue.send(INGEST_DOCUMENT, document_id))
    add_user_questions(session, document.id, upload.questions)
    return document, is_new


def add_user_questions(
    session: Session, document_id: str, sent: Sequence[SentQuestion]
) -> tuple[list[ExamItem], int]:
    """Store what a user asks about a document, each once; the items as sent, and how many are new.

    Raises:
        InvalidRequest: the document would have too many.
    """
    items = [
        build_item(
            ItemKind.USER, document_id, prompt=one.prompt, answers=one.answers, grader=one.grader
        )
        for one in sent
    ]
    new = add_exam_questions(session, document_id, exam=items, train=[])
    session.flush()
    count = new and session.scalar(
        select(func.count()).where(
            ExamQuestion.document_id == document_id, ExamQuestion.kind == ItemKind.USER
        )
    )
    if count and count > MOST_USER_QUESTIONS:
        raise InvalidRequest(
            f"The document would have {count} questions, and {MOST_USER_QUESTIONS} is the most; "
            "send fewer, or remove some.",
            "questions",
        )
    return items, new


def add_exam_questions(
    session: Session,
    document_id: str,
    *,
    exam: Iterable[ExamItem],
    train: Iterable[ExamItem],
    interaction_id: str | None = None,
) -> int:
    """Store questions with their split; a question already there keeps the split it has.

    ``interaction_id`` is where a question from traffic was asked. Returns how many were new.
    """
    lock = select(Document.deleted_at).where(Document.id == document_id).with_for_update()
    if session.scalar(lock) is not None:
        return 0  # it was deleted while a run wrote questions about it
    known = set(
        session.scalars(select(ExamQuestion.item_id).where(ExamQuestion.document_id == document_id))
    )
    before = len(known)
    for split, items in (("exam", exam), ("train", train)):
        for item in items:
            if item.id in known:
                continue
            known.add(item.id)
            session.add(
                ExamQuestion(
                    id=new_id("que"),
                    item_id=item.id,
                    document_id=document_id,
                    kind=item.kind,
                    split=split,
                    prompt=item.prompt,
                    answers=list(item.answers),
                    grader=item.grader,
                    interaction_id=interaction_id,
                )
            )
    return len(known) - before


def exam_items(session: Session, document_ids: Sequence[str], *, split: str) -> list[ExamItem]:
    """The questions of these documents on one side of the split, in a stable order."""
    rows = session.scalars(
        select(ExamQuestion)
        .where(ExamQuestion.document_id.in_(document_ids), ExamQuestion.split == split)
        .order_by(ExamQuestion.document_id, ExamQuestion.item_id)
    )
    return [
        ExamItem(
            id=row.item_id,
            kind=ItemKind(row.kind),
            document_id=row.document_id,
            prompt=row.prompt,
            answers=tuple(row.answers),
            grader=Grader(row.grader),
        )
        for row in rows
    ]


def get_document(session: Session, document_id: str, *, tenant: str | None = None) -> Document:
    """A document that ``tenant`` may see; None is the operator, who sees all.

    Raises:
        RowNotFound: no such document, or another tenant's.
    """
    document = session.get(Document, document_id)
    if document is None or not sees(tenant, document.owner):
        raise RowNotFound("document", document_id, "List them: GET /api/v1/documents.")
    return document


def list_documents(
    session: Session,
    *,
    tenant: str | None = None,
    state: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Page[Document]:
    """Those that ``tenant`` may see and that are not deleted, newest first.

    Raises:
        InvalidRequest: ``after`` is no cursor.
    """
    statement = select(Document).where(only(Document.owner, tenant), Document.deleted_at.is_(None))
    if state is not None:
        statement = statement.where(Document.state == state)
    return page_of(session, statement, Document, after=after, limit=limit)


def delete_document(session: Session, document_id: str, *, tenant: str | None) -> Document:
    """Forget what a document says; its row stays, to name the versions that saw it.

    Text, chunks and questions go, and what exams and accepted edits quoted of it. No run takes it from now on.
    Doing it twice changes nothing. What became of it already is the matter of
    :mod:`server.services.deletions`.

    Raises:
        RowNotFound: no such document, or another tenant's.
    """
    document = get_document(session, document_id, tenant=tenant)
    lock_for_deleting(session, [document_id], owner=document.owner)
    session.refresh(document)
    _forget_mentions(session, document)
    quoting = (
        Chunk,
        ExamQuestion,
        EvaluationResult,
        AcceptedEdit,
        DocumentSource,
        SketchHash,
        DocumentFact,
    )
    for table in quoting:
        session.execute(delete(table).where(table.document_id == document_id))
    document.text = ""
    document.title = DELETED_TITLE
    document.filename = None
    document.error = None
    document.sketch = None
    document.findings = None
    document.language = None
    document.topic = None
    document.released_at = None
    document.size_bytes = 0
    document.deleted_at = document.deleted_at or utc_now()
    return document


def lock_for_deleting(
    session: Session, document_ids: Collection[str], *, owner: str | None
) -> None:
    """Wait for the runs that take these documents now, and hold all rows that deleting them changes.

    Their own, and those of the owner's documents whose findings mention them: in the order of ids,
    as everybody locks them. One after the other, a deletion and a run would wait for each other.
    """
    mention = cast(Document.findings, Text)
    session.execute(
        select(Document.id)
        .where(
            Document.owner.is_not_distinct_from(owner),
            or_(Document.id.in_(document_ids), *(mention.contains(one) for one in document_ids)),
        )
        .order_by(Document.id)
        .with_for_update()
    )


def _forget_mentions(session: Session, document: Document) -> None:
    """Take out of other documents' findings what they quote of this one.

    What was left out of their lessons because of it is learnt again. One that is in quarantine
    stays there until an admin releases it.
    """
    mentions = select(Document).where(
        Document.owner.is_not_distinct_from(document.owner),
        Document.id != document.id,
        cast(Document.findings, Text).contains(document.id),
    )
    for other in session.scalars(mentions.order_by(Document.id).with_for_update()):
        other.findings = [
            _without_mention(finding) if finding.get("document") == document.id else finding
            for finding in other.findings or ()
        ]


def _without_mention(finding: dict[str, Any]) -> dict[str, Any]:
    return finding | {
        "severity": "note",
        "detail": "It was about another document, which was deleted since.",
        "start": None,
        "end": None,
        "document": None,
    }


def is_learnable(owner: str | None) -> ColumnElement[bool]:
    """The condition under which a line of ``owner`` may learn a document: it is that owner's.

    No other owner's will do, the operator's least of all: None is an owner like any other here.
    Of two that say nearly the same the newer is learnt, which is most often a revision.
    """
    states = (DocumentState.RECEIVED, DocumentState.UNREADABLE, DocumentState.QUARANTINED)
    newer = aliased(Document)
    is_replaced = (
        select(newer.id)
        .where(
            newer.near_duplicate_of == Document.id,
            newer.deleted_at.is_(None),
            newer.state != DocumentState.QUARANTINED,
        )
        .exists()
    )
    return and_(
        ~is_replaced,
        Document.owner.is_not_distinct_from(owner),
        Document.state.not_in(states),
        Document.deleted_at.is_(None),
    )


def live_documents(
    session: Session, *, owner: str | None, lock: bool = False
) -> Sequence[Document]:
    """What a run on a line of ``owner`` learns: its documents that are chunked, oldest first.

    Args:
        lock: none of them can be deleted before this transaction ends.
    """
    statement = select(Document).where(is_learnable(owner)).order_by(Document.id)
    if lock:  # in the order of ids, as everybody locks them
        statement = statement.with_for_update(of=Document)
    found = session.scalars(statement).all()
    return sorted(found, key=lambda document: (document.created_at, document.id))


def has_material(session: Session, *, owner: str | None) -> bool:
    """Whether a run on a line of ``owner`` would have anything to learn, now or in a moment."""
    waits = and_(
        Document.owner.is_not_distinct_from(owner),
        Document.state == DocumentState.RECEIVED,
        Document.deleted_at.is_(None),
    )
    statement = select(Document.id).where(or_(waits, is_learnable(owner))).limit(1)
    return session.scalar(statement) is not None


def has_documents(session: Session, *, owner: str | None) -> bool:
    """Whether ``owner`` has sent anything, chunked or not."""
    own = Document.owner.is_not_distinct_from(owner)
    statement = select(Document.id).where(own, Document.deleted_at.is_(None)).limit(1)
    return session.scalar(statement) is not None


def chunks_of(session: Session, document_id: str) -> list[str]:
    return list(
        session.scalars(
            select(Chunk.text).where(Chunk.document_id == document_id).order_by(Chunk.position)
        )
    )


def set_states(session: Session, document_ids: Iterable[str], state: DocumentState) -> None:
    """Note what a run makes of its documents, but for those deleted, or sent anew, meanwhile."""
    session.execute(
        update(Document)
        .where(
            Document.id.in_(list(document_ids)),
            Document.deleted_at.is_(None),
            Document.state.not_in((DocumentState.RECEIVED, DocumentState.QUARANTINED)),
        )
        .values(state=state)
    )


def versions_that_saw(session: Session, document_id: str) -> Sequence[AdapterVersion]:
    """The lineage of a document forward: every version trained on it."""
    return session.scalars(
        select(AdapterVersion)
        .join(RunDocument, RunDocument.run_id == AdapterVersion.run_id)
        .where(RunDocument.document_id == document_id)
        .order_by(AdapterVersion.number)
    ).all()


def replaced_by(session: Session, document_id: str) -> str | None:
    """The newest document that says nearly the same, and is learnt in its place."""
    return session.scalar(
        select(Document.id)
        .where(
            Document.near_duplicate_of == document_id,
            Document.deleted_at.is_(None),
            Document.state != DocumentState.QUARANTINED,
        )
        .order_by(Document.created_at.desc())
        .limit(1)
    )


def counts(session: Session, document_id: str) -> tuple[int, int]:
    """How many chunks, and how many exam questions, a document has."""
    chunks = select(func.count()).where(Chunk.document_id == document_id)
    questions = select(func.count()).where(
        ExamQuestion.document_id == document_id, ExamQuestion.split == "exam"
    )
    return session.scalar(chunks) or 0, session.scalar(questions) or 0


def _document_id(owner: str | None, content_hash: str) -> str:
    if owner is None:
        return "doc_" + content_hash[3:35]
    both = f"{owner}\0{content_hash}".encode()
    return "doc_" + hashlib.blake2b(both, digest_size=16).hexdigest()


def _is_over(document: Document) -> bool:
    """Whether sending the same again begins anew."""
    return document.deleted_at is not None or document.state == DocumentState.UNREADABLE


def _fill(document: Document, upload: Upload, size_bytes: int, created_by: str) -> None:
    """Make the row say what was sent; a deleted one is a new document under its old id."""
    is_text = upload.content is None
    charset = f"; charset={upload.charset}" if upload.charset else ""
    document.media_type = upload.media_type + charset
    document.filename = _filename(upload.filename)
    document.text = upload.text
    document.title = (
        derived_title(upload.text, upload.title) if is_text else (upload.title or "")[:_TITLE_CHARS]
    )
    document.size_bytes = size_bytes
    document.created_by = created_by
    document.created_at = utc_now()
    document.state = DocumentState.RECEIVED
    document.error = None
    document.deleted_at = None
    document.near_duplicate_of = None
    document.findings = None
    document.language = None
    document.topic = None
    document.released_at = None


def _filename(sent: str | None) -> str | None:
    """The last part of a name, without what no database takes."""
    if not sent:
        return None
    name = sent.replace("\\", "/").rpartition("/")[2]
    printable = "".join(char if char.isprintable() else "_" for char in name).strip()
    return printable[-_FILENAME_CHARS:] or None


def derived_title(text: str, given: str | None, filename: str | None = None) -> str:
    """The title that was given, else the file's name, else the first line."""
    stem = filename.rpartition(".")[0] or filename if filename else None
    return (given or stem or _first_line(text))[:_TITLE_CHARS]


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0].lstrip("# ").strip()
    if len(line) > _DERIVED_TITLE_CHARS:
        line = line[: _DERIVED_TITLE_CHARS - 1].rstrip() + "…"
    return line or "Untitled"
