"""From the model name a client asked for to the name of the weights in the engine. Pure.

The public names of a line ``smollm2``: ``smollm2`` (its champion), ``smollm2@base``,
``smollm2@v7``, ``smollm2@champion`` or any other alias, and an engine name that a reply carried,
``smollm2@v7.3fa94c1b``, which pins those very weights.

While a line has a trial, its plain name and ``@champion`` may lead to the challenger instead
(canary), or bring it a copy (shadow): a stable draw decides. Every other name pins what it names.

Not covered: whether the engine has the weights loaded. A route is what *must* answer; the runtime
makes sure that it does, and nothing ever answers in its place.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from server.core.errors import ModelNotFound, VersionNotServable

BASE = "base"
CHAMPION = "champion"
CHALLENGER = "challenger"
PINNED = "pinned"
SHADOW = "shadow"
SERVABLE = "servable"
CANDIDATE = "candidate"

_LOTS = 10_000
"""Lots of the draw of a trial: shares are told apart to a hundredth of a percent."""

_VERSION = re.compile(r"v([1-9][0-9]{0,8})(?:\.([0-9a-f]{8}))?")
WHY_NOT = {
    CANDIDATE: "its exam is not over",
    "rejected": "it did not pass the gate; its exam says why: `everlearn adapters`",
    "unproven": "it was imported and has sat no exam; put it on trial, or promote it with `force`",
    "retired": "it was retired for good",
}
"""Why a version of this status does not serve."""


def why_not(status: str, retire_reason: str | None = None) -> str:
    """Why a version of this status does not serve, with the reason it was retired for."""
    why = WHY_NOT.get(status, f"it is {status}")
    return f"{why} ({retire_reason})" if retire_reason else why


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """One version of a line, as routing sees it."""

    number: int
    engine_name: str
    path: str
    """Absolute folder of the artifact, as the engine must see it."""
    status: str
    digest: str
    is_resident: bool
    """Whether the engine is wanted to hold it."""
    retire_reason: str | None = None


@dataclass(frozen=True, slots=True)
class TrialRoute:
    """A challenger beside the champion, as routing sees it."""

    mode: str
    """``shadow`` or ``canary``."""
    number: int
    """The challenger's version."""
    share: float
    """Percent of requests that it gets."""
    salt: str


@dataclass(frozen=True, slots=True)
class AdapterRoutes:
    """One line: its aliases (None is the base model) and its versions by number."""

    name: str
    base_engine_name: str
    aliases: Mapping[str, int | None]
    versions: Mapping[int, VersionRoute]
    owner: str | None = None
    """The tenant who alone may ask for it; None is everybody's."""
    trial: TrialRoute | None = None
    """The running trial, if it has live traffic."""
    is_routed: bool = True
    """Whether users may ask for it; an editor's versions are kept in the engine all the same."""
    previous: int | None = None
    """What served before the champion, where a rollback leads; None for the base model."""


@dataclass(frozen=True, slots=True)
class RoutingSnapshot:
    """Every line at one moment. A request reads one snapshot, once."""

    revision: int = 0
    adapters: Mapping[str, AdapterRoutes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """The weights that must answer one request."""

    adapter: str
    version_name: str
    """Public name, such as ``smollm2@v7`` or ``smollm2@base``."""
    engine_name: str
    """What the engine calls the same weights."""
    weights: VersionRoute | None
    """What the engine must hold for it; None for the base model, which it always does."""
    arm: str = "champion"
    """By which way: a value of :class:`server.db.Arm`."""
    shadow: "Route | None" = None
    """The challenger that gets a copy of the request."""
    fallback: "Route | None" = None
    """Of a request drawn for the challenger: the champion, where the challenger cannot serve."""
    is_on_trial: bool = False
    """Whether the line has a challenger on live traffic."""


def resolve(
    snapshot: RoutingSnapshot,
    requested: str,
    tenant: str | None = None,
    draw: str | None = None,
) -> Route:
    """The weights that ``requested`` names, for a caller of ``tenant``; None is the operator.

    Args:
        draw: what a trial draws by, the same for all turns of a conversation; None joins no trial.

    Raises:
        ModelNotFound: no such line, alias or version, or another tenant's; the message says what
            there is.
        VersionNotServable: the version exists and did not pass the gate, or not yet.
    """
    name, _, selector = requested.partition("@")
    routes = snapshot.adapters.get(name)
    if routes is None or not _is_open(routes, tenant) or requested == f"{name}@":
        raise ModelNotFound(requested, _models_remedy(snapshot, tenant))
    if selector == BASE:
        return _base(routes)
    if match := _VERSION.fullmatch(selector):
        return _version(routes, requested, int(match[1]), match[2])
    alias = selector or CHAMPION
    if alias not in routes.aliases:
        raise ModelNotFound(requested, _line_remedy(routes))
    route = _aliased(routes, requested, alias)
    if alias != CHAMPION:
        return route
    champion = replace(route, arm=CHAMPION)
    if routes.trial is None or draw is None or not is_drawn(routes.trial, draw):
        return champion
    challenger = _version(routes, requested, routes.trial.number, None)
    if routes.trial.mode == SHADOW:
        return replace(champion, shadow=replace(challenger, arm=SHADOW))
    return replace(challenger, arm=CHALLENGER, fallback=champion)


def is_drawn(trial: TrialRoute, draw: str) -> bool:
    """Whether a draw lies in a trial's share: always the same answer, independent from trial to trial."""
    digest = hashlib.sha256(f"{trial.salt}:{draw}".encode()).hexdigest()
    return int(digest[:8], 16) % _LOTS < trial.share * _LOTS / 100


def public_models(snapshot: RoutingSnapshot, tenant: str | None = None) -> dict[str, Route]:
    """Every public name that answers ``tenant`` now, in listing order, with what it resolves to."""
    models: dict[str, Route] = {}
    for routes in snapshot.adapters.values():
        if not _is_open(routes, tenant):
            continue
        servable = [v.number for v in routes.versions.values() if v.status == SERVABLE]
        names = [routes.name, f"{routes.name}@{BASE}"]
        names += [f"{routes.name}@v{number}" for number in sorted(servable, reverse=True)]
        for name in names:
            try:
                models[name] = resolve(snapshot, name)
            except (ModelNotFound, VersionNotServable):  # a line without a servable champion
                continue
    return models


def _is_open(routes: AdapterRoutes, tenant: str | None) -> bool:
    return routes.is_routed and (routes.owner is None or tenant is None or routes.owner == tenant)


def _base(routes: AdapterRoutes) -> Route:
    name = routes.base_engine_name
    on_trial = routes.trial is not None
    return Route(
        routes.name, f"{routes.name}@{BASE}", name, weights=None, arm=PINNED, is_on_trial=on_trial
    )


def _aliased(routes: AdapterRoutes, requested: str, alias: str) -> Route:
    number = routes.aliases[alias]
    return _base(routes) if number is None else _version(routes, requested, number, None)


def _version(routes: AdapterRoutes, requested: str, number: int, digest: str | None) -> Route:
    version = routes.versions.get(number)
    if version is None:
        raise ModelNotFound(requested, _line_remedy(routes))
    if digest is not None and not version.digest.startswith(digest):
        raise ModelNotFound(
            requested, f"The weights of {routes.name}@v{number} have another digest."
        )
    is_challenger = routes.trial is not None and routes.trial.number == number
    if version.status != SERVABLE and not is_challenger:
        why = why_not(version.status, version.retire_reason)
        raise VersionNotServable(routes.name, number, why)
    return Route(
        routes.name,
        f"{routes.name}@v{number}",
        version.engine_name,
        version,
        arm=PINNED,
        is_on_trial=routes.trial is not None,
    )


def _models_remedy(snapshot: RoutingSnapshot, tenant: str | None) -> str:
    names = [name for name, routes in snapshot.adapters.items() if _is_open(routes, tenant)]
    if not names:
        return "No model is set up yet: start the server with `everlearn up`."
    return f"There is {_listed(names)}; GET /v1/models lists every name."


def _line_remedy(routes: AdapterRoutes) -> str:
    servable = sorted(v.number for v in routes.versions.values() if v.status == SERVABLE)
    selectors = [*sorted(routes.aliases), BASE, *(f"v{number}" for number in servable[-5:])]
    names = [routes.name, *(f"{routes.name}@{selector}" for selector in selectors)]
    return f"There is {_listed(names)}; GET /v1/models lists every name."


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
