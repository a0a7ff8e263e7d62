"""API keys: mint, look up, revoke. The secret exists only in the return value of a mint."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.clock import new_id, utc_now
from server.core.errors import InvalidRequest, RowNotFound, SetupError
from server.core.security import MIN_SECRET_CHARS, Scope, hash_key, mint_key, redacted
from server.db import ApiKey


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking."""

    id: str
    name: str
    scopes: frozenset[Scope]
    owner: str | None = None
    """The tenant; None is the operator, who sees every tenant's rows."""
    allows_learning: bool = True
    """Whether what passes under this key may ever be trained on."""

    @property
    def label(self) -> str:
        """How records name it; the prefix tells it from a run or a policy, whatever its name is."""
        return f"key:{self.id} ({self.name[:100]})"

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
    scopes = frozenset(Scope(scope) for scope in key.scopes)
    return Principal(key.id, key.name, scopes, key.owner, key.allows_learning)


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

    Raises:
        SetupError: the given one is too short, was revoked, or is known and no admin's.
    """
    if given:
        _take_admin_key(session, given)
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


def _take_admin_key(session: Session, given: str) -> None:
    key = session.scalar(select(ApiKey).where(ApiKey.key_hash == hash_key(given)))
    if len(given) < MIN_SECRET_CHARS:
        problem = f"has {len(given)} characters, and {MIN_SECRET_CHARS} are needed"
    elif key is not None and key.revoked_at is not None:
        problem = f"is the key {key.id}, which was revoked"
    elif key is not None and Scope.ADMIN not in key.scopes:
        problem = f"is the key {key.id}, which has the scopes {', '.join(key.scopes)} and not admin"
    else:
        problem = None
    if problem:
        raise SetupError(
            f"EVERLEARN_ADMIN_KEY {problem}. Set it to a new secret, such as "
            "`openssl rand -base64 32` prints, or leave it empty: one is minted where none exists."
        )
    if key is None:
        add_key(session, "admin (from the settings)", [Scope.ADMIN], secret=given)
