"""Keys: from the header to a Principal, and the scope a route demands.

A key is looked up once a second at most, so revoking one takes a second to be seen. While the
database is away, keys that were good keep their right for five minutes: serving must not stop.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from server.core.clock import monotonic
from server.core.errors import Forbidden, Unauthenticated
from server.core.security import Scope, hash_key
from server.db.session import DATABASE_AWAY, Database
from server.runtime import Runtime
from server.services import keys
from server.services.keys import Principal

FRESH_S = 1.0
STALE_S = 300.0
MAX_CACHED = 10_000
MAX_KEY_CHARS = 512

_HOW = "Send `Authorization: Bearer el_…`; an admin mints keys with `everlearn key create NAME`."


@dataclass(frozen=True, slots=True)
class _Entry:
    principal: Principal | None
    read_at: float


class KeyRing:
    """Looks keys up, and remembers the answer by the key's hash for a moment."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = monotonic) -> None:
        self._database = database
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    async def authenticate(self, secret: str) -> Principal | None:
        """The owner of a key; None when it is unknown or revoked."""
        if len(secret) > MAX_KEY_CHARS:
            return None
        key_hash = hash_key(secret)
        entry = self._entries.get(key_hash)
        now = self._clock()
        if entry is not None and now - entry.read_at < FRESH_S:
            return entry.principal
        try:
            principal = await self._database.read(keys.authenticate, secret)
        except DATABASE_AWAY:
            if entry is None or entry.principal is None or now - entry.read_at > STALE_S:
                raise
            return entry.principal
        self._remember(key_hash, _Entry(principal, now))
        return principal

    def _remember(self, key_hash: str, entry: _Entry) -> None:
        self._entries[key_hash] = entry
        self._entries.move_to_end(key_hash)
        while len(self._entries) > MAX_CACHED:
            self._entries.popitem(last=False)


def get_runtime(request: Request) -> Runtime:
    """This process's runtime, as ``create_app`` made it."""
    runtime: Runtime = request.app.state.runtime
    return runtime


async def identify(request: Request) -> Principal:
    """The owner of the key that came with a request.

    Raises:
        Unauthenticated: no key, or one that is not good.
    """
    key_ring: KeyRing = request.app.state.key_ring
    owner = await key_ring.authenticate(_bearer(request))
    if owner is None:
        raise Unauthenticated(f"This key is unknown or revoked. {_HOW}")
    return owner


def require(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that gives the caller's Principal, or refuses.

    Raises:
        Unauthenticated: no key, or one that is not good.
        Forbidden: the key lacks the scope.
    """

    async def principal(request: Request) -> Principal:
        owner = await identify(request)
        if not owner.may(scope):
            raise Forbidden(scope.value, ", ".join(sorted(owner.scopes)) or "(none)")
        return owner

    return principal


def _bearer(request: Request) -> str:
    given = request.headers.get("authorization")
    if given is None and (key := request.headers.get("x-api-key", "").strip()):
        return key  # as Anthropic's clients send it
    kind, _, secret = (given or "").partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        raise Unauthenticated(f"This call needs a key. {_HOW}")
    return secret.strip()
