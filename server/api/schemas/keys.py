"""Keys and the audit trail."""

from datetime import datetime
from typing import Any

from pydantic import Field

from server.api.schemas.base import Body, Budget, Name, PerMinute, Tenant, View


class KeyBody(Body):
    name: Name
    scopes: list[str] = Field(min_length=1)
    """chat, ingest, feedback, read, admin."""
    owner: Tenant | None = None
    """The tenant; your own when left out, which for the operator is none: such a key sees all."""
    allows_learning: bool = True
    """Whether what passes under the key may ever be trained on."""
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    """Prompt and completion together."""
    token_budget: Budget | None = None
    """Tokens in all; when they are used, the key asks in vain until an admin raises it."""


class KeyChangesBody(Body):
    allows_learning: bool = True
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    token_budget: Budget | None = None


class KeyView(View):
    id: str
    name: str
    hint: str
    scopes: list[str]
    owner: str | None
    allows_learning: bool
    requests_per_minute: int | None
    tokens_per_minute: int | None
    token_budget: int | None
    tokens_used: int
    created_at: datetime
    revoked_at: datetime | None


class MintedKeyView(KeyView):
    key: str
    """The secret, shown this once."""


class AuditEventView(View):
    id: str
    owner: str | None
    """The tenant whose rows were touched; null where none is."""
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    request_id: str | None
    created_at: datetime
