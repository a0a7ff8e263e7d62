"""Limits of a key: requests and tokens a minute, and a budget of tokens, shared by all gateways.

A request is judged in memory and costs no round trip. Each gateway counts what it serves and, four
times a second, adds its counts to shared ones in Valkey in one pipeline and reads the sums back, for
the keys that were used since. So a key can overshoot by what each gateway lets pass in its first
quarter of a second, before it knows of the others. While Valkey is away, each gateway judges by its
own counts; they are added when it is back.

The window slides: the present minute, and of the minute before as much as still lies within sixty
seconds, taking its traffic as even. Two counters a key are enough for that, and there is no burst of
twice the limit around the turn of a minute, as a fixed window would let through. Gateways must agree
on the time to about a second.

Tokens are known when a reply ends, so a request is admitted while those of the minute are below the
limit. The budget is judged by the database's sum (read with the key, so at most a second old) and
what this gateway has not yet written there; it writes once a second, for all keys at once.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

import redis.asyncio as redis
import structlog
from fastapi import Request

from server.core.clock import utc_now
from server.core.errors import BudgetSpent, RateLimited
from server.core.security import Scope
from server.db.session import DATABASE_AWAY, Database
from server.http.auth import require
from server.http.shared import VALKEY_AWAY
from server.services.keys import UNLIMITED, Principal, add_tokens_used

log = structlog.get_logger(__name__)

WINDOW_S = 60
SYNC_S = 0.25
WRITE_S = 1.0

REQUESTS = "requests"
TOKENS = "tokens"

_PREFIX = "everlearn:limits:"
_EXPIRE_S = 3 * WINDOW_S


@dataclass(frozen=True, slots=True)
class Window:
    """What was used in this minute and the one before; ``elapsed_s`` of this one have passed."""

    before: int
    now: int
    elapsed_s: float

    @property
    def used(self) -> float:
        """An estimate of the last sixty seconds."""
        return self.before * (1 - self.elapsed_s / WINDOW_S) + self.now

    def wait_s(self, limit: int) -> float:
        """Seconds until one more fits, if nothing else comes; 0 when it does now."""
        if self.used + 1 <= limit:
            return 0
        if self.now + 1 <= limit:  # then the minute before fades in time
            return WINDOW_S * (1 - (limit - self.now - 1) / self.before) - self.elapsed_s
        return WINDOW_S - self.elapsed_s + WINDOW_S * (1 - (limit - 1) / self.now)

    @property
    def reset_s(self) -> float:
        """Seconds until nothing counts any more."""
        if self.now:
            return 2 * WINDOW_S - self.elapsed_s
        return WINDOW_S - self.elapsed_s if self.before else 0


@dataclass(slots=True)
class _Counter:
    """Counts of one thing for one key, by minute."""

    sums: dict[int, int] = field(default_factory=dict)
    """Of all gateways, as far as they are known here; what is unsent is in them."""
    unsent: dict[int, int] = field(default_factory=dict)

    def add(self, minute: int, amount: int) -> None:
        self.sums[minute] = self.sums.get(minute, 0) + amount
        self.unsent[minute] = self.unsent.get(minute, 0) + amount

    def learn(self, minute: int, shared: int) -> None:
        """Take the shared sum; what came here since it was sent is not in it yet."""
        self.sums[minute] = shared + self.unsent.get(minute, 0)

    def forget_before(self, minute: int) -> None:
        for counts in (self.sums, self.unsent):
            for old in [one for one in counts if one < minute]:
                del counts[old]


@dataclass(slots=True)
class _Tokens:
    """What a key has used of its budget, as far as this gateway knows."""

    stored: int = 0
    """The database's sum after our last write."""
    unwritten: int = 0


class Limiter:
    """Admits requests, counts what they use, and tells clients what is left.

    Args:
        valkey: where gateways share their counts; None counts for this process alone.
        clock: seconds since the epoch, the same for all gateways.
    """

    def __init__(
        self,
        database: Database,
        valkey: redis.Redis | None = None,
        *,
        clock: Callable[[], float] = lambda: utc_now().timestamp(),
    ) -> None:
        self._database = database
        self._valkey = valkey
        self._clock = clock
        self._counters: dict[tuple[str, str], _Counter] = {}
        self._touched: set[tuple[str, str]] = set()
        self._tokens: dict[str, _Tokens] = {}
        self._is_away = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to share counts and to write what was spent."""
        for pause_s, work in ((SYNC_S, self.sync), (WRITE_S, self.write_spent)):
            self._tasks.append(asyncio.create_task(_repeat(pause_s, work)))

    async def close(self) -> None:
        """Stop, and write what is left to write."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.sync()
        await self.write_spent()

    def admit(self, principal: Principal) -> None:
        """Count a request, if the key's limits leave room for it; one refused is not counted.

        Raises:
            RateLimited: of requests or tokens, this minute's are used up.
            BudgetSpent: there is nothing left of the budget.
        """
        limits = principal.limits
        if limits == UNLIMITED:
            return
        budget = limits.token_budget
        if budget is not None and self.tokens_used(principal) >= budget:
            raise BudgetSpent(budget, self.headers(principal))
        for noun, limit in _per_minute(principal).items():
            wait_s = self._window(principal.id, noun).wait_s(limit)
            if wait_s > 0:
                raise RateLimited(noun, limit, math.ceil(wait_s), self.headers(principal))
        if limits.requests_per_minute is not None:
            self._count(principal.id, REQUESTS, 1)

    def spend(self, principal: Principal, tokens: int) -> None:
        """Count the tokens, prompt and completion, that a reply has used."""
        if tokens <= 0:
            return
        if principal.limits.tokens_per_minute is not None:
            self._count(principal.id, TOKENS, tokens)
        self._tokens.setdefault(principal.id, _Tokens()).unwritten += tokens

    def headers(self, principal: Principal) -> dict[str, str]:
        """OpenAI's rate-limit headers for the limits that the key has."""
        headers: dict[str, str] = {}
        if principal.limits == UNLIMITED:
            return headers
        for noun, limit in _per_minute(principal).items():
            window = self._window(principal.id, noun)
            headers[f"x-ratelimit-limit-{noun}"] = str(limit)
            headers[f"x-ratelimit-remaining-{noun}"] = str(max(0, math.floor(limit - window.used)))
            headers[f"x-ratelimit-reset-{noun}"] = duration(window.reset_s)
        return headers

    def tokens_used(self, principal: Principal) -> int:
        """Of the budget: what the database has, and what is still to be written there."""
        tokens = self._tokens.get(principal.id)
        if tokens is None:
            return principal.tokens_used
        return max(principal.tokens_used, tokens.stored) + tokens.unwritten

    async def sync(self) -> None:
        """Exchange counts with the other gateways; does nothing while Valkey is away."""
        minute = int(self._clock() // WINDOW_S)
        touched, self._touched = self._touched, set()
        self._drop_old(minute, keep=touched)
        if self._valkey is None or not touched:
            return
        try:
            await self._exchange(self._valkey, minute, sorted(touched))
        except VALKEY_AWAY as error:
            self._touched |= touched
            if not self._is_away:
                log.warning("limits_not_shared", error=str(error))
            self._is_away = True
        else:
            self._is_away = False

    async def write_spent(self) -> None:
        """Add what was spent to the database; what cannot be written now is written later."""
        for key_id in [one for one, tokens in self._tokens.items() if not tokens.unwritten]:
            del self._tokens[key_id]  # written a round ago, and read back with the key since
        due = {key_id: tokens.unwritten for key_id, tokens in self._tokens.items()}
        if not due:
            return
        try:
            sums = await self._database.run(add_tokens_used, due)
        except DATABASE_AWAY as error:
            log.warning("spent_tokens_not_written", keys=len(due), error=str(error)[:300])
            return
        for key_id, amount in due.items():
            self._tokens[key_id].unwritten -= amount
            self._tokens[key_id].stored = sums.get(key_id, 0)

    def _window(self, key_id: str, noun: str) -> Window:
        now = self._clock()
        minute = int(now // WINDOW_S)
        sums = self._counter(key_id, noun).sums
        return Window(sums.get(minute - 1, 0), sums.get(minute, 0), now - minute * WINDOW_S)

    def _count(self, key_id: str, noun: str, amount: int) -> None:
        self._counter(key_id, noun).add(int(self._clock() // WINDOW_S), amount)

    def _counter(self, key_id: str, noun: str) -> _Counter:
        """Whoever is asked about is read anew at the next exchange, whether refused or not."""
        key = (key_id, noun)
        self._touched.add(key)
        return self._counters.setdefault(key, _Counter())

    async def _exchange(
        self, valkey: redis.Redis, minute: int, touched: list[tuple[str, str]]
    ) -> None:
        minutes = (minute - 1, minute)
        fields = [f"{key_id}:{noun}" for key_id, noun in touched]
        sent: list[tuple[_Counter, int, int]] = []
        pipeline = valkey.pipeline(transaction=False)
        for one in minutes:
            for key, name in zip(touched, fields, strict=True):
                amount = self._counters[key].unsent.get(one)
                if amount:
                    pipeline.hincrby(f"{_PREFIX}{one}", name, amount)
                    sent.append((self._counters[key], one, amount))
            pipeline.expire(f"{_PREFIX}{one}", _EXPIRE_S)
        for one in minutes:
            pipeline.hmget(f"{_PREFIX}{one}", fields)
        replies = await pipeline.execute()
        for counter, one, amount in sent:
            counter.unsent[one] -= amount
        for one, values in zip(minutes, replies[-2:], strict=True):
            for key, value in zip(touched, values, strict=True):
                self._counters[key].learn(one, int(value or 0))

    def _drop_old(self, minute: int, *, keep: Collection[tuple[str, str]]) -> None:
        for key, counter in list(self._counters.items()):
            counter.forget_before(minute - 1)
            if not counter.sums and key not in keep:
                del self._counters[key]


def get_limiter(request: Request) -> Limiter:
    """This process's limiter, as ``create_app`` made it."""
    limiter: Limiter = request.app.state.limiter
    return limiter


def admitted(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency like :func:`require` that also counts the request against the key's limits.

    Raises:
        Unauthenticated, Forbidden: as :func:`require`.
        RateLimited, BudgetSpent: the key has used up what it may.
    """

    identify = require(scope)

    async def principal(request: Request) -> Principal:
        caller = await identify(request)
        get_limiter(request).admit(caller)
        return caller

    return principal


def duration(seconds: float) -> str:
    """As OpenAI writes how long it takes until a limit is whole again: ``59ms``, ``1s``, ``1m0s``."""
    if 0 < seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


async def _repeat(pause_s: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(pause_s)
        try:
            await work()
        except Exception as error:
            # Limits must outlive every failure of what shares them.
            log.error("limits_failed", work=work.__name__, error=str(error)[:300])


def _per_minute(principal: Principal) -> Mapping[str, int]:
    limits = principal.limits
    pairs = ((REQUESTS, limits.requests_per_minute), (TOKENS, limits.tokens_per_minute))
    return {noun: limit for noun, limit in pairs if limit is not None}
