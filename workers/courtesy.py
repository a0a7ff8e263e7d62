"""How learning makes room for users at the engine.

While users have requests there, learning keeps few of its own; once they have been gone for a while
it goes back to all of them, step by step. Users are what the engine has to do beyond what this
process asked it for. So several workers that learn over one engine take each other for users, and
keep few requests each.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

import structlog

from server.core.clock import monotonic
from server.core.errors import EngineError
from server.core.settings import LearningSettings
from server.engine.control import EngineControl, EngineLoad

log = structlog.get_logger(__name__)

LOOK_S = 0.25
"""From one look at an engine to the next: a fraction of what a user takes to read a reply."""


@dataclass(frozen=True, slots=True)
class Manners:
    """How many requests learning keeps at one engine."""

    most: int
    """Of one call, while no user needs it."""
    beside_users: int
    """While users do; at least 1, so that learning always gets on."""
    gone_s: float
    """Users need it for so long after they were last seen."""

    @classmethod
    def of(cls, settings: LearningSettings) -> "Manners":
        most = settings.rollout_concurrency
        return cls(most, min(settings.rollouts_beside_users, most), settings.users_gone_s)

    def allowed(self, quiet_s: float | None) -> int:
        """Requests that may be in flight.

        All at once when users come, and back in steps over `gone_s`: who comes again soon finds
        few.

        Args:
            quiet_s: since users were last seen; None where they never were.
        """
        if quiet_s is None:
            return self.most
        share = min(1.0, max(0.0, quiet_s / self.gone_s - 1))
        return self.beside_users + int(share * (self.most - self.beside_users))


def users_among(load: EngineLoad, ours: int) -> int:
    """How many of an engine's requests are users'.

    Args:
        ours: most that we had in flight since the look before: the engine counts a step behind, and
            one of ours that has just ended must not pass for a user.
    """
    return max(0, load.running + load.waiting - ours)


@dataclass(slots=True)
class _Place:
    """One engine, as this process uses it."""

    taken: int = 0
    """Requests begun, whether they are sent already or wait for the engine to come back."""
    in_flight: int = 0
    most_in_flight: int = 0
    """Since the look before."""
    users_at: float | None = None
    """When users were last seen."""


@dataclass(slots=True)
class Courtesy:
    """What all samplers that share it have at the engines; safe to share between threads."""

    manners: Manners
    aborted: int = 0
    """Requests that were broken off for users, and asked again later."""
    _places: dict[str, _Place] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, url: str) -> bool:
        """Begin a request, unless users need the engine and enough are there; `give` ends it."""
        with self._lock:
            place = self._place(url)
            if self._excess(place) >= 0:
                return False
            place.taken += 1
            return True

    def give(self, url: str) -> None:
        with self._lock:
            self._place(url).taken -= 1

    def take_back(self, url: str) -> bool:
        """Whether a request must be broken off for users; its place is given back already."""
        with self._lock:
            place = self._place(url)
            if self._excess(place) <= 0:
                return False
            place.taken -= 1
            self.aborted += 1
            return True

    @contextmanager
    def asking(self, url: str) -> Iterator[None]:
        """While a request of ours is at the engine, or about to be."""
        with self._lock:
            place = self._place(url)
            place.in_flight += 1
            place.most_in_flight = max(place.most_in_flight, place.in_flight)
        try:
            yield
        finally:
            with self._lock:
                place.in_flight -= 1

    async def look(self, control: EngineControl) -> None:
        """See whether users are at the engine; one that does not tell is taken to have none."""
        try:
            load = await control.load()
        except EngineError:
            return
        with self._lock:
            place = self._place(control.client.url)
            ours, place.most_in_flight = place.most_in_flight, place.in_flight
            if load is None or not users_among(load, ours):
                return
            is_new = self._allowed(place) > self.manners.beside_users
            place.users_at = monotonic()
        if is_new:
            log.info("learning_makes_room", url=control.client.url, kept=self.manners.beside_users)

    def _excess(self, place: _Place) -> float:
        """Requests beyond what is allowed; without users each call bounds only its own."""
        allowed = self._allowed(place)
        return place.taken - allowed if allowed < self.manners.most else -inf

    def _allowed(self, place: _Place) -> int:
        quiet_s = None if place.users_at is None else monotonic() - place.users_at
        return self.manners.allowed(quiet_s)

    def _place(self, url: str) -> _Place:
        return self._places.setdefault(url, _Place())
