"""What one engine holds right now, and who is using it: load once, prove, use, let go.

The engine's own list is the only truth about what is loaded; it is read again every round. A
version that this process loads is used only once it is proven; one that was found in the list, out
of the right folder, was proven by whoever loaded it. Files are loaded only with the digest that was
registered for them.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Protocol

import structlog

from adapters import artifact
from server.core.clock import monotonic
from server.core.errors import AdapterNotProven, AdapterRefused, AppError
from server.engine.control import EngineControl
from server.engine.reconcile import Applied, apply, candidate_names, desired_versions, plan
from server.engine.routing import RoutingSnapshot, VersionRoute

log = structlog.get_logger(__name__)

UNLOAD_GRACE_S = 30.0
"""A name must have been unwanted and unused for this long before it is unloaded: a promotion loads
before it moves the alias, and a worker may be a moment ahead of our snapshot."""

RETRY_S = 15.0
"""Pause before a load that failed is tried again by itself; a request tries at once."""


class Watch(Protocol):
    """Who is told of what becomes of an engine's adapters, such as metrics."""

    def loaded(self, seconds: float) -> None:
        """A version was loaded and proven."""

    def failed(self, stage: str) -> None:
        """``load``, ``prove`` or ``unload`` went wrong."""

    def idle(self, engine_name: str) -> None:
        """The last request that used a name is over."""


class _Nobody:
    """A watch that does not look."""

    def loaded(self, seconds: float) -> None: ...

    def failed(self, stage: str) -> None: ...

    def idle(self, engine_name: str) -> None: ...


class Residency:
    """The adapters of one engine, as seen and used by this process."""

    def __init__(
        self,
        control: EngineControl,
        *,
        clock: Callable[[], float] = monotonic,
        watch: Watch | None = None,
    ) -> None:
        self._control = control
        self._clock = clock
        self._watch = watch or _Nobody()
        self._listed: dict[str, str] = {}
        self._in_flight: Counter[str] = Counter()
        self._wanted_at: dict[str, float] = {}
        self._failed_at: dict[str, float] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._unproven: set[str] = set()

    def holds(self, version: VersionRoute) -> bool:
        """Whether these weights may be used: at the last look, or loaded since."""
        name = version.engine_name
        return self._listed.get(name) == version.path and name not in self._unproven

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
                self._watch.idle(engine_name)
            self._wanted_at[engine_name] = self._clock()

    def leases(self) -> dict[str, int]:
        """Running requests by engine name; a name that nothing uses is not there."""
        return dict(self._in_flight)

    async def observe(self) -> None:
        """Read the engine's list.

        Raises:
            EngineUnavailable: it does not answer.
        """
        before = set(self._listed)
        listed = {model.name: model.root for model in await self._control.models()}
        # What was loaded while the list was on its way is not in it.
        since = {name: root for name, root in self._listed.items() if name not in before}
        self._listed = listed | since
        self._unproven &= self._listed.keys() | self._loading.keys()

    def forget(self, engine_name: str) -> None:
        """The engine has answered that it does not know this name."""
        self._listed.pop(engine_name, None)

    async def ensure_loaded(self, version: VersionRoute, base_engine_name: str) -> None:
        """Return when the engine answers with these weights; many callers cause one load.

        Raises:
            AdapterRefused: the engine does not take them, or the files are not what was registered.
            AdapterNotProven, EngineUnavailable: it cannot serve them.
        """
        engine_name = version.engine_name
        self._wanted_at[engine_name] = self._clock()
        if self.holds(version):
            return
        task = self._loading.get(engine_name)
        if task is None:
            task = asyncio.create_task(
                self._load(version, base_engine_name),
                context=Context(),  # it serves whoever waits, not the request that came first
            )
            self._loading[engine_name] = task
            task.add_done_callback(lambda done: self._loaded(engine_name, done))
        await asyncio.shield(task)  # one impatient caller must not stop it for the others

    async def reconcile(self, snapshot: RoutingSnapshot) -> Applied:
        """Bring the engine closer to what the registry wants. Call :meth:`observe` before."""
        now = self._clock()
        versions = {
            version.engine_name: (version, routes.base_engine_name)
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
            unusable={name for name, (version, _) in versions.items() if not self.holds(version)},
        )
        return await apply(
            orders,
            load=lambda name, _: self.ensure_loaded(*versions[name]),
            unload=self._unload,
        )

    async def close(self) -> None:
        """Stop loading."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, version: VersionRoute, base_engine_name: str) -> None:
        began = self._clock()
        engine_name = version.engine_name
        await asyncio.to_thread(_check_files, version)
        self._unproven.add(engine_name)
        if self._listed.get(engine_name, version.path) != version.path:
            await self._control.unload_adapter(engine_name)  # other files under a name of ours
        await self._control.load_adapter(engine_name, version.path)
        try:
            await self._control.prove_adapter(engine_name, base_engine_name)
        except AdapterNotProven:
            await self._control.unload_adapter(engine_name)
            raise
        self._unproven.discard(engine_name)
        self._listed[engine_name] = version.path
        seconds = round(self._clock() - began, 3)
        self._watch.loaded(seconds)
        log.info("adapter_loaded", engine_name=engine_name, seconds=seconds)

    def _loaded(self, engine_name: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(engine_name, None)
        self._failed_at.pop(engine_name, None)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, AppError):
            self._failed_at[engine_name] = self._clock()
            self._watch.failed("prove" if isinstance(error, AdapterNotProven) else "load")

    async def _unload(self, engine_name: str) -> None:
        if self._in_flight.get(engine_name):  # begun since the plan was made
            return
        self._listed.pop(engine_name, None)
        try:
            await self._control.unload_adapter(engine_name)
        except AppError:
            self._watch.failed("unload")
            raise
        log.info("adapter_unloaded", engine_name=engine_name)


def _check_files(version: VersionRoute) -> None:
    try:
        found = artifact.digest(Path(version.path))
    except OSError as error:
        raise AdapterRefused(version.engine_name, f"its files cannot be read ({error})") from error
    if found != version.digest:
        why = f"the files in {version.path} are not those that were registered"
        raise AdapterRefused(version.engine_name, why)
