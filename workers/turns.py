"""Requests made side by side: as many as courtesy allows, through engines that come and go.

One that is broken off for users, or by an engine that ended, is made again; nothing that was
answered is asked twice.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, TypeVar

import structlog

from adapters.sampling import SamplingError
from adapters.types import ProgressCallback
from server.core.clock import monotonic
from server.core.errors import EngineBroken, EngineError, EngineUnavailable, WeightsNotHeld
from server.engine.control import EngineControl
from workers.courtesy import LOOK_S, Courtesy
from workers.patience import PAUSE_S, Patience

log = structlog.get_logger(__name__)

HEALED_WITHIN_S = 15.0
"""By then the gateway has given an engine what it should hold; nothing answered since the start is
after that a name that nobody knows."""

_T = TypeVar("_T")

Restore = Callable[[EngineControl], Awaitable[None]]
"""Gives an engine that was started anew the weights that it has lost."""


@dataclass(frozen=True, slots=True)
class Order(Generic[_T]):
    """One request, which any replica may be asked; equal prompts go to the same one."""

    prompt: Sequence[object]
    ask: Callable[[EngineControl], Awaitable[_T]]


@dataclass(slots=True)
class Turns(Generic[_T]):
    """The requests of one call; use it once."""

    controls: Sequence[EngineControl]
    courtesy: Courtesy
    patience_s: float
    """How long an engine may be away."""
    one_by_one: bool = False
    """Beside users one at a time, whatever the manners allow."""
    restore: Restore | None = None
    on_progress: ProgressCallback | None = None
    was_cut: bool = False
    """Whether a request was left before its end, for users, by an error or a cancel."""
    broken_off: int = 0
    """Requests that were left for users, and asked again."""
    _orders: Sequence[Order[_T]] = ()
    _answers: dict[int, _T] = field(default_factory=dict)
    _waiting: dict[str, deque[int]] = field(default_factory=dict)
    """Numbers of the orders by the engine that they go to first."""
    _ranked: list[list[EngineControl]] = field(default_factory=list)
    """For each order, whom to ask, the best first."""
    _at_work: dict["asyncio.Task[_T]", tuple[int, str]] = field(default_factory=dict)
    """Number and engine of each, the oldest first."""
    _leaving: "set[asyncio.Task[_T]]" = field(default_factory=set)
    """Broken off for users."""
    _restoring: asyncio.Lock = field(default_factory=asyncio.Lock)
    _told_at: float = 0.0
    _began_at: float = field(default_factory=monotonic)

    async def run(self, orders: Sequence[Order[_T]]) -> list[_T]:
        """The answers, in the order of what was asked.

        Raises:
            SamplingError: a request failed, or no engine came back in time.
            Exception: what progress raises to stop the work.
        """
        self._orders = orders
        self._ranked = [in_order(self.controls, order.prompt) for order in orders]
        self._waiting = {control.client.url: deque() for control in self.controls}
        for number, ranked in enumerate(self._ranked):
            self._waiting[ranked[0].client.url].append(number)
        self._told_at = monotonic()
        await asyncio.gather(*map(self.courtesy.look, self.controls))
        watches = [asyncio.create_task(self._watch(control)) for control in self.controls]
        try:
            while len(self._answers) < len(orders):
                self._make_room()
                self._start()
                if self._at_work:
                    first = asyncio.FIRST_COMPLETED
                    await asyncio.wait(self._at_work, timeout=LOOK_S, return_when=first)
                else:
                    await asyncio.sleep(LOOK_S)
                self._collect()
        finally:
            await self._end(watches)
        return [self._answers[number] for number in range(len(orders))]

    def _start(self) -> None:
        for url, numbers in self._waiting.items():
            while (
                numbers
                and len(self._at_work) < self.courtesy.manners.most
                and self.courtesy.take(url, one_by_one=self.one_by_one)
            ):
                number = numbers.popleft()
                task = asyncio.create_task(self._complete(number))
                self._at_work[task] = (number, url)

    def _make_room(self) -> None:
        """Break off the youngest, which have the least to lose."""
        for task, (number, url) in reversed(list(self._at_work.items())):
            if not task.done() and self.courtesy.take_back(url, one_by_one=self.one_by_one):
                task.cancel()
                self.broken_off += 1
                self.was_cut = True
                del self._at_work[task]
                self._leaving.add(task)
                self._waiting[url].appendleft(number)

    def _collect(self) -> None:
        done = [task for task in self._at_work if task.done()]
        failures = []
        for task in done:
            number, url = self._at_work.pop(task)
            self.courtesy.give(url)
            if (failure := task.exception()) is not None:
                failures.append(failure)
                continue
            self._answers[number] = task.result()
            self._report()
        if failures:
            raise _worst(failures)
        if monotonic() - self._told_at > PAUSE_S:
            self._report()  # whoever watches may stop the work meanwhile

    def _report(self) -> None:
        self._told_at = monotonic()
        if self.on_progress is not None:
            self.on_progress(len(self._answers), len(self._orders))

    async def _end(self, watches: Sequence["asyncio.Task[None]"]) -> None:
        self.was_cut = self.was_cut or bool(self._at_work)
        for _, url in self._at_work.values():
            self.courtesy.give(url)
        left = [*self._at_work, *self._leaving, *watches]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self.broken_off:
            log.info("broken_off_for_users", requests=self.broken_off, of=len(self._orders))

    async def _watch(self, control: EngineControl) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.courtesy.look(control)

    async def _complete(self, number: int) -> _T:
        patience = Patience(self.patience_s)
        has_broken = False
        while True:
            try:
                return await self._ask_in_turn(self._ranked[number], self._orders[number])
            except EngineUnavailable:
                # They are being restarted, or users keep them busy beyond our time-out.
                if patience.must_end():
                    raise
            except EngineBroken:
                if has_broken:  # and is well again, or still
                    raise
                has_broken = True
            await asyncio.sleep(PAUSE_S)

    async def _ask_in_turn(self, ranked: Sequence[EngineControl], order: Order[_T]) -> _T:
        for control in ranked[:-1]:
            with suppress(EngineUnavailable):
                return await self._ask(control, order)
        return await self._ask(ranked[-1], order)

    async def _ask(self, control: EngineControl, order: Order[_T]) -> _T:
        try:
            return await self._ask_once(control, order)
        except WeightsNotHeld as error:
            if self.restore is None:
                waited_s = monotonic() - self._began_at
                if not self._answers and waited_s > HEALED_WITHIN_S:
                    raise  # it never had them
                raise EngineUnavailable(str(error)) from error  # the gateway heals it
        async with self._restoring:
            await self.restore(control)
        try:
            return await self._ask_once(control, order)
        except WeightsNotHeld as error:
            raise EngineUnavailable(str(error)) from error

    async def _ask_once(self, control: EngineControl, order: Order[_T]) -> _T:
        with self.courtesy.asking(control.client.url):
            try:
                return await order.ask(control)
            except EngineBroken:
                await control.health()  # one that is ending says so here, and is waited for
                raise


def in_order(controls: Sequence[EngineControl], wanted: Sequence[object]) -> list[EngineControl]:
    """The replicas as this prompt asks them: the same order for whichever weights."""
    if len(controls) == 1:
        return list(controls)
    prompt = json.dumps(wanted)

    def rank(control: EngineControl) -> bytes:
        return blake2b(f"{control.client.url}\n{prompt}".encode(), digest_size=8).digest()

    return sorted(controls, key=rank, reverse=True)


def _worst(failures: Sequence[BaseException]) -> BaseException:
    """What is no failure of an engine comes first: it stops the work on purpose, or is a defect."""
    others = [failure for failure in failures if not isinstance(failure, EngineError)]
    if others:
        return others[0]
    failure = SamplingError(str(failures[0]))
    failure.__cause__ = failures[0]
    return failure
