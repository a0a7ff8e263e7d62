"""One engine as a process sees and uses it: its state, what it holds, the loop's single look.

What it holds is asked of it, round after round, and never stored. One that is new, that was away,
or that has lost what it held gets no request before every version that an alias points at is loaded
and proven on it.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from hashlib import blake2b
from typing import Protocol

import structlog

from server.core.clock import monotonic
from server.core.errors import (
    AppError,
    EngineError,
    EngineUnavailable,
    EngineUnreachable,
    EngineUnsafe,
)
from server.core.settings import EngineSettings
from server.engine.client import EngineClient
from server.engine.control import EngineControl
from server.engine.probe import check_engine
from server.engine.reconcile import aliased_versions
from server.engine.residency import Residency, Watch
from server.engine.routing import RoutingSnapshot, VersionRoute

log = structlog.get_logger(__name__)

UNSAFE_RETRY_S = 10.0
ROUTES_TIMEOUT_S = 5.0


class State(StrEnum):
    """What a replica is to this process."""

    JOINING = "joining"
    """New; has not answered yet."""
    HEALING = "healing"
    """It answers, and lacks a version that an alias points at."""
    HEALTHY = "healthy"
    AWAY = "away"
    """It does not answer."""
    UNSAFE = "unsafe"
    """The probe refused it."""
    DRAINING = "draining"
    """Takes no new request; what runs on it is finished."""


class Routes(Protocol):
    """Where the loops learn what is wanted."""

    snapshot: RoutingSnapshot | None

    async def refresh(self) -> None:
        """Read it anew; raises what the database raises."""


class Probe:
    """What a replica is held against before it is used."""

    def __init__(self, settings: EngineSettings, base_engine_name: str, trained_rank: int) -> None:
        self._settings = settings
        self._base_engine_name = base_engine_name
        self._trained_rank = trained_rank

    async def __call__(self, control: EngineControl) -> None:
        """Return when the engine is safe; raises as :func:`check_engine` does."""
        await check_engine(
            control,
            base_engine_name=self._base_engine_name,
            adapters_needed=min(self._settings.max_loras, 3),
            trained_rank=self._trained_rank,
            max_lora_rank=self._settings.max_lora_rank,
        )


class Replica:
    """One engine as this process sees and uses it."""

    def __init__(
        self,
        url: str,
        settings: EngineSettings,
        probe: Probe,
        *,
        clock: Callable[[], float] = monotonic,
        watch: Watch | None = None,
    ) -> None:
        self.client = EngineClient(settings, url)
        self.url = self.client.url
        self.control = EngineControl(self.client, settings)
        self.residency = Residency(
            self.control, capacity=settings.max_cpu_loras, clock=clock, watch=watch
        )
        self.is_draining = False
        self.outstanding = 0
        """Requests of this process that run on it."""
        self.error: AppError | None = EngineUnavailable("it is still starting")
        self.has_served = False
        """Whether the probe has passed since this process knows it."""
        self.woken = asyncio.Event()
        self._state = State.JOINING
        self._probe = probe
        self._needs_probe = True
        self._probe_at = 0.0
        self._clock = clock
        self._mark = blake2b(self.url.encode(), digest_size=8)

    @property
    def state(self) -> State:
        return State.DRAINING if self.is_draining else self._state

    @property
    def takes_requests(self) -> bool:
        return self._state is State.HEALTHY and not self.is_draining

    @property
    def is_reachable(self) -> bool:
        """Whether it could serve, once it holds the weights."""
        return self._state in (State.HEALTHY, State.HEALING) and not self.is_draining

    @property
    def may_be_tried(self) -> bool:
        """Whether a request may go to it when there is no other: it was fit to serve once."""
        return self.has_served and self._state is not State.UNSAFE and not self.is_draining

    @property
    def is_only_silent(self) -> bool:
        """Whether it is away for no other reason than that it took too long to answer a look: an
        engine at its limit does that, too, and still serves."""
        error = self.error
        return (
            self.may_be_tried
            and self._state is State.AWAY
            and isinstance(error, EngineUnavailable)
            and not isinstance(error, EngineUnreachable)
            and isinstance(error.__cause__, TimeoutError)
        )

    def holds(self, version: VersionRoute | None) -> bool:
        """Whether it can answer with these weights; None is the base model."""
        return version is None or self.residency.holds(version)

    def why(self) -> str:
        """Its state and what is wrong, in words."""
        return f"{self.state}" + (f" ({self.error})" if self.error is not None else "")

    def rank(self, affinity: bytes) -> bytes:
        """Its place among the replicas for one conversation: the highest goes first."""
        mark = self._mark.copy()
        mark.update(affinity)
        return mark.digest()

    def suspect(self, error: AppError) -> None:
        """It broke off or refused a connection: away until a look at it says otherwise."""
        if self._state not in (State.AWAY, State.UNSAFE):
            self._become(State.AWAY, error)
            self._needs_probe = True
            self.woken.set()

    def has_lost(self, engine_name: str) -> None:
        """It answered that it does not know weights which it held: it was started anew, likely."""
        self.residency.forget(engine_name)
        if self._state is State.HEALTHY:
            self._become(State.HEALING, EngineError(f"It has lost {engine_name}."))
            self._needs_probe = True
            self.woken.set()

    async def tend(self, routes: Routes) -> None:
        """One look: probe it when it is new, load and unload what is due, judge its health."""
        try:
            # The list first, the routes second: a worker registers a candidate before it loads it,
            # so whatever is listed is known by then.
            await self.residency.observe()
            is_fresh = await _refreshed(routes)
            if (snapshot := routes.snapshot) is None:
                return
            needed = {version.engine_name for version in aliased_versions(snapshot)}
            if needed & self.residency.take_lost():
                self._needs_probe = True  # it was started anew, maybe as something else
            if self._needs_probe:
                await self._check()
        except EngineUnsafe as error:
            self._become(State.UNSAFE, error)
            return
        except EngineError as error:
            self._become(State.AWAY, error)
            self._needs_probe = True  # whatever answers next may be another engine
            return
        if self._needs_probe or self.is_draining:
            return
        self._judge(snapshot)
        await self.residency.reconcile(
            snapshot, may_unload=is_fresh, on_load=lambda: self._judge(snapshot)
        )
        self._judge(snapshot)

    async def close(self) -> None:
        """Stop loading, close the connections."""
        await self.residency.close()
        await self.client.close()

    async def _check(self) -> None:
        if self._clock() < self._probe_at:
            return
        try:
            await self._probe(self.control)
        except EngineUnsafe:
            self._probe_at = self._clock() + UNSAFE_RETRY_S
            raise
        self._needs_probe = False
        self.has_served = True
        self._become(State.HEALING, None)

    def _judge(self, snapshot: RoutingSnapshot) -> None:
        """Healed when all is there that aliases point at; once healed, it stays so."""
        if self._state not in (State.HEALING, State.HEALTHY):
            return  # suspected meanwhile
        missing = [
            version.engine_name
            for version in aliased_versions(snapshot)
            if not self.residency.holds(version)
        ]
        error = EngineError(self.residency.why_not(missing[0])) if missing else None
        self._become(
            State.HEALING if missing and self._state is State.HEALING else State.HEALTHY, error
        )

    def _become(self, state: State, error: AppError | None) -> None:
        if (state, str(error)) != (self._state, str(self.error)):
            level = log.warning if state in (State.AWAY, State.UNSAFE) else log.info
            level("replica_state", url=self.url, state=str(state), error=error and str(error))
        self._state, self.error = state, error


async def _refreshed(routes: Routes) -> bool:
    """Whether the routes are read now; without a database, a replica is healed by the last ones."""
    try:
        async with asyncio.timeout(ROUTES_TIMEOUT_S):
            await routes.refresh()
    except Exception as error:  # whatever the database raises; who watches the routes logs it
        log.debug("routes_not_read", error=type(error).__name__)
        return False
    return True
