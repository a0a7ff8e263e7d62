"""What one engine holds right now, and who is using it: load once, prove, use, let go.

The engine's own list is the only truth about what is loaded; it is read again every round. A
version that this process loads is used only once it is proven; one that was found in the list was
proven by whoever loaded it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context

import structlog

from server.core.clock import monotonic
from server.core.errors import AdapterNotProven, AppError
from server.engine.control import EngineControl
from server.engine.reconcile import Applied, apply, candidate_names, desired_versions, plan
from server.engine.routing import RoutingSnapshot

log = structlog.get_logger(__name__)

UNLOAD_GRACE_S = 30.0
"""A name must have been unwanted and unused for this long before it is unloaded: a promotion loads
before it moves the alias, and a worker may be a moment ahead of our snapshot."""

RETRY_S = 15.0
"""Pause before a load that failed is tried again by itself; a request tries at once."""


class Residency:
    """The adapters of one engine, as seen and used by this process."""

    def __init__(self, control: EngineControl, *, clock: Callable[[], float] = monotonic) -> None:
        self._control = control
        self._clock = clock
        self._listed: set[str] = set()
        self._in_flight: Counter[str] = Counter()
        self._wanted_at: dict[str, float] = {}
        self._failed_at: dict[str, float] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._unproven: set[str] = set()

    @property
    def listed(self) -> frozenset[str]:
        """Engine names that may be used: at the last look, and those loaded since."""
        return frozenset(self._listed)

    @contextmanager
    def lease(self, engine_name: str) -> Iterator[None]:
        """Keep a name loaded while a request uses it."""
        self._in_flight[engine_name] += 1
        try:
            yield
        finally:
            self._in_flight[engine_name] -= 1
            if not self._in_flight[engine_name]:
                del self._in_flight[engine_name]
            self._wanted_at[engine_name] = self._clock()

    async def observe(self) -> None:
        """Read the engine's list.

        Raises:
            EngineUnavailable: it does not answer.
        """
        before = set(self._listed)
        listed = {model.name for model in await self._control.models()} - self._unproven
        # What was loaded while the list was on its way is not in it.
        self._listed = listed | (self._listed - before)

    def forget(self, engine_name: str) -> None:
        """The engine has answered that it does not know this name."""
        self._listed.discard(engine_name)

    async def ensure_loaded(self, engine_name: str, path: str, base_engine_name: str) -> None:
        """Return when the engine answers with these weights; many callers cause one load.

        Raises:
            AdapterRefused, AdapterNotProven, EngineUnavailable: it cannot.
        """
        self._wanted_at[engine_name] = self._clock()
        if engine_name in self._listed:
            return
        task = self._loading.get(engine_name)
        if task is None:
            task = asyncio.create_task(
                self._load(engine_name, path, base_engine_name),
                context=Context(),  # it serves whoever waits, not the request that came first
            )
            self._loading[engine_name] = task
            task.add_done_callback(lambda done: self._loaded(engine_name, done))
        await asyncio.shield(task)  # one impatient caller must not stop it for the others

    async def reconcile(self, snapshot: RoutingSnapshot) -> Applied:
        """Bring the engine closer to what the registry wants. Call :meth:`observe` before."""
        now = self._clock()
        bases = {
            version.engine_name: routes.base_engine_name
            for routes in snapshot.adapters.values()
            for version in routes.versions.values()
        }
        desired = desired_versions(snapshot)
        self._wanted_at |= {name: now for name, _ in desired}
        for name in self._listed:
            self._wanted_at.setdefault(name, now)
        recent = {name for name, at in self._wanted_at.items() if now - at < UNLOAD_GRACE_S}
        self._wanted_at = {name: at for name, at in self._wanted_at.items() if name in self._listed}
        waiting = {name for name, at in self._failed_at.items() if now - at < RETRY_S}
        orders = plan(
            {load for load in desired if load[0] not in waiting},
            self._listed,
            self._in_flight,
            candidate_names(snapshot) | recent | {name for name, _ in desired},
            lines=snapshot.adapters.keys(),
        )
        return await apply(
            orders,
            load=lambda name, path: self.ensure_loaded(name, path, bases[name]),
            unload=self._unload,
        )

    async def close(self) -> None:
        """Stop loading."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, engine_name: str, path: str, base_engine_name: str) -> None:
        began = self._clock()
        self._unproven.add(engine_name)
        await self._control.load_adapter(engine_name, path)
        try:
            await self._control.prove_adapter(engine_name, base_engine_name)
        except AdapterNotProven:
            await self._control.unload_adapter(engine_name)
            raise
        self._unproven.discard(engine_name)
        self._listed.add(engine_name)
        seconds = round(self._clock() - began, 3)
        log.info("adapter_loaded", engine_name=engine_name, seconds=seconds)

    def _loaded(self, engine_name: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(engine_name, None)
        self._failed_at.pop(engine_name, None)
        if not task.cancelled() and isinstance(task.exception(), AppError):
            self._failed_at[engine_name] = self._clock()

    async def _unload(self, engine_name: str) -> None:
        if self._in_flight.get(engine_name):  # begun since the plan was made
            return
        self._listed.discard(engine_name)
        await self._control.unload_adapter(engine_name)
        log.info("adapter_unloaded", engine_name=engine_name)
