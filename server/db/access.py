"""Keys: who may do what, and how much; and what admins did."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Row


class ApiKey(Row):
    """A hashed key with its scopes, its owner and its limits; a limit that is null is none."""

    __tablename__ = "api_keys"

    name: Mapped[str] = mapped_column(String(200))
    hint: Mapped[str] = mapped_column(String(16))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    owner: Mapped[str | None] = mapped_column(String(100))
    """The tenant; null is the operator, who sees every tenant's rows."""
    allows_learning: Mapped[bool] = mapped_column(default=True)
    """Whether what passes under this key may ever be trained on."""
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    token_budget: Mapped[int | None] = mapped_column(BigInteger)
    """Tokens, prompt and completion, that the key may use in all."""
    tokens_used: Mapped[int] = mapped_column(BigInteger, default=0)
    revoked_at: Mapped[datetime | None]


class AuditEvent(Row):
    """One act of an admin: appended, never rewritten."""

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("ix_audit_events_created_at", "created_at"),
        Index("ix_audit_events_owner_created_at", "owner", "created_at"),
    )

    owner: Mapped[str | None] = mapped_column(String(100))
    """The tenant whose rows were touched; null where none is."""
    actor: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(60))
    """Noun and verb, such as ``key.create``."""
    target: Mapped[str] = mapped_column(String(300))
    """Id or name of what was acted on."""
    detail: Mapped[dict[str, Any]]
    """What was asked for; never a secret, never a text of a user."""
    request_id: Mapped[str | None] = mapped_column(String(100))
