"""Requests and replies as they happened, each with the version that answered, and what was said of it."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, UniqueConstraint, text
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


class Endpoint(StrEnum):
    """Which of the engine's surfaces a request came through."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"


class Arm(StrEnum):
    """By which way a request came to the version that answered it."""

    CHAMPION = "champion"
    """The line's own name, or its champion alias."""
    CHALLENGER = "challenger"
    """The same, drawn for the canary."""
    PINNED = "pinned"
    """The client named a version, the base, or another alias."""
    SHADOW = "shadow"
    """A copy of another request. No user saw the reply, and it is never learnt from."""


class Message(Row):
    """One message of a conversation, stored once.

    Its id is a hash of owner, parent and content, so a conversation that is sent again with a new
    turn adds only that turn, and no two tenants ever share a row.
    """

    __tablename__ = "messages"

    parent_id: Mapped[str | None] = mapped_column(String(48), index=True)
    """The message before it; null at the start. Not a foreign key: batches insert in any order."""
    owner: Mapped[str | None] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(30))
    content: Mapped[dict[str, Any]]
    """The message as the client sent it."""


def _partial(column: str, condition: str) -> Index:
    """An index of what is rare, which costs the common row nothing."""
    where = text(condition)
    name = f"ix_interactions_{column}_created_at"
    return Index(name, column, "created_at", "id", sqlite_where=where, postgresql_where=where)


class Interaction(Row):
    """One request and response pair through the gateway."""

    __tablename__ = "interactions"
    __table_args__ = (
        Index("ix_interactions_created_at", "created_at", "id"),
        Index("ix_interactions_owner_created_at", "owner", "created_at", "id"),
        Index("ix_interactions_adapter_created_at", "adapter", "created_at", "id"),
        Index("ix_interactions_version_created_at", "version", "created_at", "id"),
        Index("ix_interactions_key_id_created_at", "key_id", "created_at", "id"),
        _partial("task_tag", "task_tag IS NOT NULL"),
        _partial("outcome", "outcome <> 'complete'"),
        _partial("endpoint", "endpoint <> 'chat'"),
        _partial("shadow_of", "shadow_of IS NOT NULL"),
    )

    completion_id: Mapped[str | None] = mapped_column(String(100), index=True)
    key_id: Mapped[str] = mapped_column(String(48))
    owner: Mapped[str | None] = mapped_column(String(100))
    endpoint: Mapped[str] = mapped_column(String(20), default=Endpoint.CHAT)
    requested_model: Mapped[str] = mapped_column(String(300))
    adapter: Mapped[str] = mapped_column(String(200))
    """The line that was asked."""
    version: Mapped[str] = mapped_column(String(300))
    engine_name: Mapped[str] = mapped_column(String(300))
    is_stream: Mapped[bool]
    request: Mapped[dict[str, Any]]
    """Every field the client sent but ``messages``, which stand as rows of their own."""
    conversation_id: Mapped[str | None] = mapped_column(String(48), index=True)
    """The first message of the conversation; null where there are no messages."""
    last_message_id: Mapped[str | None] = mapped_column(String(48))
    """The prompt: this message and its parents."""
    reply: Mapped[str] = mapped_column(Text)
    """The text of the first choice; a reply of tool calls is kept as their JSON."""
    choices: Mapped[list[Any] | None] = mapped_column(JSON)
    """All choices where the client asked for several: text, tool calls, finish reason of each."""
    tokens: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """Token ids and log-probabilities, where the engine gave them."""
    finish_reason: Mapped[str | None] = mapped_column(String(50))
    outcome: Mapped[str] = mapped_column(String(20))
    status: Mapped[int]
    error: Mapped[str | None] = mapped_column(Text)
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    first_byte_ms: Mapped[float | None]
    duration_ms: Mapped[float]
    may_learn: Mapped[bool] = mapped_column(default=True)
    """Consent: the key allows learning and the request did not say ``store: false``."""
    split: Mapped[str] = mapped_column(String(10), default="train")
    """train, gate or canary; drawn once by the conversation's hash and never changed."""
    task_tag: Mapped[str | None] = mapped_column(String(100))
    """``metadata.task`` of the request."""
    end_user: Mapped[str | None] = mapped_column(String(200))
    """``user`` or ``safety_identifier`` of the request, hashed."""
    redacted_at: Mapped[datetime | None]
    """When an admin blanked prompt and reply; such a row is never learnt from."""
    arm: Mapped[str | None] = mapped_column(String(20))
    """Which way the request came; null in rows of before there were trials."""
    shadow_of: Mapped[str | None] = mapped_column(String(48))
    """The interaction whose prompt this is a copy of."""


class FeedbackKind(StrEnum):
    """What a piece of feedback says."""

    SCORE = "score"
    THUMB = "thumb"
    CORRECTION = "correction"
    REFERENCE = "reference"
    PREFERENCE = "preference"
    COMMENT = "comment"


class Feedback(Row):
    """One judgement on an interaction; there may be many.

    It names the completion, because a client may judge before the interaction is shipped.
    """

    __tablename__ = "feedback"
    __table_args__ = (
        UniqueConstraint("idempotency_hash"),
        Index("ix_feedback_created_at", "created_at", "id"),
        Index("ix_feedback_owner_created_at", "owner", "created_at", "id"),
    )

    completion_id: Mapped[str] = mapped_column(String(100), index=True)
    interaction_id: Mapped[str | None] = mapped_column(
        ForeignKey("interactions.id", ondelete="CASCADE"), index=True
    )
    owner: Mapped[str | None] = mapped_column(String(100))
    key_id: Mapped[str] = mapped_column(String(48))
    kind: Mapped[str] = mapped_column(String(20))
    choice: Mapped[int] = mapped_column(default=0)
    """Index of the choice that is judged."""
    value: Mapped[dict[str, Any]]
    """What the kind carries: ``score``, ``thumb``, ``text`` or ``chosen`` and ``rejected``."""
    idempotency_hash: Mapped[str] = mapped_column(String(80))
    """Of the key given by the client, else of the whole content."""
