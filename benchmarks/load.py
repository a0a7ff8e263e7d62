"""A closed-loop load over kept connections, each reply read and checked to its end.

``python -m benchmarks.load PORT PATH_OF_BODY KEY CLIENTS SECONDS`` prints one JSON object.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import httptools
import uvloop

from benchmarks.stats import percentile
from benchmarks.stub import CHUNKS, WORD

WARM_UP_S = 0.5


@dataclass(slots=True)
class Reply:
    """One reply, with its moments on ``time.perf_counter``."""

    asked_at: float
    first_at: float = 0.0
    """The body's first byte; 0 before it."""
    ended_at: float = 0.0
    status: int = 0
    parts: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def add(self, body: bytes) -> None:
        if not self.parts:
            self.first_at = time.perf_counter()
        self.parts.append(body)

    def end(self, status: int) -> None:
        self.ended_at = time.perf_counter()
        self.first_at = self.first_at or self.ended_at
        self.status = status


class Judge(Protocol):
    """Who is told of what clients see, and says whether they go on."""

    def take(self, reply: Reply) -> bool:
        """A whole reply; whether its client asks again."""

    def lose(self) -> None:
        """A connection that ended in the middle of a reply."""


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, judge: Judge) -> None:
        self._request = request
        self._judge = judge
        self._reply: Reply | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's, though they do the same.
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        if self._reply is not None:
            self._judge.lose()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self._reply is not None:
            self._reply.add(body)

    def on_message_complete(self) -> None:
        reply, self._reply = self._reply, None
        if reply is None:
            return
        reply.end(self._parser.get_status_code())
        if self._judge.take(reply):
            self._ask()
        else:
            self._transport.close()

    def _ask(self) -> None:
        self._reply = Reply(time.perf_counter())
        self._transport.write(self._request)


class Tally:
    """What the clients saw between two moments; times in seconds."""

    def __init__(self, begins_at: float, ends_at: float, *, is_stream: bool) -> None:
        self._begins_at = begins_at
        self._ends_at = ends_at
        self._is_stream = is_stream
        self.latencies: list[float] = []
        self.first_bytes: list[float] = []
        self.failures: Counter[str] = Counter()
        self.answered = 0
        """Whole replies, those of the warm-up too."""

    def take(self, reply: Reply) -> bool:
        self.answered += 1
        if problem := problem_of(reply, is_stream=self._is_stream):
            self.failures[problem] += 1
        elif self._begins_at <= reply.asked_at and reply.ended_at <= self._ends_at:
            self.latencies.append(reply.ended_at - reply.asked_at)
            self.first_bytes.append(reply.first_at - reply.asked_at)
        return reply.ended_at < self._ends_at

    def lose(self) -> None:
        if time.perf_counter() < self._ends_at:
            self.failures["connection lost"] += 1


def problem_of(reply: Reply, *, is_stream: bool) -> str | None:
    """What is wrong with a reply that should be the stub's."""
    if reply.status != 200:
        return f"status {reply.status}"
    body = reply.body
    if body.count(WORD.encode()) != CHUNKS:
        return "tokens are missing"
    if is_stream and not body.endswith(b"data: [DONE]\n\n"):
        return "the stream has no end"
    return None


def request_bytes(port: int, body: bytes, key: str) -> bytes:
    """One POST to the chat route."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def crowd(port: int, request: bytes, judge: Judge, clients: int, timeout_s: float) -> None:
    """Let so many clients ask until the judge has let them all go, or the time is over."""
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Client(request, judge), "127.0.0.1", port))[1]
        for _ in range(clients)
    ]
    await asyncio.wait([client.closed for client in made], timeout=timeout_s)


async def closed_loop(
    port: int, body: bytes, key: str, clients: int, seconds: float
) -> dict[str, Any]:
    """Rates (per second) and times (milliseconds) of ``clients`` that ask without a pause."""
    begins_at = time.perf_counter() + WARM_UP_S
    is_stream = json.loads(body).get("stream") is True
    tally = Tally(begins_at, begins_at + seconds, is_stream=is_stream)
    request = request_bytes(port, body, key)
    await crowd(port, request, tally, clients, WARM_UP_S + seconds + 30)
    return {
        "requests_per_second": len(tally.latencies) / seconds,
        "all_requests": tally.answered,
        "failures": dict(tally.failures),
        "latency_ms": percentiles_ms(tally.latencies),
        "first_byte_ms": percentiles_ms(tally.first_bytes),
    }


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds; nothing of nothing."""
    if not seconds:
        return {}
    return {f"p{part}": 1000 * percentile(seconds, part) for part in (50, 95, 99)}


if __name__ == "__main__":
    _port, _body, _key, _clients, _seconds = sys.argv[1:]
    _text = Path(_body).read_bytes()
    _seen = uvloop.run(closed_loop(int(_port), _text, _key, int(_clients), float(_seconds)))
    sys.stdout.write(json.dumps(_seen) + "\n")
