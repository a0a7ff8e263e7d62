"""Prompts that users have sent for the model to learn from its own replies to them."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Row


class Prompt(Row):
    """A conversation that ends with a user's turn. Its id follows from owner and content."""

    __tablename__ = "prompts"
    __table_args__ = (Index("ix_prompts_owner_created_at", "owner", "created_at", "id"),)

    owner: Mapped[str | None] = mapped_column(String(100))
    messages: Mapped[list[Any]]
    """Rows of ``role`` and ``content``."""
    answers: Mapped[list[str]]
    """Any of them is right; empty where nobody has said."""
    tests: Mapped[str | None] = mapped_column(Text)
    """Python code that exercises the code of a reply."""
    tag: Mapped[str | None] = mapped_column(String(100), index=True)
    split: Mapped[str] = mapped_column(String(10))
    """train, or gate: only ever asked. Drawn by the hash of the last turn, and never changed."""
    created_by: Mapped[str] = mapped_column(String(48))
    deleted_at: Mapped[datetime | None]
    """A tombstone: its words are gone and no run takes it; the row stays for the lineage."""
