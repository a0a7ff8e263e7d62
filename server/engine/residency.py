"""What one engine holds right now, and who is using it: load once, prove, use, let go.

The engine's own list is the only truth about what is loaded; it is read again every round. A
version that this process loads is used only once it is proven; one that was found in the list, out
of the right folder, was proven by whoever loaded it. Files are loaded only with the digest that was
registered for them.
"""

import asyncio
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
from server.engine.reconcile import (
    Applied,
    apply,
    candidate_names,
    desired_versions,
    plan,
    ranks_of,
)
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


class _Nobody:
    """A watch that does not look."""

    def loaded(self, seconds: float) -> None: ...

    def failed(self, stage: str) -> None: ...


class Residency:
    """The adapters of one engine, as seen and used by this process."""

    def __init__(
        self,
        control: EngineControl,
        *,
        capacity: int | None = None,
        clock: Callable[[], float] = monotonic,
        watch: Watch | None = None,
    ) -> None:
        self._control = control
        self._capacity = capacity
        self._clock = clock
        self._watch = watch or _Nobody()
        self._listed: dict[str, str] = {}
        self._bases: set[str] = set()
        self._in_flight: dict[str, int] = {}
        self._wanted_at: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        self._failures: dict[str, tuple[float, str]] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._unproven: set[str] = set()
        self._lost: set[str] = set()

    def holds(self, version: VersionRoute) -> bool:
        """Whether these weights may be used: at the last look, or loaded since."""
        name = version.engine_name
        return self._listed.get(name) == version.path and name not in self._unproven

    def names(self) -> list[str]:
        """Every adapter in the engine at the last look, proven or not."""
        return sorted(self._listed.keys() - self._bases)

    def why_not(self, engine_name: str) -> str:
        """Why a version is not held, as far as is known."""
        _, why = self._failures.get(engine_name, (0.0, ""))
        return why or f"{engine_name} is not loaded yet"

    @contextmanager
    def lease(self, engine_name: str) -> Iterator[None]:
        """Keep a name loaded while a request uses it."""
        self.take(engine_name)
        try:
            yield
        finally:
            self.give(engine_name)

    def take(self, engine_name: str) -> None:
        """Begin to use a name; :meth:`give` it back."""
        self._in_flight[engine_name] = self._in_flight.get(engine_name, 0) + 1

    def give(self, engine_name: str) -> None:
        """End one use of a name."""
        if (left := self._in_flight[engine_name] - 1) > 0:
            self._in_flight[engine_name] = left
        else:
            del self._in_flight[engine_name]
        self._wanted_at[engine_name] = self._clock()

    async def observe(self) -> None:
        """Read the engine's list.

        Raises:
            EngineUnavailable: it does not answer.
        """
        before = dict(self._listed)
        models = await self._control.models()
        listed = {model.name: model.root for model in models}
        # What was loaded while the list was on its way is not in it, and what was unloaded is.
        since = {name: root for name, root in self._listed.items() if name not in before}
        left = before.keys() - self._listed.keys()
        self._bases = {model.name for model in models if model.parent is None}
        self._listed = {k: v for k, v in listed.items() if k not in left} | since
        self._lost |= before.keys() - self._listed.keys() - left - self._unproven
        self._unproven &= self._listed.keys() | self._loading.keys()

    def take_lost(self) -> set[str]:
        """Names that could be used and are gone, not by our doing; told once."""
        lost, self._lost = self._lost, set()
        return lost

    def forget(self, engine_name: str) -> None:
        """The engine has answered that it does not know this name."""
        self._listed.pop(engine_name, None)

    async def ensure_loaded(self, version: VersionRoute, base_engine_name: str) -> None:
        """Return when the engine answers with these weights; many callers cause one load.

        Raises:
            AdapterRefused: the engine does not take them, or the files are not what was registered.
            AdapterNotProven, EngineUnavailable: it cannot serve them.
        """
        self._asked_at[version.engine_name] = self._clock()
        await self._ensure_loaded(version, base_engine_name)

    async def reconcile(
        self,
        snapshot: RoutingSnapshot,
        *,
        may_unload: bool = True,
        on_load: Callable[[], None] = lambda: None,
    ) -> Applied:
        """Bring the engine closer to what the registry wants. Call :meth:`observe` before.

        Args:
            may_unload: whether the snapshot is younger than the list; by an older one, a version
                that is too new to be in it would be unloaded.
            on_load: called after each version that was loaded.
        """
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
        asked = {name: at for name, at in self._asked_at.items() if now - at < UNLOAD_GRACE_S}
        self._asked_at = asked
        orders = plan(
            desired,
            self._listed,
            self._in_flight,
            candidate_names(snapshot) | asked.keys(),
            lines=snapshot.adapters.keys(),
            unusable={name for name, (version, _) in versions.items() if not self.holds(version)},
            waiting={name for name, (at, _) in self._failures.items() if now - at < RETRY_S},
            recent=recent,
            ranks=ranks_of(snapshot),
            capacity=self._capacity,
        )

        async def load(name: str, _: str) -> None:
            await self._ensure_loaded(*versions[name])
            on_load()

        async def unload(name: str) -> None:
            if may_unload:
                await self._unload(name)

        return await apply(orders, load=load, unload=unload)

    async def close(self) -> None:
        """Stop loading."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ensure_loaded(self, version: VersionRoute, base_engine_name: str) -> None:
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

    async def _load(self, version: VersionRoute, base_engine_name: str) -> None:
        began = self._clock()
        engine_name = version.engine_name
        await asyncio.to_thread(_check_files, version)
        await self.observe()
        if self.holds(version):  # somebody else has loaded and proven it since the last look
            return
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
        url = self._control.client.url
        log.info("adapter_loaded", engine_name=engine_name, seconds=seconds, url=url)

    def _loaded(self, engine_name: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(engine_name, None)
        self._failures.pop(engine_name, None)
        if not task.cancelled() and isinstance(error := task.exception(), AppError):
            self._failures[engine_name] = (self._clock(), str(error))
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
        log.info("adapter_unloaded", engine_name=engine_name, url=self._control.client.url)


def _check_files(version: VersionRoute) -> None:
    try:
        found = artifact.digest(Path(version.path))
    except OSError as error:
        raise AdapterRefused(version.engine_name, f"its files cannot be read ({error})") from error
    if found != version.digest:
        why = f"the files in {version.path} are not those that were registered"
        raise AdapterRefused(version.engine_name, why)
