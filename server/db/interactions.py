"""Requests and replies as they happened, each with the version that answered."""

from enum import StrEnum
from typing import Any

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Row


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETE = "complete"
    """The whole reply was sent."""
    CLIENT_LEFT = "client_left"
    """The client hung up; the text so far is kept."""
    ENGINE_ERROR = "engine_error"
    """The engine refused, failed or fell silent."""


class Interaction(Row):
    """One request and response pair through the gateway."""

    __tablename__ = "interactions"
    __table_args__ = (Index("ix_interactions_created_at", "created_at"),)

    completion_id: Mapped[str | None] = mapped_column(String(100), index=True)
    key_id: Mapped[str] = mapped_column(String(48))
    requested_model: Mapped[str] = mapped_column(String(300))
    version: Mapped[str] = mapped_column(String(300))
    engine_name: Mapped[str] = mapped_column(String(300))
    is_stream: Mapped[bool]
    request: Mapped[dict[str, Any]]
    reply: Mapped[str] = mapped_column(Text)
    """The text of the first choice; a reply of tool calls is kept as their JSON."""
    finish_reason: Mapped[str | None] = mapped_column(String(50))
    outcome: Mapped[str] = mapped_column(String(20))
    status: Mapped[int]
    error: Mapped[str | None] = mapped_column(Text)
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    first_byte_ms: Mapped[float | None]
    duration_ms: Mapped[float]
