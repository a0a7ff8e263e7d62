"""Documents, their chunks, and the questions asked about them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Base, Row


class DocumentState(StrEnum):
    """How far a document has come."""

    RECEIVED = "received"
    """Stored; not yet parsed and chunked."""
    UNREADABLE = "unreadable"
    """It could not be parsed; ``error`` says why."""
    READY = "ready"
    """Chunked; the next run takes it."""
    LEARNING = "learning"
    """A run is at work on it."""
    LEARNT = "learnt"
    """A version that saw it passed the exam."""
    NOT_LEARNT = "not_learnt"
    """The last run over it was rejected, inconclusive, cancelled or failed."""
    QUARANTINED = "quarantined"
    """Kept from every run until an admin releases it; ``findings`` say why."""


class Document(Row):
    """One source. Its id follows from owner and content: the same text is the same document."""

    __tablename__ = "documents"
    __table_args__ = (Index("ix_documents_owner_created_at", "owner", "created_at", "id"),)

    owner: Mapped[str | None] = mapped_column(String(100))
    content_hash: Mapped[str] = mapped_column(String(80), index=True)
    """Of what was sent, before parsing. Unique for one owner, because the id is made from both."""
    media_type: Mapped[str] = mapped_column(String(100), default="text/plain")
    filename: Mapped[str | None] = mapped_column(String(300))
    title: Mapped[str] = mapped_column(String(500))
    """Empty until a worker has read a file that was sent without one."""
    text: Mapped[str] = mapped_column(Text, deferred=True)  # megabytes that a listing never shows
    size_bytes: Mapped[int]
    state: Mapped[str] = mapped_column(String(20), default=DocumentState.RECEIVED)
    error: Mapped[str | None] = mapped_column(Text)
    near_duplicate_of: Mapped[str | None] = mapped_column(String(48), index=True)
    """An earlier document of the same owner that says nearly the same. The newer one is learnt in
    its place, because it is most often a revision."""
    sketch: Mapped[list[int] | None] = mapped_column(JSON, deferred=True)
    """What near duplicates are found by: see :mod:`adapters.corpus.near_duplicates`."""
    language: Mapped[str | None] = mapped_column(String(10))
    """ISO 639-1 code of what it is mostly written in; null where nothing could be told."""
    findings: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    """What is suspicious about it: rows of ``kind`` and ``detail``, and what they were found in."""
    topic: Mapped[str | None] = mapped_column(String(120))
    """What most of its sentences are about, as facts name their subjects."""
    released_at: Mapped[datetime | None]
    """When an admin let it be learnt in spite of its findings."""
    created_by: Mapped[str] = mapped_column(String(48))
    deleted_at: Mapped[datetime | None]
    """A tombstone: its text is gone and no run takes it; the row stays for the lineage."""


class DocumentSource(Base):
    """The bytes of a file until a worker has parsed them."""

    __tablename__ = "document_sources"

    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True
    )
    content: Mapped[bytes] = mapped_column(LargeBinary)


class SketchHash(Base):
    """One of the few hashes by which the neighbours of a document are looked up."""

    __tablename__ = "sketch_hashes"

    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True
    )
    hash: Mapped[int] = mapped_column(BigInteger, primary_key=True, index=True)


class DocumentFact(Base):
    """A subject, a sentence frame and a value: see :mod:`adapters.corpus.facts`."""

    __tablename__ = "document_facts"

    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(String(120), index=True)
    slot: Mapped[str] = mapped_column(String(60))
    frame: Mapped[str] = mapped_column(Text)
    """Its words, sorted, one space between them."""
    value: Mapped[str] = mapped_column(String(120))
    start: Mapped[int]
    """Of its sentence in the document's text, in characters."""
    end: Mapped[int]


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
    grader: Mapped[str] = mapped_column(String(20), default="match")
    """How a reply is judged: a value of ``adapters.types.Grader``."""
    interaction_id: Mapped[str | None] = mapped_column(String(48), index=True)
    """Of a question from traffic. Not a foreign key: retention may take the interaction."""


class TaskState(StrEnum):
    """How far a task has come."""

    READY = "ready"
    """The next run for it takes it."""
    LEARNING = "learning"
    LEARNT = "learnt"
    """A version that saw it passed the exam."""
    NOT_LEARNT = "not_learnt"


class Task(Row):
    """A task given by examples. Its id follows from owner and content."""

    __tablename__ = "tasks"
    __table_args__ = (Index("ix_tasks_owner_created_at", "owner", "created_at", "id"),)

    owner: Mapped[str | None] = mapped_column(String(100))
    title: Mapped[str] = mapped_column(String(500))
    instruction: Mapped[str] = mapped_column(Text)
    form: Mapped[str] = mapped_column(String(20))
    """``text`` or ``grid``."""
    examples: Mapped[list[Any]]
    """Rows of ``input`` and ``output``."""
    tests: Mapped[list[Any]]
    """The same, only ever asked."""
    state: Mapped[str] = mapped_column(String(20), default=TaskState.READY)
    created_by: Mapped[str] = mapped_column(String(48))
    deleted_at: Mapped[datetime | None]


class AcceptedEdit(Row):
    """A self-edit that taught more than the others of its text: what an editor is trained on."""

    __tablename__ = "accepted_edits"
    __table_args__ = (Index("ix_accepted_edits_adapter_id_created_at", "adapter_id", "created_at"),)

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    """The line whose run wrote it."""
    run_id: Mapped[str] = mapped_column(String(48), index=True)
    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), index=True
    )
    prompt: Mapped[str] = mapped_column(Text)
    """What the editor was asked, the text included."""
    text: Mapped[str] = mapped_column(Text)
    score: Mapped[float]
    """Share of the questions right after learning it."""
    base_score: Mapped[float]
    """The same of the model before."""
