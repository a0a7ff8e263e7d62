"""From a received document to chunks: what the worker reads, and what it writes down."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session, undefer

from server.db import Chunk, Document, DocumentSource, DocumentState, SketchHash
from server.services.documents import derived_title, get_document

_MOST_NEIGHBOURS = 20
_FEWEST_SHARED = 2
"""Of the hashes that are looked up: one alone may be a phrase that a thousand documents share."""


@dataclass(frozen=True, slots=True)
class Source:
    """What was sent: ``content`` for a file that must be read first, else ``text``."""

    media_type: str
    charset: str | None
    text: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A document that may say nearly the same."""

    id: str
    sketch: tuple[int, ...]


def received_documents(session: Session) -> list[str]:
    """Ids of those that wait to be read, oldest first."""
    return list(
        session.scalars(
            select(Document.id)
            .where(Document.state == DocumentState.RECEIVED, Document.deleted_at.is_(None))
            .order_by(Document.created_at, Document.id)
        )
    )


def source_of(session: Session, document_id: str) -> Source | None:
    """What is to be read; None when the document is read already, or deleted.

    Raises:
        RowNotFound: no such document.
    """
    document = get_document(session, document_id)
    if not _is_waiting(document):
        return None
    file = session.get(DocumentSource, document_id)
    media_type, _, charset = document.media_type.partition("; charset=")
    return Source(
        media_type=media_type,
        charset=charset or None,
        text="" if file else document.text,
        content=file.content if file else None,
    )


def store_chunks(
    session: Session,
    document_id: str,
    chunks: Sequence[str],
    *,
    text: str | None = None,
    title: str | None = None,
) -> bool:
    """Keep the pieces of a document and mark it ready to learn; False when that was done already.

    Args:
        text: what a file says, of which the chunks are the pieces; its bytes are dropped.
        title: the file's own, for a document that was sent without one.
    """
    document = _locked(session, document_id)
    if not _is_waiting(document):
        return False
    if (file := session.get(DocumentSource, document_id)) is not None:
        document.text = text or ""
        document.title = derived_title(document.text, document.title or title, document.filename)
        session.delete(file)
    session.add_all(
        Chunk(document_id=document_id, position=position, text=text)
        for position, text in enumerate(chunks)
    )
    document.state = DocumentState.READY
    return True


def mark_unreadable(session: Session, document_id: str, error: str) -> None:
    """Note why a file gives no text. Its bytes go; sending it again is another try."""
    document = _locked(session, document_id)
    if not _is_waiting(document):
        return
    if (file := session.get(DocumentSource, document_id)) is not None:
        session.delete(file)
    document.state = DocumentState.UNREADABLE
    document.error = error


def neighbours(session: Session, document_id: str, lookup: Sequence[int]) -> list[Neighbour]:
    """Documents of the same owner that share some of the hashes, the newest first."""
    document = get_document(session, document_id)
    shared = (
        select(SketchHash.document_id)
        .where(SketchHash.hash.in_(lookup), SketchHash.document_id != document_id)
        .group_by(SketchHash.document_id)
        .having(func.count() >= min(_FEWEST_SHARED, len(lookup)))
    )
    rows = session.scalars(
        select(Document)
        .options(undefer(Document.sketch))
        .where(
            Document.id.in_(shared),
            Document.owner.is_not_distinct_from(document.owner),
            Document.deleted_at.is_(None),
        )
        .order_by(Document.created_at.desc(), Document.id.desc())
        .limit(_MOST_NEIGHBOURS)
    )
    return [Neighbour(row.id, tuple(row.sketch or ())) for row in rows]


def store_sketch(
    session: Session, document_id: str, sketch: Sequence[int], *, lookup: Sequence[int]
) -> None:
    """Keep what later documents are compared with."""
    get_document(session, document_id).sketch = list(sketch)
    session.add_all(SketchHash(document_id=document_id, hash=value) for value in lookup)


def name_near_duplicates(session: Session, one_id: str, other_id: str) -> None:
    """Note on the newer of the two that it nearly repeats the older.

    Workers read several documents at once, so the newer one may have been read first.
    """
    pair = (get_document(session, one_id), get_document(session, other_id))
    older, newer = sorted(pair, key=lambda document: (document.created_at, document.id))
    newer.near_duplicate_of = newer.near_duplicate_of or older.id


def _is_waiting(document: Document) -> bool:
    return document.state == DocumentState.RECEIVED and document.deleted_at is None


def _locked(session: Session, document_id: str) -> Document:
    """The row as it is now, held: the message and a run may read one document at the same time."""
    session.execute(select(Document.id).where(Document.id == document_id).with_for_update())
    document = get_document(session, document_id)
    session.refresh(document)
    return document
