"""What was asked to be forgotten, and how far that has come."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Row


class DeletionKind(StrEnum):
    """What was deleted."""

    DOCUMENT = "document"
    INTERACTION = "interaction"
    TASK = "task"
    PROMPT = "prompt"
    TENANT = "tenant"
    """Everything a tenant has sent: documents, tasks, prompts, interactions, feedback."""


class DeletionState(StrEnum):
    """open or rebuilding → done; rebuilding → open when the new version does not pass its exam."""

    OPEN = "open"
    """Deleted for learning; versions that saw it may still serve. No rebuild was asked for, or it is
    stuck and waits for a person."""
    REBUILDING = "rebuilding"
    """A run without it is queued or at work; the versions that saw it are retired when it serves."""
    DONE = "done"
    """No version that saw it serves or can serve, and their files are gone."""


class Deletion(Row):
    """One act of forgetting; never rewritten but for its state."""

    __tablename__ = "deletions"
    __table_args__ = (Index("ix_deletions_owner_created_at", "owner", "created_at", "id"),)

    kind: Mapped[str] = mapped_column(String(20))
    target: Mapped[str] = mapped_column(String(100))
    """Id of the document, interaction, task or prompt, name of the tenant."""
    owner: Mapped[str | None] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(20), default=DeletionState.OPEN, index=True)
    version_ids: Mapped[list[str]]
    """Versions that were trained on it."""
    run_ids: Mapped[list[str]]
    """Runs that were queued to do without it, the latest of each line last."""
    is_rebuild: Mapped[bool] = mapped_column(default=False)
    actor: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str] = mapped_column(Text, default="")
    """Why it is stuck; empty while it is not."""
    finished_at: Mapped[datetime | None]
