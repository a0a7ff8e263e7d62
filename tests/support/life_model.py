"""What may happen to one line of versions, as a small pure model: no HTTP, no database, no clock.

A test gives the same orders to a real server and to a :class:`Life`, and compares. Every order
returns the :class:`Verdict` that the server must come to; the model changes only when the verdict
is an acceptance. Versions are their numbers, and ``None`` is the base model everywhere.

Not covered: how long anything takes, which replica answers, what a version says.
"""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import permutations

PROMOTE = "promote"
ROLLBACK = "rollback"

SERVABLE = "servable"
CANDIDATE = "candidate"
RETIRED = "retired"
FORCEABLE = {CANDIDATE, "rejected", "unproven"}
"""What an admin may promote by force."""

_NUMBER = re.compile(r"v?([1-9][0-9]{0,8})")
_SELECTOR = re.compile(r"v([1-9][0-9]{0,8})(?:\.([0-9a-f]{8}))?")

Version = int | None
"""A version's number; None is the base model."""


@dataclass(frozen=True)
class Verdict:
    """What an order or a request is answered: the status and, of a refusal, the error's code."""

    status: int = 200
    code: str | None = None

    @property
    def is_accepted(self) -> bool:
        return self.status < 400


ACCEPTED = Verdict()
ENGINE_AWAY = Verdict(503, "engine_unavailable")


@dataclass(frozen=True)
class Order:
    """A move of the champion as an admin asks for it."""

    kind: str
    """``promote`` or ``rollback``."""
    to: str | None
    """A version as the API takes it; None, only of a rollback: what served before."""
    force: bool = False
    """Of a promotion: take a version that has not passed the gate, too."""
    revision: int | None = None
    """The count of moves that the order was made for; None: whatever it is."""


@dataclass(frozen=True)
class Event:
    """One accepted move."""

    kind: str
    before: Version
    after: Version


@dataclass(frozen=True)
class Trial:
    """A challenger beside the champion."""

    mode: str
    """``shadow`` or ``canary``."""
    number: int
    share: float
    """Percent of the requests that it answers, or gets copies of."""


@dataclass
class Life:
    """One line from its making on."""

    line: str
    statuses: dict[int, str] = field(default_factory=dict)
    """Of every version, by number."""
    engine_names: dict[int, str] = field(default_factory=dict)
    base_engine_name: str = "smollm2@base"
    pile: list[Version] = field(default_factory=lambda: [None])
    """What has served, oldest first: a promotion lies on top, a rollback takes off. Never empty."""
    events: list[Event] = field(default_factory=list)
    documents: dict[str, bool] = field(default_factory=dict)
    """By id, whether it is still there."""
    seen: dict[int, set[str]] = field(default_factory=dict)
    """The documents that a version was trained on."""
    trial: Trial | None = None
    replicas: list[bool] = field(default_factory=lambda: [True])
    """Of every replica, whether it is up."""

    # What can be asked of it

    @property
    def champion(self) -> Version:
        return self.pile[-1]

    @property
    def has_engine(self) -> bool:
        return any(self.replicas)

    @property
    def servable(self) -> list[int]:
        """Newest first."""
        numbers = (number for number, status in self.statuses.items() if status == SERVABLE)
        return sorted(numbers, reverse=True)

    def name(self, version: Version) -> str:
        """The public name, as the header of a reply gives it."""
        return f"{self.line}@base" if version is None else f"{self.line}@v{version}"

    def engine_name(self, version: Version) -> str:
        """What the body of a reply gives."""
        return self.base_engine_name if version is None else self.engine_names[version]

    def models(self) -> list[str]:
        """The names of this line in ``GET /v1/models``, in order."""
        return [self.line, self.name(None), *(self.name(number) for number in self.servable)]

    # Requests

    def chat(self, model: str) -> tuple[Verdict, set[Version]]:
        """The verdict on a request for ``model``, and who may answer it; exactly one does.

        While a canary runs, those are two: the champion stands in where the challenger is away.
        """
        verdict, version = self._resolve(model)
        if not verdict.is_accepted:
            return verdict, set()
        if not self.has_engine:
            return ENGINE_AWAY, set()
        is_drawn = model in (self.line, f"{self.line}@champion")
        if is_drawn and self.trial is not None and self.trial.mode == "canary":
            return verdict, {version, self.trial.number}
        return verdict, {version}

    # Moves of the champion

    def move(self, order: Order) -> Verdict:
        """Promote or roll back, with nobody else giving orders."""
        verdict, target = self._plan(order)
        if not verdict.is_accepted:
            return verdict
        if target is not None and not self.has_engine:
            return ENGINE_AWAY  # nothing is moved to what has not been proven
        self._move(order.kind, target)
        if order.force and target is not None:
            self.statuses[target] = SERVABLE
        return ACCEPTED

    def settle(self, orders: Sequence[Order], verdicts: Sequence[Verdict]) -> bool:
        """Take the outcome of orders that were given at the same time, if one order of events
        explains it; else change nothing and return False.

        Every accepted order must be acceptable in its turn. A refused one must be right at some
        moment of the sequence; ``alias_moved`` is right whenever another order was accepted.
        """
        pairs = list(zip(orders, verdicts, strict=True))
        accepted = [order for order, verdict in pairs if verdict.is_accepted]
        refused = [pair for pair in pairs if not pair[1].is_accepted]
        for sequence in permutations(accepted):
            moments = [deepcopy(self)]
            for order in sequence:
                moments.append(deepcopy(moments[-1]))
                if not moments[-1].move(order).is_accepted:
                    break
            else:
                if all(_is_right(moments, order, verdict) for order, verdict in refused):
                    last = moments[-1]
                    self.pile, self.events = last.pile, last.events
                    self.statuses = last.statuses
                    return True
        return False

    # Versions

    def register(self, engine_name: str, status: str = CANDIDATE, seen: Sequence[str] = ()) -> int:
        """A worker enters a new version; its number."""
        number = max(self.statuses, default=0) + 1
        self.statuses[number] = status
        self.engine_names[number] = engine_name
        self.seen[number] = set(seen)
        return number

    def conclude_exam(self, number: int, status: str) -> None:
        """A worker opens a candidate to serving, or closes it."""
        self.statuses[number] = status

    def retire(self, wanted: str) -> Verdict:
        """Close a version for good; a trial of it ends. Doing it twice changes nothing."""
        verdict, number = self._version(wanted)
        if not verdict.is_accepted:
            return verdict
        if number is None:
            return Verdict(400, "invalid_request")
        if number == self.champion:
            return Verdict(409, "version_in_use")
        if self.trial is not None and self.trial.number == number:
            self.trial = None
        self.statuses[number] = RETIRED
        return ACCEPTED

    # Trials

    def start_trial(self, wanted: str, mode: str, share: float, *, force: bool = False) -> Verdict:
        """Put a version beside the champion."""
        if not 0 < share <= 100:
            return Verdict(400, "invalid_request")
        verdict, number = self._version(wanted)
        if not verdict.is_accepted:
            return verdict
        if number is None:
            return Verdict(400, "invalid_request")
        may_try = {SERVABLE, "unproven"} | ({"rejected"} if force else set())
        if self.statuses[number] not in may_try:
            return Verdict(409, "version_not_servable")
        if number == self.champion:
            return Verdict(409, "already_champion")
        if self.trial is not None:
            return Verdict(409, "trial_open")
        if not self.has_engine:
            return ENGINE_AWAY
        self.trial = Trial(mode, number, share)
        return ACCEPTED

    def abort_trial(self) -> Verdict:
        """End the trial; the champion answers everything again."""
        if self.trial is None:
            return Verdict(404, "not_found")
        self.trial = None
        return ACCEPTED

    # Documents

    def add_document(self, document_id: str) -> None:
        self.documents[document_id] = True

    def delete_document(self, document_id: str) -> tuple[Verdict, list[str]]:
        """Forget one; the versions that saw it, by name. Doing it twice names them again."""
        if document_id not in self.documents:
            return Verdict(404, "not_found"), []
        self.documents[document_id] = False
        return ACCEPTED, [self.name(number) for number in self.tainted_by(document_id)]

    def tainted_by(self, document_id: str) -> list[int]:
        """The versions that were trained on a document, oldest first."""
        return sorted(number for number, seen in self.seen.items() if document_id in seen)

    def serve_rebuilt(self, number: int, document_id: str) -> None:
        """The version that was built anew without the document serves: all that saw it retire."""
        self._move(PROMOTE, number)
        for tainted in self.tainted_by(document_id):
            self.statuses[tainted] = RETIRED

    # Replicas

    def stop_replica(self, index: int = 0) -> None:
        self.replicas[index] = False

    def start_replica(self, index: int = 0) -> None:
        self.replicas[index] = True

    # Inside

    def _resolve(self, model: str) -> tuple[Verdict, Version]:
        unknown = Verdict(404, "model_not_found")
        line, at, selector = model.partition("@")
        if line != self.line or (at and not selector):
            return unknown, None
        if selector == "base":
            return ACCEPTED, None
        version = self.champion
        if selector == "challenger" and self.trial is not None:
            version = self.trial.number
        elif match := _SELECTOR.fullmatch(selector):
            version = int(match[1])
            if version not in self.statuses:
                return unknown, None
            if match[2] and self.engine_names[version] != model:
                return unknown, None
        elif selector not in ("", "champion"):
            return unknown, None
        is_on_trial = self.trial is not None and self.trial.number == version
        if version is not None and self.statuses[version] != SERVABLE and not is_on_trial:
            return Verdict(409, "version_not_servable"), None
        return ACCEPTED, version

    def _plan(self, order: Order) -> tuple[Verdict, Version]:
        moved = Verdict(409, "alias_moved")
        is_late = order.revision is not None and order.revision != len(self.events)
        if order.to is None:
            if is_late:
                return moved, None
            if self.champion is None:
                return Verdict(409, "nothing_to_roll_back"), None
            target = self._before()
        else:
            verdict, target = self._version(order.to)
            if not verdict.is_accepted:
                return verdict, None
            if is_late:
                return moved, None
        may_serve = {SERVABLE} | (FORCEABLE if order.force else set())
        if target is not None and self.statuses[target] not in may_serve:
            return Verdict(409, "version_not_servable"), None
        if target == self.champion:
            return Verdict(409, "already_champion"), None
        return ACCEPTED, target

    def _version(self, wanted: str) -> tuple[Verdict, Version]:
        """The version that an order names."""
        text = wanted.removeprefix(f"{self.line}@")
        if text == "base":
            return ACCEPTED, None
        if (match := _NUMBER.fullmatch(text)) is None:
            return Verdict(400, "invalid_request"), None
        number = int(match[1])
        return (ACCEPTED, number) if number in self.statuses else (Verdict(404, "not_found"), None)

    def _before(self) -> Version:
        """What served before the champion and still may."""
        for version in self.pile[-2::-1]:
            may_serve = version is None or self.statuses[version] == SERVABLE
            if may_serve and version != self.champion:
                return version
        return None

    def _move(self, kind: str, target: Version) -> None:
        self.events.append(Event(kind, self.champion, target))
        if kind == ROLLBACK and target in self.pile:
            while self.pile[-1] != target:
                self.pile.pop()
        else:
            self.pile.append(target)


def _is_right(moments: Sequence[Life], order: Order, verdict: Verdict) -> bool:
    """Whether an order could be refused so at some moment."""
    if verdict.code == "alias_moved":
        return len(moments) > 1
    return any(deepcopy(moment).move(order) == verdict for moment in moments)
