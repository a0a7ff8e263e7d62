"""A closed-loop load over kept connections, each reply read and checked to its end.

``python -m benchmarks.load PORT PATH_OF_BODY KEY CLIENTS SECONDS`` prints one JSON object.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import httptools
import uvloop

from benchmarks.stats import percentile
from benchmarks.stub import CHUNKS, WORD

WARM_UP_S = 0.5


class Tally:
    """What the clients saw after the warm-up; times in seconds."""

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self.latencies: list[float] = []
        self.first_bytes: list[float] = []
        self.failures: Counter[str] = Counter()
        self.answered = 0
        """Whole replies, those of the warm-up too."""


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, is_stream: bool, tally: Tally, begins_at: float) -> None:
        self._request = request
        self._is_stream = is_stream
        self._tally = tally
        self._begins_at = begins_at
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's, though they do the same.
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        if time.perf_counter() < self._tally.ends_at:
            self._tally.failures["connection lost"] += 1
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if not self._parts:
            self._first_at = time.perf_counter()
        self._parts.append(body)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self._tally.answered += 1
        if problem := self._problem():
            self._tally.failures[problem] += 1
        elif self._begins_at <= self._asked_at and now <= self._tally.ends_at:
            self._tally.latencies.append(now - self._asked_at)
            self._tally.first_bytes.append(self._first_at - self._asked_at)
        if now < self._tally.ends_at:
            self._ask()
        else:
            self._transport.close()

    def _ask(self) -> None:
        self._parts: list[bytes] = []
        self._asked_at = self._first_at = time.perf_counter()
        self._transport.write(self._request)

    def _problem(self) -> str | None:
        body = b"".join(self._parts)
        if (status := self._parser.get_status_code()) != 200:
            return f"status {status}"
        if body.count(WORD.encode()) != CHUNKS:
            return "tokens are missing"
        if self._is_stream and not body.endswith(b"data: [DONE]\n\n"):
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


async def closed_loop(
    port: int, body: bytes, key: str, clients: int, seconds: float
) -> dict[str, Any]:
    """Rates (per second) and times (milliseconds) of ``clients`` that ask without a pause."""
    is_stream = json.loads(body).get("stream") is True
    begins_at = time.perf_counter() + WARM_UP_S
    tally = Tally(begins_at + seconds)
    request = request_bytes(port, body, key)
    loop = asyncio.get_running_loop()
    crowd = [
        (await loop.create_connection(
            lambda: Client(request, is_stream, tally, begins_at), "127.0.0.1", port
        ))[1]
        for _ in range(clients)
    ]  # fmt: skip
    await asyncio.wait([client.closed for client in crowd], timeout=WARM_UP_S + seconds + 30)
    return {
        "requests_per_second": len(tally.latencies) / seconds,
        "all_requests": tally.answered,
        "failures": dict(tally.failures),
        "latency_ms": _percentiles(tally.latencies),
        "first_byte_ms": _percentiles(tally.first_bytes),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {f"p{part}": 1000 * percentile(seconds, part) for part in (50, 95, 99)}


if __name__ == "__main__":
    _port, _body, _key, _clients, _seconds = sys.argv[1:]
    _text = Path(_body).read_bytes()
    _seen = uvloop.run(closed_loop(int(_port), _text, _key, int(_clients), float(_seconds)))
    sys.stdout.write(json.dumps(_seen) + "\n")
