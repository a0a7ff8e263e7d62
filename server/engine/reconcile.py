"""What the engine should hold against what it lists: the difference, and making it so.

Nothing is remembered between rounds, so a restarted engine, a lost adapter and a second gateway
are the same case. Unloading is timid: only names of our lines, only versions known to be done with.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

import structlog

from server.core.errors import AppError
from server.engine.routing import CANDIDATE, RoutingSnapshot, VersionRoute

log = structlog.get_logger(__name__)

_VERSION_NAME = re.compile(r"(?P<line>.+)@v(?P<number>[1-9][0-9]*)(?:\.[0-9a-f]+)?")


@dataclass(frozen=True, slots=True)
class Plan:
    """Orders for one engine, in the order in which to give them."""

    surplus: tuple[str, ...] = ()
    """What goes first, to make room."""
    loads: tuple[tuple[str, str], ...] = ()
    """(engine name, path)."""
    unloads: tuple[str, ...] = ()
    """What nobody wants any more."""


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
    waiting: Collection[str] = (),
    recent: Collection[str] = (),
    ranks: Mapping[str, int] | None = None,
    capacity: int | None = None,
) -> Plan:
    """The orders that bring ``listed`` to ``desired``, as far as there is room.

    Args:
        desired: (engine name, path) of what should be there.
        listed: engine names that are there.
        in_flight: running requests by engine name; a name with any stays.
        protected: names that stay whatever else holds, such as candidates under exam.
        lines: our adapter lines; a name that is not ``LINE@v…`` of one of them is not ours.
        unusable: names that are there and must be loaded all the same: other files than ours
            under that name, or never proven.
        waiting: names whose load has just failed; they keep their place and are not loaded now.
        recent: names that nobody wants any more, but since a moment only; they stay while there is
            room.
        ranks: the lower, the more a name is wanted; names of one rank go newest first.
        capacity: how many of our versions the engine may hold; None is any number.
    """
    ranks = ranks or {}
    order = sorted(desired, key=lambda load: (ranks.get(load[0], 0), _newest_first(load[0])))
    ours = [
        name
        for name in listed
        if (match := _VERSION_NAME.fullmatch(name)) and match["line"] in lines
    ]
    stays = {name for name in ours if in_flight.get(name) or name in protected}
    room = len(order) + len(ours) if capacity is None else capacity - len(stays)
    wanted = {name for name, _ in order}
    kept = set(stays)
    for name, _ in order:
        if name not in kept and room > 0:
            kept.add(name)
            room -= 1
    for name in sorted(ours, key=_newest_first):
        if name in recent and name not in wanted and name not in kept and room > 0:
            kept.add(name)
            room -= 1
    gone = sorted(name for name in ours if name not in kept)
    return Plan(
        surplus=tuple(name for name in gone if name in wanted or name in recent),
        loads=tuple(
            (name, path)
            for name, path in order
            if name in kept and name not in waiting and (name not in listed or name in unusable)
        ),
        unloads=tuple(name for name in gone if name not in wanted and name not in recent),
    )


def ranks_of(snapshot: RoutingSnapshot) -> dict[str, int]:
    """How much each version is wanted: 0 by an alias, 1 to roll back to, 2 otherwise."""
    ranks: dict[str, int] = {}
    for routes in snapshot.adapters.values():
        aliased = set(routes.aliases.values())
        for version in routes.versions.values():
            is_next = version.number == routes.previous
            ranks[version.engine_name] = 0 if version.number in aliased else 1 if is_next else 2
    return ranks


def aliased_versions(snapshot: RoutingSnapshot) -> list[VersionRoute]:
    """Every version that an alias points at: without these a replica takes no traffic."""
    return [
        version
        for routes in snapshot.adapters.values()
        for version in routes.versions.values()
        if version.is_resident and version.number in routes.aliases.values()
    ]


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
    await _unload_all(orders.surplus, unload, applied)
    for name, path in orders.loads:
        try:
            await load(name, path)
        except AppError as error:
            applied.failed[name] = str(error)
            log.warning("engine_load_failed", engine_name=name, error=str(error))
        else:
            applied.loaded.append(name)
    await _unload_all(orders.unloads, unload, applied)
    return applied


async def _unload_all(
    names: Collection[str], unload: Callable[[str], Awaitable[None]], applied: Applied
) -> None:
    for name in names:
        try:
            await unload(name)
        except AppError as error:
            applied.failed[name] = str(error)
            log.warning("engine_unload_failed", engine_name=name, error=str(error))
        else:
            applied.unloaded.append(name)


def _newest_first(name: str) -> tuple[int, str]:
    match = _VERSION_NAME.fullmatch(name)
    return (-int(match["number"]) if match else 0, name)
