"""Documents, their chunks, and the questions asked about them."""

from enum import StrEnum

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Base, Row


class DocumentState(StrEnum):
    """How far a document has come."""

    RECEIVED = "received"
    """Stored; not yet chunked."""
    READY = "ready"
    """Chunked; the next run takes it."""
    LEARNING = "learning"
    """A run is at work on it."""
    LEARNT = "learnt"
    """A version that saw it passed the exam."""
    NOT_LEARNT = "not_learnt"
    """The last run over it was rejected, inconclusive, cancelled or failed."""


class Document(Row):
    """One source. Its id follows from its content, so the same text is the same document."""

    __tablename__ = "documents"

    content_hash: Mapped[str] = mapped_column(String(80), unique=True)
    title: Mapped[str] = mapped_column(String(500))
    text: Mapped[str] = mapped_column(Text, deferred=True)  # megabytes that a listing never shows
    size_bytes: Mapped[int]
    state: Mapped[str] = mapped_column(String(20), default=DocumentState.RECEIVED)
    created_by: Mapped[str] = mapped_column(String(48))


class Chunk(Base):
    """A piece of a document of bounded length; the pieces joined are the document."""

    __tablename__ = "chunks"

    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)


class ExamQuestion(Row):
    """A question about a document. The split never changes: what is asked is never trained on."""

    __tablename__ = "exam_questions"
    __table_args__ = (
        UniqueConstraint("document_id", "item_id"),
        Index("ix_exam_questions_document_id_split", "document_id", "split"),
    )

    item_id: Mapped[str] = mapped_column(String(64))
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(20))
    split: Mapped[str] = mapped_column(String(10))
    prompt: Mapped[str] = mapped_column(Text)
    answers: Mapped[list[str]]
