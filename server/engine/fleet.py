"""The replicas that serve, each tended by a loop of its own; which of them answers a request.

A replica is never asked for weights that it does not hold, and one that is not healthy is asked for
none, unless it is the only one, or all are away and it is merely slow to answer looks.

Not covered: starting and stopping engines, and what other gateways have in flight on them.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from math import ceil
from typing import Self

import structlog

from server.core.errors import (
    AppError,
    EngineError,
    EngineUnavailable,
    EngineUnreachable,
    ReplicasNotReady,
)
from server.core.settings import EngineSettings
from server.engine.replica import Probe, Replica, Routes
from server.engine.residency import Watch
from server.engine.routing import Route, VersionRoute

log = structlog.get_logger(__name__)

REQUEST_LOAD_TIMEOUT_S = 10.0
"""How long a request waits for weights that no replica holds."""

LOAD_FACTOR = 1.25
"""A replica with more than this share of the mean load, and two more, is passed over."""

LOAD_SLACK = 2


class Lease:
    """One request's hold on a version: it is unloaded nowhere here while the request runs."""

    __slots__ = ("_engine_name", "_fleet", "_replica")

    def __init__(self, fleet: "Fleet", engine_name: str) -> None:
        self._fleet = fleet
        self._engine_name = engine_name
        self._replica: Replica | None = None

    def __enter__(self) -> Self:
        in_flight = self._fleet.in_flight
        in_flight[self._engine_name] = in_flight.get(self._engine_name, 0) + 1
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
        in_flight = self._fleet.in_flight
        if (left := in_flight[self._engine_name] - 1) > 0:
            in_flight[self._engine_name] = left
        else:
            del in_flight[self._engine_name]
            self._fleet.on_idle(self._engine_name)

    def move_to(self, replica: Replica) -> None:
        """Run on this replica from now on."""
        self._leave()
        self._replica = replica
        replica.outstanding += 1
        replica.residency.take(self._engine_name)

    def _leave(self) -> None:
        if self._replica is not None:
            self._replica.outstanding -= 1
            self._replica.residency.give(self._engine_name)
            self._replica = None


class Fleet:
    """Every replica, by address."""

    def __init__(
        self,
        settings: EngineSettings,
        probe: Probe,
        routes: Routes,
        *,
        refresh_s: float,
        quorum: float = 1.0,
        watch_of: Callable[[str], Watch] | None = None,
        on_idle: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.on_idle = on_idle
        """Told of an engine name when its last lease has ended."""
        self._watch_of = watch_of
        self.replicas: dict[str, Replica] = {}
        self.in_flight: dict[str, int] = {}
        """Leases by engine name, those too whose request waits for its weights."""
        self._settings = settings
        self._probe = probe
        self._routes = routes
        self._refresh_s = refresh_s
        self._quorum = quorum
        self._only: Replica | None = None
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._leaving: list[Replica] = []
        self._is_started = False
        self.sync(dict.fromkeys(settings.urls, False))

    @property
    def is_single(self) -> bool:
        """Whether there is nothing to choose."""
        return self._only is not None

    def start(self) -> None:
        """Begin to tend every replica; waits for none."""
        self._is_started = True
        for replica in self.replicas.values():
            self._tend(replica)

    async def close(self) -> None:
        loops = list(self._loops.values())
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        self._loops.clear()
        for replica in [*self.replicas.values(), *self._leaving]:
            await replica.close()

    def sync(self, wanted: Mapping[str, bool]) -> None:
        """Know these replicas and no others: address to whether it drains.

        One that is no longer wanted gets no request any more; its connections are closed when its
        last one has ended (:meth:`let_go`).
        """
        for url in self.replicas.keys() - wanted.keys():
            replica = self.replicas.pop(url)
            replica.is_draining = True
            self._leaving.append(replica)
            if (loop := self._loops.pop(url, None)) is not None:
                loop.cancel()
        for url, is_draining in wanted.items():
            if url not in self.replicas:
                self.replicas[url] = self._replica(url)
                if self._is_started:
                    self._tend(self.replicas[url])
            self.replicas[url].is_draining = is_draining
        alone = list(self.replicas.values())
        self._only = alone[0] if len(alone) == 1 else None

    def _replica(self, url: str) -> Replica:
        watch = self._watch_of(url) if self._watch_of else None
        return Replica(url, self._settings, self._probe, watch=watch)

    async def let_go(self) -> None:
        """Close the connections of removed replicas that have nothing in flight any more."""
        done = [replica for replica in self._leaving if not replica.outstanding]
        self._leaving = [replica for replica in self._leaving if replica.outstanding]
        for replica in done:
            await replica.close()

    def lease(self, engine_name: str) -> Lease:
        """Hold this while a request runs: what is in use is never unloaded."""
        return Lease(self, engine_name)

    def pick(
        self, route: Route, affinity: bytes = b"", avoid: Collection[Replica] = ()
    ) -> Replica | None:
        """The replica that shall answer, of those that can now; None when none can.

        A conversation stays with one replica, where its prefix is cached, unless that one has too
        much to do.
        """
        weights = route.weights
        if (only := self._only) is not None:
            return only if only.may_be_tried and only.holds(weights) else None
        able = [
            replica
            for replica in self.replicas.values()
            if replica.takes_requests and replica.holds(weights) and replica not in avoid
        ]
        if not able:
            able = self._silent(weights, avoid)
        if len(able) < 2:
            return able[0] if able else None
        most = LOAD_FACTOR * sum(r.outstanding for r in able) / len(able) + LOAD_SLACK
        free = [replica for replica in able if replica.outstanding <= most]
        return max(free, key=lambda replica: replica.rank(affinity))

    async def fetch(
        self,
        route: Route,
        base_engine_name: str,
        affinity: bytes = b"",
        avoid: Collection[Replica] = (),
    ) -> Replica:
        """A replica that can answer, after loading the weights on one; the slow way of :meth:`pick`.

        Raises:
            EngineUnsafe: the probe refused the only replica.
            EngineUnavailable: none can be asked, or none has the weights loaded in time.
            AdapterRefused, AdapterNotProven: none will serve them.
        """
        asked = self._may_load(affinity, avoid)
        if not asked:
            raise self.why_none()
        failure: EngineError | None = None
        try:
            async with asyncio.timeout(REQUEST_LOAD_TIMEOUT_S):
                for replica in asked:
                    try:
                        if route.weights is not None:
                            await replica.residency.ensure_loaded(route.weights, base_engine_name)
                    except EngineUnreachable as error:
                        failure = error
                        replica.suspect(error)
                    except EngineError as error:
                        failure = error
                    else:
                        return replica
        except TimeoutError as error:
            raise EngineUnavailable(f"it is still loading {route.engine_name}") from error
        assert failure is not None, "every replica that was asked returned or failed"
        raise failure

    async def ensure_servable(self, version: VersionRoute, base_engine_name: str) -> None:
        """Have the healthy replicas hold and prove a version; return when the quorum does.

        Raises:
            ReplicasNotReady: too few do, where there are several replicas.
            EngineError: the only replica does not; says why.
        """
        if self._only is not None:
            if not self._only.may_be_tried:
                raise self.why_none()
            await self._prove(self._only, version, base_engine_name)
            return
        asked = [replica for replica in self.replicas.values() if replica.takes_requests]
        results = await asyncio.gather(
            *(self._prove(replica, version, base_engine_name) for replica in asked),
            return_exceptions=True,
        )
        why: dict[str, str] = {}
        for replica, result in zip(asked, results, strict=True):
            if isinstance(result, EngineUnreachable):
                replica.suspect(result)
            elif isinstance(result, AppError):
                why[replica.url] = str(result)
            elif isinstance(result, BaseException):
                raise result
        proven = sum(result is None for result in results)
        needed = needed_for(self._quorum, proven + len(why))
        if proven < needed:
            others = {r.url: r.why() for r in self.replicas.values() if not r.takes_requests}
            raise ReplicasNotReady(version.engine_name, proven, needed, why | others)

    def why_none(self) -> EngineError:
        """Why no replica takes a request."""
        if self._only is not None and not self._only.is_draining:
            error = self._only.error
            return error if isinstance(error, EngineError) else EngineUnavailable(str(error))
        each = "; ".join(f"{url} is {replica.why()}" for url, replica in self.replicas.items())
        return EngineUnavailable(f"no replica takes requests: {each or 'none is set up'}")

    def problem(self) -> AppError | None:
        """What keeps every replica from serving; None when one at least can."""
        if any(replica.is_reachable for replica in self.replicas.values()):
            return None
        return self.why_none()

    def _silent(self, weights: VersionRoute | None, avoid: Collection[Replica]) -> list[Replica]:
        """Who may answer when every replica is away.

        When all are slow to answer looks, it is likelier that users want much than that all have
        failed at once, and refusing everybody would make of the one the other.
        """
        if any(replica.is_reachable for replica in self.replicas.values()):
            return []  # it has the weights loaded, or will
        return [
            replica
            for replica in self.replicas.values()
            if replica.is_only_silent and replica.holds(weights) and replica not in avoid
        ]

    def _may_load(self, affinity: bytes, avoid: Collection[Replica]) -> list[Replica]:
        """Whom to ask for weights that nobody holds, the best first."""
        if self._only is not None:
            return [self._only] if self._only.may_be_tried else []
        left = [r for r in self.replicas.values() if r.is_reachable and r not in avoid]
        healthy = [replica for replica in left if replica.takes_requests]
        return sorted(healthy or left, key=lambda replica: replica.rank(affinity), reverse=True)

    async def _prove(self, replica: Replica, version: VersionRoute, base_engine_name: str) -> None:
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                await replica.residency.observe()
                await replica.residency.ensure_loaded(version, base_engine_name)
        except TimeoutError as error:
            raise EngineUnavailable(f"it is still loading {version.engine_name}") from error

    def _tend(self, replica: Replica) -> None:
        self._loops[replica.url] = asyncio.create_task(
            self._repeat(replica), name=f"tend-{replica.url}"
        )

    async def _repeat(self, replica: Replica) -> None:
        failure = ""
        while True:
            replica.woken.clear()
            try:
                await replica.tend(self._routes)
                failure = ""
            except Exception as error:
                # The named boundary for the loops that heal: they must outlive every failure.
                if failure != type(error).__name__:
                    log.warning("tending_failed", url=replica.url, error=str(error)[:300])
                failure = type(error).__name__
            with suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_s):
                    await replica.woken.wait()


def needed_for(quorum: float, replicas: int) -> int:
    """How many of these replicas must have proven a version; one at least."""
    return max(1, ceil(quorum * replicas - 1e-9))  # 0.7 * 10 is a little more than 7
