"""Streams that never stop asking while versions are swapped, and a check of every reply.

What each version says to each prompt is known beforehand. A reply is right if it is whole, names
one of the versions that may answer it, in its header and in each chunk, and says what that version
says. Which may answer follows from the orders: what was asked after an order had returned, only the
version ordered; what was asked before, or while an order was under way, that or the one before.
"""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import httptools
import msgspec

from benchmarks.stats import percentile

WINDOW_S = 0.25
"""What happens within this long after an order counts as during the swap."""

PATIENCE_S = 60.0
"""A reply that is not whole after this long has failed."""

VERSION_HEADER = b"x-everlearn-version"


@dataclass(slots=True)
class Answer:
    """One reply, with its moments on ``time.perf_counter``."""

    prompt: int
    asked_at: float
    """When its client wanted to ask."""
    sent_at: float = 0.0
    """When it could: later, where it was made to wait."""
    times: "array[float]" = field(default_factory=lambda: array("d"))
    """Of each piece of the body."""
    parts: list[bytes] = field(default_factory=list)
    status: int = 0
    version: str = ""
    is_whole: bool = False

    @property
    def first_at(self) -> float:
        return self.times[0] if self.times else time.perf_counter()


@dataclass(frozen=True, slots=True)
class Said:
    """What a stream holds."""

    models: frozenset[str]
    text: str
    has_end: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class Saying:
    """What a version says to a prompt."""

    text: str
    sure: int
    """Leading characters that were the same whatever else was in the batch."""

    @property
    def is_all_sure(self) -> bool:
        return self.sure == len(self.text)

    def fits(self, text: str) -> bool:
        return text == self.text if self.is_all_sure else text.startswith(self.text[: self.sure])


Sayings = Mapping[int, Sequence[Saying]]
"""By version, in the order of the prompts."""


@dataclass(slots=True)
class Order:
    """One swap; moments on ``time.perf_counter``."""

    to: int
    sent_at: float
    returned_at: float = float("inf")
    error: str = ""
    waited: int = 0
    """Requests that were held up for it."""
    first_at: float = float("inf")
    """When the first byte of a reply of the version ordered was seen."""
    next_at: float = float("inf")
    """The same of the reply that was asked for when the order had returned."""

    @property
    def window(self) -> tuple[float, float]:
        return self.sent_at, max(self.sent_at + WINDOW_S, self.returned_at)


class Timeline:
    """Which versions may answer what was asked when."""

    def __init__(self, initial: int) -> None:
        self._initial = initial
        self.orders: list[Order] = []

    def allowed(self, sent_at: float, first_at: float) -> set[int]:
        """The version that served when it was sent, and each that was ordered before it began."""
        allowed = set[int]()
        for order in reversed(self.orders):
            if order.error:  # it may have come about or not
                allowed.add(order.to)
            elif order.returned_at <= sent_at:
                return allowed | {order.to}
            elif order.sent_at <= first_at:
                allowed.add(order.to)
        return allowed | {self._initial}

    def saw(self, version: int, sent_at: float, first_at: float) -> None:
        """A reply of a version to what was asked at ``sent_at`` began at ``first_at``."""
        for order in reversed(self.orders):
            if order.sent_at <= sent_at:
                if order.to == version:
                    order.first_at = min(order.first_at, first_at)
                return


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said of one reply."""

    failure: str = ""
    """Why it is no reply at all."""
    wrong: str = ""
    """Why it is not the reply of a version that may answer."""
    version: int | None = None
    """Who answered, as far as it can be told."""
    is_text_sure: bool = False
    """Whether the whole text was compared, not only its beginning."""


class Checker:
    """Judges replies.

    Args:
        names: by version, the public name that the header must have; None where replies have no
            such header, and only the text tells who answered.
        models: by version, the name that each chunk must have.
    """

    def __init__(
        self, sayings: Sayings, names: Mapping[int, str] | None, models: Mapping[int, str]
    ) -> None:
        self._sayings = sayings
        self._names = names
        self._models = models

    def check(self, answer: Answer, allowed: set[int]) -> Finding:
        if answer.status != 200:
            return Finding(failure=f"status {answer.status}" if answer.status else "no reply")
        said = read_stream(b"".join(answer.parts))
        if said.error or not (answer.is_whole and said.has_end):
            return Finding(failure=f"the stream broke off {said.error}".strip())
        version = self._named(answer) if self._names else self._heard(said.text, answer, allowed)
        if version is None:
            who = f"the header names {answer.version!r}" if self._names else "the text is nobody's"
            return Finding(wrong=who)
        saying = self._sayings[version][answer.prompt]
        wrong = ""
        if version not in allowed:
            wrong = "a version answered that must not"
        elif said.models != {self._models[version]}:
            wrong = "a chunk names another model"
        elif not saying.fits(said.text):
            others = self._speakers(said.text, answer)
            wrong = "the text is another version's" if others else "the text is nobody's"
        return Finding(wrong=wrong, version=version, is_text_sure=saying.is_all_sure)

    def _named(self, answer: Answer) -> int | None:
        assert self._names is not None
        for version, name in self._names.items():
            if name == answer.version:
                return version
        return None

    def _heard(self, text: str, answer: Answer, allowed: set[int]) -> int | None:
        speakers = self._speakers(text, answer)
        return next(iter(speakers & allowed or speakers), None)

    def _speakers(self, text: str, answer: Answer) -> set[int]:
        return {v for v, said in self._sayings.items() if said[answer.prompt].fits(text)}


@lru_cache(maxsize=16)
def read_stream(body: bytes) -> Said:
    """The models, the text and the end of a stream; a stub's bodies are often the same."""
    models: set[str] = set()
    text: list[str] = []
    for line in body.split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        try:
            event: dict[str, Any] = msgspec.json.decode(line[6:])
        except msgspec.DecodeError:
            return Said(frozenset(models), "".join(text), False, "in the middle of a chunk")
        if "error" in event:
            return Said(frozenset(models), "".join(text), False, str(event["error"])[:200])
        models.add(event["model"])
        text += [choice["delta"].get("content") or "" for choice in event["choices"]]
    return Said(frozenset(models), "".join(text), body.rstrip().endswith(b"data: [DONE]"))


class Caller(asyncio.Protocol):
    """One kept connection with at most one request under way; opened anew when it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None

    async def ask(self, request: bytes, prompt: int = 0, asked_at: float = 0.0) -> Answer:
        """The reply, whole or not; never raises for what a server does."""
        now = time.perf_counter()
        answer = Answer(prompt, asked_at or now, now)
        loop = asyncio.get_running_loop()
        try:
            if self._transport is None or self._transport.is_closing():
                self._parser = httptools.HttpResponseParser(self)
                await loop.create_connection(lambda: self, "127.0.0.1", self._port)
            assert self._transport is not None, "it is connected"
            self._answer, self._done = answer, loop.create_future()
            self._transport.write(request)
            async with asyncio.timeout(PATIENCE_S):
                await self._done
        except OSError:  # a TimeoutError is one too
            self.close()
        self._answer = None
        return answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's, though they do the same.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._end()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None and name.lower() == VERSION_HEADER:
            self._answer.version = value.decode()

    def on_body(self, body: bytes) -> None:
        if self._answer is not None:
            self._answer.times.append(time.perf_counter())
            self._answer.parts.append(body)

    def on_message_complete(self) -> None:
        if self._answer is not None:
            self._answer.status = self._parser.get_status_code()
            self._answer.is_whole = True
        self._end()

    def _end(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


class Load:
    """So many clients, each asking again when it is answered.

    Args:
        requests: by prompt, the bytes to send.
        gaps_of_every: keep the pauses within every so many replies; all of a stub's would not fit.
    """

    def __init__(
        self,
        port: int,
        requests: Sequence[bytes],
        checker: Checker,
        timeline: Timeline,
        *,
        gaps_of_every: int = 1,
    ) -> None:
        self._port = port
        self._requests = requests
        self._checker = checker
        self._timeline = timeline
        self._gaps_of_every = gaps_of_every
        self._is_over = False
        self._next = 0
        self._running = 0
        self._idle = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self.waiting = 0
        """Requests that are held up now."""
        self.failures: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.replies = 0
        self.whole_texts = 0
        self.first_bytes = Spans()
        self.gaps = Spans()

    async def run(self, streams: int) -> None:
        """Until :meth:`stop`."""
        await asyncio.gather(*(self._client() for _ in range(streams)))

    def stop(self) -> None:
        self._is_over = True
        self._gate.set()

    def hold(self) -> None:
        """Let no further request begin."""
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    async def idle(self) -> None:
        """Return when no request is under way."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()

    def take(self, answer: Answer) -> Finding:
        """Judge one reply and keep its times."""
        first_at = answer.first_at
        finding = self._checker.check(answer, self._timeline.allowed(answer.sent_at, first_at))
        self.replies += 1
        if finding.failure:
            self.failures[finding.failure] += 1
            return finding
        if finding.wrong:
            self.wrong[finding.wrong] += 1
        self.whole_texts += finding.is_text_sure
        self.first_bytes.add(answer.asked_at, first_at)
        if self.replies % self._gaps_of_every == 0:
            for earlier, later in zip(answer.times, answer.times[1:], strict=False):
                self.gaps.add(earlier, later)
        if finding.version is not None:
            self._timeline.saw(finding.version, answer.sent_at, first_at)
        return finding

    async def ask(self, caller: Caller, prompt: int) -> tuple[Answer, Finding]:
        """One request like those of the clients, and what is to be said of its reply."""
        asked_at = time.perf_counter()
        if not self._gate.is_set():
            self.waiting += 1
            await self._gate.wait()
            self.waiting -= 1
        self._running += 1
        answer = await caller.ask(self._requests[prompt], prompt, asked_at)
        self._running -= 1
        if not self._running:
            self._idle.set()
        return answer, self.take(answer)

    async def _client(self) -> None:
        caller = Caller(self._port)
        while not self._is_over:
            prompt = self._next % len(self._requests)
            self._next += 1
            answer, _ = await self.ask(caller, prompt)
            if answer.status != 200:
                await asyncio.sleep(0.01)  # a refusal is quick, and clients do not hammer
        caller.close()


class Spans:
    """Times with a beginning and an end, kept apart by when they were."""

    def __init__(self) -> None:
        self._begins = array("d")
        self._ends = array("d")

    def add(self, began: float, ended: float) -> None:
        self._begins.append(began)
        self._ends.append(ended)

    def within(self, is_part: Callable[[float, float], bool]) -> list[float]:
        """Lengths (seconds) of those for which ``is_part(began, ended)``."""
        pairs = zip(self._begins, self._ends, strict=True)
        return [ended - began for began, ended in pairs if is_part(began, ended)]


def phases(
    orders: Sequence[Order], counts_from: float
) -> dict[str, Callable[[float, float], bool]]:
    """Before the first order, within an order's window, after the last window; what lies between two
    windows is in none."""
    windows = [order.window for order in orders]
    first, last = windows[0][0], windows[-1][1]

    def is_during(began: float, ended: float) -> bool:
        # The last window that begins before the span ends is the only one that can be open then:
        # windows are in order, and one begins after the last has ended.
        low, high = 0, len(windows)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if windows[middle][0] <= ended else (low, middle)
        return low > 0 and windows[low - 1][1] >= began

    return {
        "before": lambda began, ended: counts_from <= began and ended < first,
        "during": is_during,
        "after": lambda began, _: began > last,
    }


def summary_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the longest in milliseconds; nothing of nothing."""
    if not seconds:
        return {}
    parts = {f"p{part}": 1000 * percentile(seconds, part) for part in (50, 99)}
    return {**parts, "max": 1000 * max(seconds)}
