"""API keys: mint, look up, limit, revoke. The secret exists only in the return value of a mint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from server.core.clock import new_id, utc_now
from server.core.errors import InvalidRequest, RowNotFound, SetupError
from server.core.security import MIN_SECRET_CHARS, Scope, hash_key, mint_key, redacted
from server.db import ApiKey
from server.services.tenants import only, sees


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a key may use; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    token_budget: int | None = None
    """Tokens, prompt and completion, in all."""


UNLIMITED = Limits()


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
    limits: Limits = UNLIMITED
    tokens_used: int = 0
    """Of the budget, as the database had it when the key was looked up."""

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
    return Principal(
        id=key.id,
        name=key.name,
        scopes=frozenset(Scope(scope) for scope in key.scopes),
        owner=key.owner,
        allows_learning=key.allows_learning,
        limits=Limits(key.requests_per_minute, key.tokens_per_minute, key.token_budget),
        tokens_used=key.tokens_used,
    )


def create_key(
    session: Session,
    name: str,
    scopes: Sequence[str],
    *,
    owner: str | None = None,
    allows_learning: bool = True,
    limits: Limits = UNLIMITED,
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is not stored and cannot be shown again."""
    secret = mint_key()
    key = add_key(
        session,
        name,
        scopes,
        secret=secret,
        owner=owner,
        allows_learning=allows_learning,
        limits=limits,
    )
    return key, secret


def add_key(
    session: Session,
    name: str,
    scopes: Sequence[str],
    *,
    secret: str,
    owner: str | None = None,
    allows_learning: bool = True,
    limits: Limits = UNLIMITED,
) -> ApiKey:
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
        owner=owner,
        allows_learning=allows_learning,
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        token_budget=limits.token_budget,
    )
    session.add(key)
    return key


def ensure_admin_key(session: Session, given: str | None) -> str | None:
    """Make sure that an admin who sees everything can come in.

    Returns the secret when one was minted now, to be shown once; None when a key already exists
    or the given one was stored.

    Raises:
        SetupError: the given one is too short, was revoked, or is known and not the operator's.
    """
    if given:
        _take_admin_key(session, given)
        return None
    for key in list_keys(session):
        if Scope.ADMIN in key.scopes and key.owner is None and key.revoked_at is None:
            return None
    return create_key(session, "admin (first start)", [Scope.ADMIN])[1]


def list_keys(session: Session, *, tenant: str | None = None) -> Sequence[ApiKey]:
    """Oldest first; with ``tenant``, only that tenant's."""
    mine = only(ApiKey.owner, tenant)
    return session.scalars(select(ApiKey).where(mine).order_by(ApiKey.id)).all()


def change_key(
    session: Session, key_id: str, changes: Mapping[str, Any], *, tenant: str | None = None
) -> ApiKey:
    """Set new limits or consent, by the names of the columns; what is not named stays.

    Raises:
        RowNotFound: no such key, or another tenant's.
    """
    key = get_key(session, key_id, tenant=tenant)
    for name, value in changes.items():
        setattr(key, name, value)
    return key


def revoke_key(session: Session, key_id: str, *, tenant: str | None = None) -> ApiKey:
    """Close a key for good; closing it twice is fine.

    Raises:
        RowNotFound: no such key, or another tenant's.
    """
    key = get_key(session, key_id, tenant=tenant)
    key.revoked_at = key.revoked_at or utc_now()
    return key


def get_key(session: Session, key_id: str, *, tenant: str | None = None) -> ApiKey:
    key = session.get(ApiKey, key_id)
    if key is None or not sees(tenant, key.owner):
        raise RowNotFound("key", key_id, "List them: `everlearn key list`.")
    return key


def add_tokens_used(session: Session, spent: Mapping[str, int]) -> dict[str, int]:
    """Add tokens to what keys have used; by key id, the new sums.

    In the order of the ids, so that two gateways that write at once never wait for each other.
    """
    sums: dict[str, int] = {}
    for key_id in sorted(spent):
        row = session.execute(
            update(ApiKey)
            .where(ApiKey.id == key_id)
            .values(tokens_used=ApiKey.tokens_used + spent[key_id])
            .execution_options(synchronize_session=False)
            .returning(ApiKey.tokens_used)
        ).one_or_none()
        if row is not None:
            sums[key_id] = row[0]
    return sums


def _take_admin_key(session: Session, given: str) -> None:
    key = session.scalar(select(ApiKey).where(ApiKey.key_hash == hash_key(given)))
    if len(given) < MIN_SECRET_CHARS:
        problem = f"has {len(given)} characters, and {MIN_SECRET_CHARS} are needed"
    elif key is not None and key.revoked_at is not None:
        problem = f"is the key {key.id}, which was revoked"
    elif key is not None and Scope.ADMIN not in key.scopes:
        problem = f"is the key {key.id}, which has the scopes {', '.join(key.scopes)} and not admin"
    elif key is not None and key.owner is not None:
        problem = f"is the key {key.id}, which belongs to the tenant {key.owner}"
    else:
        problem = None
    if problem:
        raise SetupError(
            f"EVERLEARN_ADMIN_KEY {problem}. Set it to a new secret, such as "
            "`openssl rand -base64 32` prints, or leave it empty: one is minted where none exists."
        )
    if key is None:
        add_key(session, "admin (from the settings)", [Scope.ADMIN], secret=given)
