"""API keys: mint, look up, revoke. The secret exists only in the return value of a mint."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.clock import new_id, utc_now
from server.core.errors import InvalidRequest, RowNotFound
from server.core.security import Scope, hash_key, mint_key, redacted
from server.db import ApiKey


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking."""

    id: str
    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether this key has the scope; admin has them all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


def authenticate(session: Session, secret: str) -> Principal | None:
    """The owner of a key, or None when it is unknown or revoked."""
    key = session.scalar(
        select(ApiKey).where(ApiKey.key_hash == hash_key(secret), ApiKey.revoked_at.is_(None))
    )
    if key is None:
        return None
    return Principal(key.id, key.name, frozenset(Scope(scope) for scope in key.scopes))


def create_key(session: Session, name: str, scopes: Sequence[str]) -> tuple[ApiKey, str]:
    """A new key and its secret, which is not stored and cannot be shown again."""
    secret = mint_key()
    return add_key(session, name, scopes, secret=secret), secret


def add_key(session: Session, name: str, scopes: Sequence[str], *, secret: str) -> ApiKey:
    """Store the hash of a secret."""
    known = sorted({scope for scope in scopes if scope in set(Scope)})
    if not known or len(known) != len(set(scopes)):
        raise InvalidRequest(
            f"Scopes are one or more of {', '.join(Scope)}; got {', '.join(scopes) or 'none'}.",
            "scopes",
        )
    key = ApiKey(
        id=new_id("key"),
        name=name,
        hint=redacted(secret),
        key_hash=hash_key(secret),
        scopes=known,
    )
    session.add(key)
    return key


def ensure_admin_key(session: Session, given: str | None) -> str | None:
    """Make sure that an admin can come in.

    Returns the secret when one was minted now, to be shown once; None when a key already exists
    or the given one was stored.
    """
    if given:
        if authenticate(session, given) is None:
            add_key(session, "admin (from the settings)", [Scope.ADMIN], secret=given)
        return None
    if any(Scope.ADMIN in key.scopes for key in list_keys(session) if key.revoked_at is None):
        return None
    return create_key(session, "admin (first start)", [Scope.ADMIN])[1]


def list_keys(session: Session) -> Sequence[ApiKey]:
    return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Close a key for good; closing it twice is fine."""
    key = session.get(ApiKey, key_id)
    if key is None:
        raise RowNotFound("key", key_id, "List them: `everlearn key list`.")
    key.revoked_at = key.revoked_at or utc_now()
    return key
