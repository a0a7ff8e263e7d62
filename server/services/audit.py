"""The trail of what admins did: written with the act, in its transaction, and never changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from server.core.clock import new_id
from server.core.errors import InvalidRequest
from server.core.security import Scope
from server.db import AuditEvent
from server.services.keys import Principal
from server.services.tenants import only

LOCAL = Principal("local", "the server's own command line", frozenset({Scope.ADMIN}))
"""Whoever can write the database of this machine, and needs no key."""

SERVER = Principal("server", "the server itself", frozenset())
"""Whoever goes on by itself with what an admin has begun."""

_ID_PREFIX = "aud"


def record(
    session: Session,
    principal: Principal,
    action: str,
    target: str,
    detail: Mapping[str, Any] | None = None,
    request_id: str | None = None,
    *,
    owner: str | None = None,
) -> AuditEvent:
    """Enter an act in the caller's transaction: both are stored, or neither.

    Args:
        action: noun and verb, such as ``key.create``.
        target: id or name of what was acted on.
        detail: what was asked for; never a secret, never a text of a user.
        owner: the tenant whose row was touched; the principal's own when left out.
    """
    event = AuditEvent(
        id=new_id(_ID_PREFIX),
        owner=owner or principal.owner,
        actor=principal.label,
        action=action,
        target=target[:300],
        detail=dict(detail or {}),
        request_id=request_id,
    )
    session.add(event)
    return event


def list_events(
    session: Session,
    *,
    tenant: str | None = None,
    deletion: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Sequence[AuditEvent]:
    """Newest first; ``after`` is the id of the last event of the page before.

    Ids are ordered by time, so they are the cursor, and a page never shifts under new events.

    Args:
        deletion: only what followed from this one.

    Raises:
        InvalidRequest: ``after`` is no id of an event.
    """
    statement = select(AuditEvent).where(only(AuditEvent.owner, tenant))
    if deletion is not None:
        statement = statement.where(_is_of(deletion))
    if after is not None:
        if not after.startswith(f"{_ID_PREFIX}_"):
            raise InvalidRequest("after must be the `next` of an earlier page.", "after")
        statement = statement.where(AuditEvent.id < after)
    return session.scalars(statement.order_by(AuditEvent.id.desc()).limit(limit)).all()


def chain_of(session: Session, deletion: str) -> Sequence[AuditEvent]:
    """Everything that followed from a deletion, in the order in which it happened."""
    return session.scalars(select(AuditEvent).where(_is_of(deletion)).order_by(AuditEvent.id)).all()


def _is_of(deletion: str) -> ColumnElement[bool]:
    named: ColumnElement[bool] = AuditEvent.detail["deletion"].as_string() == deletion
    return named
