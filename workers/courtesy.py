"""How learning makes room for users at the engine.

While users have requests there, learning keeps few of its own, and those only for a part of the
time; once they have been gone for a while it goes back to all of them, step by step. Users are what
the engine has to do beyond what this process asked it for. So several workers that learn over one
engine take each other for users, and keep few requests each.
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

WATCHED_S = 4 * LOOK_S
"""An engine that was last looked at longer ago was not watched meanwhile."""


@dataclass(frozen=True, slots=True)
class Manners:
    """How many requests learning keeps at one engine."""

    most: int
    """Of one call, while no user needs it."""
    beside_users: int
    """While users do; at least 1, so that learning always gets on."""
    gone_s: float
    """Users need it for so long after they were last seen."""
    share: float = 1.0
    """Part of the time, above 0, in which those beside users are there."""

    @classmethod
    def of(cls, settings: LearningSettings) -> "Manners":
        most = settings.rollout_concurrency
        beside = min(settings.rollouts_beside_users, most)
        share = settings.share_beside_users if beside < most else 1.0
        return cls(most, beside, settings.users_gone_s, share)

    def rest_s(self, busy_s: float) -> float:
        """How long none is begun beside users after some were there for `busy_s`."""
        return busy_s * (1 / self.share - 1)

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
    """When users were last seen; later by the time in which nobody looked."""
    looked_at: float = -inf
    answered: int = 0
    """Requests of ours that were answered whole."""
    others: int | None = None
    """Requests of others that the engine has answered for sure; None before the first look."""
    finished: int = 0
    """All that it had answered at the last look."""
    began_at: float = -inf
    """When the present requests began to be there, or users came to them."""
    is_ending: bool = False
    """Whether one of them has ended: beside users no further one begins before all have."""
    rests_until: float = -inf
    is_looked_at: bool = False


@dataclass(slots=True)
class Courtesy:
    """What all samplers that share it have at the engines; safe to share between threads."""

    manners: Manners
    aborted: int = 0
    """Requests that were broken off for users, and asked again later."""
    _places: dict[str, _Place] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, url: str, *, one_by_one: bool = False) -> bool:
        """Begin a request, unless users need the engine and enough are there; `give` ends it.

        Args:
            one_by_one: beside users one is enough, whatever the manners allow.
        """
        with self._lock:
            place = self._place(url)
            if self._excess(place, one_by_one) >= 0 or self._must_rest(place):
                return False
            if not place.taken:
                place.began_at = monotonic()
            place.taken += 1
            return True

    def give(self, url: str) -> None:
        with self._lock:
            self._end_one(self._place(url))

    def take_back(self, url: str, *, one_by_one: bool = False) -> bool:
        """Whether a request must be broken off for users; its place is given back already."""
        with self._lock:
            place = self._place(url)
            if self._excess(place, one_by_one) <= 0:
                return False
            self._end_one(place)
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
            with self._lock:
                place.answered += 1
        finally:
            with self._lock:
                place.in_flight -= 1

    async def look(self, control: EngineControl) -> None:
        """See whether users are at the engine; one that does not tell is taken to have none.

        One look at a time: what was in flight is counted from the end of the one before.
        """
        with self._lock:
            place = self._place(control.client.url)
            if place.is_looked_at:
                return
            place.is_looked_at = True
        load: EngineLoad | None = None
        try:
            load = await control.load()
        except EngineError as error:
            log.debug("engine_load_not_read", url=control.client.url, error=str(error))
        finally:
            self._judge(control.client.url, load)

    def _judge(self, url: str, load: EngineLoad | None) -> None:
        with self._lock:
            place = self._place(url)
            place.is_looked_at = False
            ours, place.most_in_flight = place.most_in_flight, place.in_flight
            self._count_only_what_was_watched(place)
            if load is None:
                return
            have_been = _have_others_been(place, load.finished)
            if not users_among(load, ours) and not have_been:
                return
            is_new = self._allowed(place) > self.manners.beside_users
            place.users_at = monotonic()
            if is_new:
                place.began_at = place.users_at
        if is_new:
            log.info("learning_makes_room", url=url, kept=self.manners.beside_users)

    def _count_only_what_was_watched(self, place: _Place) -> None:
        """Users who are not seen during a training are not gone, and must not meet all rollouts."""
        now = monotonic()
        unwatched_s = now - place.looked_at
        if place.users_at is not None and unwatched_s > WATCHED_S:
            place.users_at += unwatched_s
        place.looked_at = now

    def _end_one(self, place: _Place) -> None:
        place.taken -= 1
        place.is_ending = place.taken > 0
        if not place.taken:
            now = monotonic()
            place.rests_until = now + self.manners.rest_s(now - place.began_at)

    def _must_rest(self, place: _Place) -> bool:
        if self._quiet_s(place) >= self.manners.gone_s or self.manners.share == 1:
            return False
        return place.is_ending or monotonic() < place.rests_until

    def _excess(self, place: _Place, one_by_one: bool) -> float:
        """Requests beyond what is allowed; without users each call bounds only its own."""
        allowed = self._allowed(place)
        if allowed == self.manners.most:
            return -inf
        return place.taken - (1 if one_by_one else allowed)

    def _allowed(self, place: _Place) -> int:
        return self.manners.allowed(None if place.users_at is None else self._quiet_s(place))

    def _quiet_s(self, place: _Place) -> float:
        """Since users were last seen."""
        return inf if place.users_at is None else monotonic() - place.users_at

    def _place(self, url: str) -> _Place:
        return self._places.setdefault(url, _Place())


def _have_others_been(place: _Place, finished: int | None) -> bool:
    """Whether the engine has answered somebody else since the look before, however shortly.

    What of ours is in flight may be among what it counts already, so that is given away.
    """
    if finished is None:
        return False
    is_another = finished < place.finished  # it was restarted, and counts anew
    place.finished = finished
    others = finished - place.answered - place.in_flight
    if place.others is None or is_another:
        place.others = others
        return False
    have_been = others > place.others
    place.others = max(place.others, others)
    return have_been
