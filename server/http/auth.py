"""Keys: from the header to a Principal, and the scope a route demands.

A key is looked up once a second at most. Whoever changes or revokes one tells every gateway through
Valkey, and it is looked up anew at once; while Valkey is away, that second is how long a change takes
to be seen. While the database is away, keys that were good keep their right for five minutes:
serving must not stop.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import redis.asyncio as redis
import structlog
from fastapi import Request

from server.core.clock import monotonic
from server.core.errors import DatabaseUnavailable, Forbidden, Unauthenticated
from server.core.security import Scope, hash_key
from server.db.session import DATABASE_AWAY, Database
from server.http.shared import VALKEY_AWAY
from server.runtime import Runtime
from server.services import keys
from server.services.keys import Principal

log = structlog.get_logger(__name__)

CHANNEL = "everlearn:keys-changed"
"""Carries the id of a key that was changed or revoked."""

FRESH_S = 1.0
STALE_S = 300.0
PATIENCE_S = 0.5
"""How long a key that was good a moment ago waits for the database."""
LOOKUP_S = 5.0
"""How long any other does."""
MAX_CACHED = 10_000
MAX_KEY_CHARS = 512
RECONNECT_S = 1.0
LISTEN_S = 5.0

_HOW = "Send `Authorization: Bearer el_…`; an admin mints keys with `everlearn key create NAME`."


@dataclass(frozen=True, slots=True)
class _Entry:
    principal: Principal | None
    read_at: float


@dataclass(frozen=True, slots=True)
class _Lookup:
    task: "asyncio.Task[Principal | None]"
    began: float


class KeyRing:
    """Looks keys up, and remembers the answer by the key's hash for a moment.

    Args:
        valkey: where gateways tell each other of changes; None tells nobody.
    """

    def __init__(
        self,
        database: Database,
        valkey: redis.Redis | None = None,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._database = database
        self._valkey = valkey
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lookups: dict[str, _Lookup] = {}
        self._changes = 0
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to hear of changes made elsewhere; waits for nobody."""
        if self._valkey is not None:
            self._listener = asyncio.create_task(self._listen(self._valkey))

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def authenticate(self, secret: str) -> Principal | None:
        """The owner of a key; None when it is unknown or revoked.

        Raises:
            DatabaseUnavailable: it does not answer, and the key was not seen good of late.
        """
        if len(secret) > MAX_KEY_CHARS:
            return None
        key_hash = hash_key(secret)
        now = self._clock()
        entry = self._entries.get(key_hash)
        if entry is not None and now - entry.read_at < FRESH_S:
            return entry.principal
        is_known_good = (
            entry is not None and entry.principal is not None and now - entry.read_at <= STALE_S
        )
        lookup = self._lookup(key_hash, secret)
        patience_s = LOOKUP_S
        if is_known_good:
            # A database that hangs must not hold up who was good a moment ago.
            patience_s = max(0.0, lookup.began + PATIENCE_S - now)
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.shield(lookup.task)
        except (*DATABASE_AWAY, TimeoutError) as error:
            if entry is None or not is_known_good:
                raise DatabaseUnavailable() from error
            return entry.principal

    def _lookup(self, key_hash: str, secret: str) -> "_Lookup":
        """The look into the database under way for this key, or a new one: one at a time."""
        lookup = self._lookups.get(key_hash)
        if lookup is None:
            task = asyncio.create_task(self._look_up(key_hash, secret))
            lookup = self._lookups[key_hash] = _Lookup(task, self._clock())
            task.add_done_callback(partial(self._end_lookup, key_hash))
        return lookup

    async def _look_up(self, key_hash: str, secret: str) -> Principal | None:
        now, changes = self._clock(), self._changes
        async with asyncio.timeout(LOOKUP_S):
            principal = await self._database.read(keys.authenticate, secret)
        if changes == self._changes:  # else this may have been read before the change
            self._remember(key_hash, _Entry(principal, now))
        return principal

    def _end_lookup(self, key_hash: str, task: "asyncio.Task[Principal | None]") -> None:
        lookup = self._lookups.get(key_hash)
        if lookup is not None and lookup.task is task:
            del self._lookups[key_hash]
        if not task.cancelled():
            task.exception()  # seen by those who wait for it, or by nobody any more

    async def changed(self, key_id: str) -> None:
        """Use a key as it is in the database from now on, here and on every gateway.

        Call it when the change is committed. Elsewhere it is seen within a second even if Valkey
        is away.
        """
        self.forget(key_id)
        if self._valkey is None:
            return
        try:
            await self._valkey.publish(CHANNEL, key_id)
        except VALKEY_AWAY as error:
            log.warning("key_change_not_told", key=key_id, error=str(error))

    def forget(self, key_id: str) -> None:
        """Look a key up anew when it comes next."""
        self._changes += 1
        self._lookups.clear()  # what is under way may have read the key before the change
        for key_hash, entry in list(self._entries.items()):
            if entry.principal is not None and entry.principal.id == key_id:
                del self._entries[key_hash]

    async def _listen(self, valkey: redis.Redis) -> None:
        while True:
            try:
                async with valkey.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(CHANNEL)
                    while True:
                        message = await channel.get_message(timeout=LISTEN_S)
                        if message is not None:
                            self.forget(message["data"])
            except VALKEY_AWAY as error:
                log.warning("key_changes_not_heard", error=str(error))
                await asyncio.sleep(RECONNECT_S)

    def _remember(self, key_hash: str, entry: _Entry) -> None:
        self._entries[key_hash] = entry
        self._entries.move_to_end(key_hash)
        while len(self._entries) > MAX_CACHED:
            self._entries.popitem(last=False)


def get_key_ring(request: Request) -> KeyRing:
    """This process's keys, as ``create_app`` made them."""
    key_ring: KeyRing = request.app.state.key_ring
    return key_ring


def get_runtime(request: Request) -> Runtime:
    """This process's runtime, as ``create_app`` made it."""
    runtime: Runtime = request.app.state.runtime
    return runtime


async def identify(request: Request) -> Principal:
    """The owner of the key that came with a request.

    Raises:
        Unauthenticated: no key, or one that is not good.
    """
    owner = await get_key_ring(request).authenticate(_bearer(request))
    if owner is None:
        raise Unauthenticated(f"This key is unknown or revoked. {_HOW}")
    return owner


def require(*scopes: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that gives the caller's Principal, or refuses; any one of the scopes will do.

    Raises:
        Unauthenticated: no key, or one that is not good.
        Forbidden: the key has none of the scopes.
    """

    async def principal(request: Request) -> Principal:
        owner = await identify(request)
        if not any(owner.may(scope) for scope in scopes):
            raise Forbidden([*map(str, scopes)], sorted(owner.scopes))
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
