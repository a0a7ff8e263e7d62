"""What one server process keeps in memory: routes, the engine's state, leases, the loops that heal.

Everything here can be lost at any moment: it is rebuilt from the database and the engine's list.
Holds no rule; those are in :mod:`server.services` and :mod:`server.engine`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.core.clock import monotonic
from server.core.errors import (
    AppError,
    EngineError,
    EngineUnavailable,
    EngineUnsafe,
    RowNotFound,
)
from server.core.queue import Queue
from server.core.settings import Settings
from server.db.session import Database
from server.engine.client import EngineClient
from server.engine.control import EngineControl
from server.engine.probe import check_engine
from server.engine.residency import Residency
from server.engine.routing import Route, RoutingSnapshot, VersionRoute, resolve
from server.services import registry

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

REQUEST_LOAD_TIMEOUT_S = 10.0
"""How long a request waits for weights that the engine has lost."""

UNSAFE_RETRY_S = 10.0
DATABASE_TIMEOUT_S = 5.0


class Runtime:
    """One process's view of database and engine; built by ``create_app``."""

    def __init__(
        self, settings: Settings, database: Database, queue: Queue, client: EngineClient
    ) -> None:
        self.settings = settings
        self.database = database
        self.queue = queue
        self.client = client
        self.control = EngineControl(client, settings.engine)
        self.residency = Residency(self.control)
        self.snapshot: RoutingSnapshot | None = None
        self._has_been_ready = False
        self._needs_probe = True
        self._probe_at = 0.0
        self._engine_error: AppError | None = EngineUnavailable("it is still starting")
        self._refreshing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to watch the database and the engine; waits for neither."""
        for name, look in (("routes", self.refresh), ("engine", self.tend_engine)):
            task = asyncio.create_task(self._repeat(name, look), name=f"watch-{name}")
            self._tasks.append(task)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.residency.close()
        await self.client.close()

    def route(self, model: str, tenant: str | None = None, draw: str | None = None) -> Route:
        """The weights that must answer ``tenant``'s request for ``model``, chosen once, now.

        Args:
            draw: what a trial draws by; see :func:`server.engine.routing.resolve`.

        Raises:
            ModelNotFound, VersionNotServable: see :func:`server.engine.routing.resolve`.
            EngineUnavailable: the routes have not been read yet.
        """
        return resolve(self.routes(), model, tenant, draw)

    def routes(self) -> RoutingSnapshot:
        """The routes of this moment.

        Raises:
            EngineUnavailable: they have not been read yet.
        """
        if self.snapshot is None:
            raise EngineUnavailable("the server is still starting")
        return self.snapshot

    def lease(self, route: Route) -> AbstractContextManager[None]:
        """Hold this while a request runs: what is in use is never unloaded."""
        return self.residency.lease(route.engine_name)

    def holds(self, route: Route) -> bool:
        """Whether the engine can answer with these weights now, without a load."""
        return route.weights is None or self.residency.holds(route.weights)

    async def ensure_route(self, route: Route) -> None:
        """Return when the engine can answer with exactly these weights.

        A restarted engine gets its adapter back here. Nothing else ever answers in its place.

        Raises:
            EngineUnsafe: the probe refused the engine.
            EngineUnavailable: it is away, or does not get the weights loaded in time.
            AdapterRefused, AdapterNotProven: it will not serve them.
        """
        if self._engine_error is not None and (
            not self._has_been_ready or isinstance(self._engine_error, EngineUnsafe)
        ):
            raise self._engine_error
        if route.weights is None or self.holds(route):
            return
        await self._load(route.adapter, route.weights, REQUEST_LOAD_TIMEOUT_S)

    async def ensure_servable(self, adapter: str, number: int) -> None:
        """Have the engine hold and prove a version before an alias is moved to it.

        Raises:
            RowNotFound: no such version. Otherwise as :meth:`ensure_route`.
        """
        await self.refresh()
        routes = self.snapshot.adapters.get(adapter) if self.snapshot else None
        version = routes.versions.get(number) if routes else None
        if version is None:
            raise RowNotFound("version", registry.version_name(adapter, number))
        await self.residency.observe()
        await self._load(adapter, version, self.settings.engine.load_timeout_s)

    async def refresh(self) -> None:
        """Read the routes again if anything has changed them; quick when nothing has."""
        async with self._refreshing:
            known = self.snapshot.revision if self.snapshot else None
            fresh = await self.database.read(
                _read_snapshot,
                known,
                resident_versions=self.settings.swap.resident_versions,
                served=self.settings.model.name,
            )
            if fresh is not None:
                self.snapshot = fresh
                log.info("routes_read", revision=fresh.revision, lines=len(fresh.adapters))

    async def read(self, query: Callable[[Session], Result]) -> Result:
        """Read what tells of versions, and route by nothing older than what was read.

        A worker promotes in a process of its own. Whoever hears from us that its run has succeeded
        must be answered by the new version from then on, not from the next look at the routes on.
        """
        found = await self.database.read(query)
        await self.refresh()
        return found

    async def tend_engine(self) -> None:
        """One look at the engine: probe it when it is new, then load and unload what is due."""
        try:
            # The list first, the routes second: a worker registers a candidate before it loads it,
            # so whatever is listed is known by then.
            await self.residency.observe()
            await self.refresh()
            if self._needs_probe:
                await self._probe()
        except EngineUnsafe as error:
            self._note(error)
            return
        except EngineError as error:
            self._note(error)
            self._needs_probe = True  # whatever answers next may be another engine
            return
        if self.snapshot is not None and not self._needs_probe:
            await self.residency.reconcile(self.snapshot)

    async def readiness(self) -> dict[str, str]:
        """Each part this process needs, ``ok`` or what is wrong with it."""
        return {
            "database": await self._database_state(),
            "engine": "ok" if self._engine_error is None else str(self._engine_error),
            "champion": self._champion_state(),
        }

    async def _probe(self) -> None:
        if self.snapshot is None or monotonic() < self._probe_at:
            return
        learning, engine = self.settings.learning, self.settings.engine
        try:
            await check_engine(
                self.control,
                base_engine_name=registry.base_engine_name(self.settings.model.name),
                adapters_needed=min(engine.max_loras, 3),
                trained_rank=learning.seal.lora.rank,
                max_lora_rank=engine.max_lora_rank,
            )
        except EngineUnsafe:
            self._probe_at = monotonic() + UNSAFE_RETRY_S
            raise
        self._needs_probe = False
        self._has_been_ready = True
        self._engine_error = None
        log.info("engine_ready", url=self.client.url)

    async def _load(self, adapter: str, version: VersionRoute, timeout_s: float) -> None:
        base = self.routes().adapters[adapter].base_engine_name
        try:
            async with asyncio.timeout(timeout_s):
                await self.residency.ensure_loaded(version, base)
        except TimeoutError as error:
            raise EngineUnavailable(f"it is still loading {version.engine_name}") from error

    def _note(self, error: AppError) -> None:
        if str(error) != str(self._engine_error):
            log.warning("engine_not_ready", error=str(error))
        self._engine_error = error

    async def _database_state(self) -> str:
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT_S):
                await self.database.read(_ping)
        except (SQLAlchemyError, OSError) as error:
            return f"does not answer ({type(error).__name__})"
        except TimeoutError:
            return "does not answer in time"
        return "ok"

    def _champion_state(self) -> str:
        name = self.settings.model.name
        try:
            route = self.route(name)
        except AppError as error:
            return str(error)
        if route.weights is None or self.residency.holds(route.weights):
            return "ok"
        return f"{route.version_name} is not loaded yet"

    async def _repeat(self, name: str, look: Callable[[], Awaitable[None]]) -> None:
        failure = ""
        while True:
            try:
                await look()
                failure = ""
            except Exception as error:
                # The named boundary for the loops that heal: they must outlive every failure.
                if failure != type(error).__name__:
                    log.warning("watch_failed", watch=name, error=str(error)[:300])
                failure = type(error).__name__
            await asyncio.sleep(self.settings.swap.refresh_s)


def _read_snapshot(
    session: Session, known: int | None, *, resident_versions: int, served: str
) -> RoutingSnapshot | None:
    if known is not None and registry.snapshot_revision(session) == known:
        return None
    return registry.snapshot(session, resident_versions=resident_versions, served=served)


def _ping(session: Session) -> None:
    session.execute(text("SELECT 1"))
