"""What is wrong with documents: kept with them, and set aside by an admin who releases one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from adapters.types import ExamItem, ItemKind
from server.core.clock import utc_now
from server.core.errors import DocumentNotQuarantined
from server.db import Document, DocumentFact, DocumentState, ExamQuestion
from server.services import audit, documents
from server.services.documents import get_document
from server.services.keys import Principal

_MOST_FACTS = 5000
"""Of other documents that one is compared with, the newest first."""
_BATCH = 500


@dataclass(frozen=True, slots=True)
class FactRow:
    """A fact as the table keeps it; see :class:`adapters.corpus.facts.Fact`."""

    subject: str
    slot: str
    frame: str
    value: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Witness:
    """Another document of the same owner, and what it says of the subjects that were asked for."""

    id: str
    title: str
    topic: str | None
    created_at: datetime
    created_by: str
    """The key that sent it."""
    near_duplicate_of: str | None
    facts: tuple[FactRow, ...]


def store(
    session: Session,
    document_id: str,
    *,
    language: str | None,
    findings: Sequence[Mapping[str, Any]],
) -> None:
    """Keep what a document showed by itself."""
    document = get_document(session, document_id)
    document.language = language
    document.findings = [dict(finding) for finding in findings]


def add_findings(session: Session, document_id: str, findings: Sequence[Mapping[str, Any]]) -> None:
    """Keep what a comparison showed, behind what is there."""
    if not findings:
        return
    lock = select(Document.id).where(Document.id == document_id).with_for_update()
    session.execute(lock)
    document = get_document(session, document_id)
    session.refresh(document)
    document.findings = [*(document.findings or ()), *(dict(finding) for finding in findings)]


def quarantine(session: Session, document_id: str) -> None:
    """Keep a document from every run, unless an admin released it before."""
    session.flush()
    session.execute(
        update(Document)
        .where(
            Document.id == document_id,
            Document.released_at.is_(None),
            Document.deleted_at.is_(None),
        )
        .values(state=DocumentState.QUARANTINED)
    )


def release(
    session: Session, principal: Principal, document_id: str, *, request_id: str | None = None
) -> Document:
    """Let a document be learnt, whole, in spite of its findings; doing it twice changes nothing.

    Raises:
        RowNotFound: no such document, or another tenant's.
        DocumentNotQuarantined: nothing keeps it from being learnt, or something else does.
    """
    document = get_document(session, document_id, tenant=principal.owner)
    session.refresh(document, with_for_update=True)
    if document.deleted_at is not None or (
        document.state != DocumentState.QUARANTINED and document.released_at is None
    ):
        state = "deleted" if document.deleted_at is not None else document.state
        raise DocumentNotQuarantined(document_id, state)
    if document.state == DocumentState.QUARANTINED:
        document.state = DocumentState.READY
        document.released_at = utc_now()
        audit.record(
            session,
            principal,
            "document.release",
            document_id,
            {"findings": len(document.findings or ())},
            request_id,
            owner=document.owner,
        )
    return document


def store_facts(
    session: Session, document_id: str, facts: Sequence[FactRow], *, topic: str | None
) -> None:
    """Keep what later documents are compared with."""
    get_document(session, document_id).topic = topic
    session.add_all(
        DocumentFact(
            document_id=document_id,
            position=position,
            subject=fact.subject,
            slot=fact.slot,
            frame=fact.frame,
            value=fact.value,
            start=fact.start,
            end=fact.end,
        )
        for position, fact in enumerate(facts)
    )


def witnesses(session: Session, document_id: str, subjects: Collection[str]) -> list[Witness]:
    """Other documents of the same owner that say something of the subjects, the newest first.

    At most 5,000 facts are looked at. Documents in quarantine say nothing, nor does a sentence that
    is left out of what is learnt: it was found to be wrong.
    """
    document = get_document(session, document_id)
    wanted = sorted(subjects)
    found: dict[str, tuple[Document, list[FactRow]]] = {}
    for first in range(0, len(wanted), _BATCH):
        rows = session.execute(
            select(DocumentFact, Document)
            .join(Document, Document.id == DocumentFact.document_id)
            .where(
                DocumentFact.subject.in_(wanted[first : first + _BATCH]),
                Document.id != document_id,
                Document.owner.is_not_distinct_from(document.owner),
                Document.deleted_at.is_(None),
                Document.state.not_in(_SILENT),
            )
            .order_by(Document.created_at.desc(), Document.id, DocumentFact.position)
            .limit(_MOST_FACTS)
        )
        for fact, other in rows:
            if _overlaps(fact, _contained(other)):
                continue
            found.setdefault(other.id, (other, []))[1].append(
                FactRow(fact.subject, fact.slot, fact.frame, fact.value, fact.start, fact.end)
            )
    return [
        Witness(
            other.id,
            other.title,
            other.topic,
            other.created_at,
            other.created_by,
            other.near_duplicate_of,
            tuple(facts),
        )
        for other, facts in found.values()
    ]


def contained_places(session: Session, document_id: str) -> list[tuple[int, int]]:
    """Start and end of what the document's findings keep from lessons and exams."""
    return _contained(get_document(session, document_id))


def _contained(document: Document) -> list[tuple[int, int]]:
    if document.released_at is not None:
        return []
    return [
        (finding["start"], finding["end"])
        for finding in document.findings or ()
        if finding["severity"] == "contain" and finding["start"] is not None
    ]


def _overlaps(fact: DocumentFact, places: Collection[tuple[int, int]]) -> bool:
    return any(fact.start < end and start < fact.end for start, end in places)


def made_questions(session: Session, document_id: str) -> list[ExamItem]:
    """The document's questions on both sides of the split, without those that its users sent."""
    items = [
        item
        for split in ("exam", "train")
        for item in documents.exam_items(session, [document_id], split=split)
    ]
    return [item for item in items if item.kind is not ItemKind.USER]


def drop_questions(session: Session, document_id: str, item_ids: Collection[str]) -> None:
    """Ask these questions about the document no more."""
    session.execute(
        delete(ExamQuestion).where(
            ExamQuestion.document_id == document_id, ExamQuestion.item_id.in_(item_ids)
        )
    )


def near_duplicates_of_key(session: Session, document_id: str, *, hours: float = 24) -> int:
    """How many near duplicates came by the document's key within the hours before it."""
    document = get_document(session, document_id)
    return (
        session.scalar(
            select(func.count()).where(
                Document.created_by == document.created_by,
                Document.near_duplicate_of.is_not(None),
                Document.created_at > document.created_at - timedelta(hours=hours),
            )
        )
        or 0
    )


_SILENT = (DocumentState.RECEIVED, DocumentState.UNREADABLE, DocumentState.QUARANTINED)
