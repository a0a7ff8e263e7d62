"""What one server process keeps in memory: routes, the fleet, leases, the loops that heal.

Everything here can be lost at any moment: it is rebuilt from the database and the engines' lists.
Holds no rule; those are in :mod:`server.services` and :mod:`server.engine`.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import structlog
from anyio import CapacityLimiter, to_thread
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.core.clock import monotonic, new_id, utc_now
from server.core.errors import AppError, EngineUnavailable, RowNotFound
from server.core.metrics import Figures, Metrics, Moment, ReplicaMoment
from server.core.queue import Queue
from server.core.settings import Settings
from server.db.session import Database
from server.engine.fleet import Fleet, Lease
from server.engine.replica import Probe, Replica
from server.engine.routing import Route, RoutingSnapshot, resolve
from server.services import figures, registry
from server.services import fleet as fleet_rows

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

DATABASE_TIMEOUT_S = 5.0

SIGN_OF_LIFE_S = 2.0
"""How often a gateway writes its row; at once when its routes or its replicas have changed."""

CLOSING_TIMEOUT_S = 2.0

FIGURES_FRESH_S = 5.0
"""How long metrics tell of the database what was counted once."""


class Runtime:
    """One process's view of database and engines; built by ``create_app``."""

    def __init__(self, settings: Settings, database: Database, queue: Queue) -> None:
        self.settings = settings
        self.database = database
        self.queue = queue
        self.metrics = Metrics()
        self.snapshot: RoutingSnapshot | None = None
        probe = Probe(
            settings.engine,
            registry.base_engine_name(settings.model.name),
            settings.learning.chosen.lora.rank,
        )
        self.fleet = Fleet(
            settings.engine,
            probe,
            self,
            refresh_s=settings.swap.refresh_s,
            quorum=settings.swap.quorum,
            watch_of=self.metrics.watch,
            on_idle=self.metrics.version_idle,
        )
        self.gateway_id = new_id("gwy")
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._has_synced = False
        self._told: tuple[Any, ...] = ()
        self._told_at = 0.0
        self._refreshing = asyncio.Lock()
        self._aside = CapacityLimiter(1)
        self._figures: Figures | None = None
        self._figures_until = 0.0
        self._backlog: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to watch the database and the engines; waits for neither."""
        for name, look in (("routes", self.refresh), ("fleet", self.tell)):
            task = asyncio.create_task(self._repeat(name, look), name=f"watch-{name}")
            self._tasks.append(task)
        self.fleet.start()

    async def close(self) -> None:
        was_started = bool(self._tasks)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.fleet.close()
        if was_started:
            await self._say_goodbye()

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

    def lease(self, route: Route) -> Lease:
        """Hold this while a request runs: what is in use is never unloaded."""
        return self.fleet.lease(route.engine_name)

    def holds(self, route: Route) -> bool:
        """Whether a replica can answer with these weights now, without a load."""
        return self.fleet.pick(route) is not None

    async def ensure_route(
        self, route: Route, affinity: bytes = b"", avoid: Collection[Replica] = ()
    ) -> Replica:
        """The replica that answers with exactly these weights.

        A restarted engine gets its adapter back here. Nothing else ever answers in its place.

        Args:
            affinity: what the requests of one conversation have in common.
            avoid: replicas that have just failed to answer.

        Raises:
            EngineUnsafe: the probe refused the engine.
            EngineUnavailable: every one is away, or none gets the weights loaded in time.
            AdapterRefused, AdapterNotProven: none will serve them.
        """
        replica = self.fleet.pick(route, affinity, avoid)
        if replica is not None:
            return replica
        base = route.engine_name if route.weights is None else self._base_of(route.adapter)
        return await self.fleet.fetch(route, base, affinity, avoid)

    async def ensure_servable(self, adapter: str, number: int) -> None:
        """Have the replicas hold and prove a version before an alias is moved to it.

        Raises:
            RowNotFound: no such version.
            ReplicasNotReady: fewer than the quorum have proven it. With one replica, what it says.
        """
        await self.refresh()
        routes = self.snapshot.adapters.get(adapter) if self.snapshot else None
        version = routes.versions.get(number) if routes else None
        if version is None:
            raise RowNotFound("version", registry.version_name(adapter, number))
        await self.fleet.ensure_servable(version, self._base_of(adapter))

    async def refresh(self) -> None:
        """Read routes and replicas again if anything has changed them; quick when nothing has."""
        async with self._refreshing:
            if not self._has_synced:
                await self.database.run(fleet_rows.sync_from_settings, self.settings.engine.urls)
                self._has_synced = True
            known = self.snapshot.revision if self.snapshot else None
            fresh, wanted = await self.database.read(
                _read_wanted,
                known,
                resident_versions=self.settings.swap.resident_versions,
                served=self.settings.model.name,
            )
            if fresh is not None:
                self._tell_metrics(self.snapshot, fresh)
                self.snapshot = fresh
                log.info("routes_read", revision=fresh.revision, lines=len(fresh.adapters))
            self.fleet.sync(wanted)

    async def read(self, query: Callable[[Session], Result]) -> Result:
        """Read what tells of versions, and route by nothing older than what was read.

        A worker promotes in a process of its own. Whoever hears from us that its run has succeeded
        must be answered by the new version from then on, not from the next look at the routes on.
        """
        found = await self.database.read(query)
        await self.refresh()
        return found

    async def read_aside(self, query: Callable[[Session], Result]) -> Result:
        """Read what takes the processor long, such as planning a run, in a thread, one at a time.

        On the event loop it would hold up every stream that this process carries.
        """

        def read() -> Result:
            with self.database.look() as session:
                return query(session)

        return await to_thread.run_sync(read, limiter=self._aside)

    async def tell(self) -> None:
        """Say in the database that this gateway lives, what it routes by and what it has in flight."""
        await self.fleet.let_go()
        if self.snapshot is None:
            return
        replicas = {
            url: {
                "state": str(replica.state),
                "error": None if replica.error is None else str(replica.error),
                "resident": replica.residency.names(),
            }
            for url, replica in self.fleet.replicas.items()
        }
        told = (self.snapshot.revision, replicas)
        if told == self._told and monotonic() - self._told_at < SIGN_OF_LIFE_S:
            return
        # Taken in one step with the revision: who has none of a version in flight by routes that
        # do not have it any more will never have.
        in_flight = dict(self.fleet.in_flight)
        await self.database.run(
            fleet_rows.record_gateway,
            self.gateway_id,
            name=self._name,
            revision=self.snapshot.revision,
            in_flight=in_flight,
            replicas=replicas,
            now=utc_now(),
        )
        self._told, self._told_at = told, monotonic()

    async def readiness(self) -> dict[str, str]:
        """Each part this process needs, ``ok`` or what is wrong with it."""
        return {
            "database": await self._database_state(),
            "engine": "ok" if (problem := self.fleet.problem()) is None else str(problem),
            "champion": self._champion_state(),
        }

    def _base_of(self, adapter: str) -> str:
        return self.routes().adapters[adapter].base_engine_name

    def watch_capture(self, backlog: Callable[[], tuple[int, int]]) -> None:
        """Have metrics tell of captured interactions: files that wait, records lost."""
        self._backlog = backlog

    async def moment(self) -> Moment:
        """What metrics tell of now."""
        waiting, dropped = await asyncio.to_thread(self._backlog)
        figures_now = await self._read_figures()
        return Moment(
            replicas=self._replica_moments(),
            leases=dict(self.fleet.in_flight),
            segments_waiting=waiting,
            records_dropped=dropped,
            figures=figures_now,
        )

    def _replica_moments(self) -> list[ReplicaMoment]:
        lines = self.snapshot.adapters.values() if self.snapshot else ()
        versions = [version for line in lines for version in line.versions.values()]
        return [
            ReplicaMoment(replica.url, str(replica.state), sum(map(replica.holds, versions)))
            for replica in self.fleet.replicas.values()
        ]

    async def _read_figures(self) -> Figures | None:
        if monotonic() >= self._figures_until:
            try:
                async with asyncio.timeout(DATABASE_TIMEOUT_S):
                    self._figures = await self.database.read(figures.read)
            except (SQLAlchemyError, OSError) as error:  # a TimeoutError is an OSError
                log.warning("figures_not_read", error=str(error)[:300])
                self._figures = None
            self._figures_until = monotonic() + FIGURES_FRESH_S
        return self._figures

    def _tell_metrics(self, before: RoutingSnapshot | None, now: RoutingSnapshot) -> None:
        named, leases = _named(now), self.fleet.in_flight
        for engine_name in named:
            self.metrics.version_named(engine_name)
        for engine_name in (_named(before) if before else set()) - named:
            self.metrics.version_left(engine_name, is_busy=engine_name in leases)
        self.metrics.keep_versions(_shown(now))

    async def _say_goodbye(self) -> None:
        try:
            async with asyncio.timeout(CLOSING_TIMEOUT_S):
                await self.database.run(fleet_rows.forget_gateway, self.gateway_id)
        except (SQLAlchemyError, OSError, TimeoutError) as error:  # its row grows old instead
            log.warning("gateway_row_stays", error=type(error).__name__)

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
        if any(replica.holds(route.weights) for replica in self.fleet.replicas.values()):
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


def _read_wanted(
    session: Session, known: int | None, *, resident_versions: int, served: str
) -> tuple[RoutingSnapshot | None, dict[str, bool]]:
    """The routes, None when they are those that are known; and every replica, with its draining."""
    wanted = fleet_rows.wanted(session)
    if known is not None and registry.snapshot_revision(session) == known:
        return None, wanted
    snapshot = registry.snapshot(session, resident_versions=resident_versions, served=served)
    return snapshot, wanted


def _named(snapshot: RoutingSnapshot) -> set[str]:
    """Engine names of the versions that aliases point at."""
    return {
        routes.versions[number].engine_name
        for routes in snapshot.adapters.values()
        for number in routes.aliases.values()
        if number is not None
    }


def _shown(snapshot: RoutingSnapshot) -> set[str]:
    """Public names whose series metrics keep: as many as engines hold, however long a line grows."""
    return {
        registry.version_name(routes.name, number)
        for routes in snapshot.adapters.values()
        for number in (None, *(v.number for v in routes.versions.values() if v.is_resident))
    }


def _ping(session: Session) -> None:
    session.execute(text("SELECT 1"))
