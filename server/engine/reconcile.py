"""What the engine should hold against what it lists: the difference, and making it so.

Nothing is remembered between rounds, so a restarted engine, a lost adapter and a second gateway
are the same case. Unloading is timid: only names of our lines, only versions known to be done with.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

import structlog

from server.core.errors import AppError
from server.engine.routing import CANDIDATE, RoutingSnapshot

log = structlog.get_logger(__name__)

_VERSION_NAME = re.compile(r"(?P<line>.+)@v(?P<number>[1-9][0-9]*)(?:\.[0-9a-f]+)?")


@dataclass(frozen=True, slots=True)
class Plan:
    """Orders for one engine, in the order in which to give them."""

    loads: tuple[tuple[str, str], ...] = ()
    """(engine name, path)."""
    unloads: tuple[str, ...] = ()


@dataclass(slots=True)
class Applied:
    """What came of a plan."""

    loaded: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Engine name to what went wrong."""


def plan(
    desired: Collection[tuple[str, str]],
    listed: Collection[str],
    in_flight: Mapping[str, int],
    protected: Collection[str],
    *,
    lines: Collection[str],
    unusable: Collection[str] = (),
) -> Plan:
    """The orders that bring ``listed`` to ``desired``.

    Args:
        desired: (engine name, path) of what should be there.
        listed: engine names that are there.
        in_flight: running requests by engine name; a name with any stays.
        protected: names that stay whatever else holds, such as candidates under exam.
        lines: our adapter lines; a name that is not ``LINE@v…`` of one of them is not ours.
        unusable: names that are there and must be loaded all the same: other files than ours
            under that name, or never proven.
    """
    wanted = {name for name, _ in desired}
    loads = sorted(
        ((name, path) for name, path in desired if name not in listed or name in unusable),
        key=lambda load: _newest_first(load[0]),
    )
    unloads = [
        name
        for name in listed
        if name not in wanted
        and name not in protected
        and not in_flight.get(name)
        and (match := _VERSION_NAME.fullmatch(name))
        and match["line"] in lines
    ]
    return Plan(tuple(loads), tuple(sorted(unloads)))


def desired_versions(snapshot: RoutingSnapshot) -> set[tuple[str, str]]:
    """(engine name, path) of every version that the engine should hold."""
    return {
        (version.engine_name, version.path)
        for routes in snapshot.adapters.values()
        for version in routes.versions.values()
        if version.is_resident
    }


def candidate_names(snapshot: RoutingSnapshot) -> set[str]:
    """Engine names under exam: their worker loads them, and nobody unloads them before the verdict."""
    return {
        version.engine_name
        for routes in snapshot.adapters.values()
        for version in routes.versions.values()
        if version.status == CANDIDATE
    }


async def apply(
    orders: Plan,
    *,
    load: Callable[[str, str], Awaitable[None]],
    unload: Callable[[str], Awaitable[None]],
) -> Applied:
    """Give the orders one by one; a failure is logged and the rest still goes on."""
    applied = Applied()
    for name, path in orders.loads:
        try:
            await load(name, path)
        except AppError as error:
            applied.failed[name] = str(error)
            log.warning("engine_load_failed", engine_name=name, error=str(error))
        else:
            applied.loaded.append(name)
    for name in orders.unloads:
        try:
            await unload(name)
        except AppError as error:
            applied.failed[name] = str(error)
            log.warning("engine_unload_failed", engine_name=name, error=str(error))
        else:
            applied.unloaded.append(name)
    return applied


def _newest_first(name: str) -> tuple[int, str]:
    match = _VERSION_NAME.fullmatch(name)
    return (-int(match["number"]) if match else 0, name)
