"""An open-loop load: requests go out when they are due, whatever the server does.

A latency counts from the moment its request was due, so what the load sends late is counted too (no
coordinated omission). A plain loop over select(2), whose timeouts are microseconds; an event loop's
are milliseconds, as much as what is measured.

``python -m benchmarks.open_loop PORT PATH_OF_BODY KEY RATE SECONDS SEED`` prints one JSON object.
"""

import gc
import json
import select
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httptools

from benchmarks.load import Reply, percentiles_ms, problem_of, request_bytes
from benchmarks.stats import arrivals

WARM_UP_S = 1.0
PATIENCE_S = 30.0
"""How long after the last request a reply is waited for."""

KEPT = 32
"""Connections opened beforehand."""

MOST = 900
"""Connections at once: select takes no more than 1,024 files."""

FRESH_S = 3.0
"""A connection that lay idle for longer is closed by us: servers close theirs after five seconds."""


class Connection:
    """One kept connection with at most one request under way."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = httptools.HttpResponseParser(self)
        self._is_complete = False
        self.used_at = time.perf_counter()
        self.due_at = 0.0
        self.reply = Reply(0.0)

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, request: bytes, due_at: float) -> None:
        self._is_complete = False
        self.due_at = due_at
        self.reply = Reply(time.perf_counter())
        self._socket.sendall(request)

    def read(self) -> bool:
        """Take what has arrived; whether the reply is whole.

        Raises:
            OSError: the connection is gone.
        """
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("closed by the server")
        self._parser.feed_data(data)
        return self._is_complete

    def on_body(self, body: bytes) -> None:
        self.reply.add(body)

    def on_message_complete(self) -> None:
        self.reply.end(self._parser.get_status_code())
        self.used_at = self.reply.ended_at
        self._is_complete = True

    def close(self) -> None:
        self._socket.close()


class Pool:
    """Idle connections; the one used last goes out first, so that few are kept warm."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle = [Connection(port) for _ in range(KEPT)]
        self.opened = KEPT

    def take(self) -> Connection:
        """A connection; a new one where none is idle, whose opening then counts as waiting."""
        while self._idle:
            connection = self._idle.pop()
            if time.perf_counter() - connection.used_at < FRESH_S:
                return connection
            connection.close()
        self.opened += 1
        return Connection(self._port)

    def give(self, connection: Connection) -> None:
        self._idle.append(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


class OpenLoop:
    """One run; times in seconds."""

    def __init__(self, port: int, body: bytes, key: str) -> None:
        self._request = request_bytes(port, body, key)
        self._is_stream = json.loads(body).get("stream") is True
        self._pool = Pool(port)
        self._busy: set[Connection] = set()
        self._counts_from = 0.0
        self.latencies: list[float] = []
        self.first_bytes: list[float] = []
        self.lateness: list[float] = []
        self.failures: Counter[str] = Counter()

    def run(self, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        """Rates per second, times in milliseconds."""
        began = time.perf_counter()
        self._counts_from = began + WARM_UP_S
        for moment in arrivals(rate, WARM_UP_S + seconds, seed):
            self._read_until(began + moment)
            while len(self._busy) >= MOST:
                self._read(PATIENCE_S)
            self._send(began + moment)
        patience_ends = time.perf_counter() + PATIENCE_S
        while self._busy and (left := patience_ends - time.perf_counter()) > 0:
            self._read(left)
        self._close()
        return {
            "requests_per_second": len(self.latencies) / seconds,
            "failures": dict(self.failures),
            "latency_ms": percentiles_ms(self.latencies),
            "first_byte_ms": percentiles_ms(self.first_bytes),
            "lateness_ms": percentiles_ms(self.lateness),
            "connections": self._pool.opened,
        }

    def _read_until(self, due_at: float) -> None:
        while (left := due_at - time.perf_counter()) > 0:
            self._read(left)

    def _send(self, due_at: float) -> None:
        try:
            connection = self._pool.take()
            connection.ask(self._request, due_at)
        except OSError:
            self.failures["not sent"] += 1
            return
        self._busy.add(connection)
        if due_at >= self._counts_from:
            self.lateness.append(connection.reply.asked_at - due_at)

    def _read(self, timeout_s: float) -> None:
        for connection in select.select(self._busy, (), (), timeout_s)[0]:
            try:
                is_whole = connection.read()
            except OSError:
                self.failures["connection lost"] += 1
                self._busy.remove(connection)
                connection.close()
                continue
            if is_whole:
                self._busy.remove(connection)
                self._pool.give(connection)
                self._count(connection)

    def _count(self, connection: Connection) -> None:
        reply = connection.reply
        if problem := problem_of(reply, is_stream=self._is_stream):
            self.failures[problem] += 1
        elif connection.due_at >= self._counts_from:
            self.latencies.append(reply.ended_at - connection.due_at)
            self.first_bytes.append(reply.first_at - connection.due_at)

    def _close(self) -> None:
        if self._busy:
            self.failures["no reply"] += len(self._busy)
        for connection in self._busy:
            connection.close()
        self._pool.close()


if __name__ == "__main__":
    _port, _body, _key, _rate, _seconds, _seed = sys.argv[1:]
    gc.disable()  # its pauses would look like the server's; nothing here makes cycles
    _load = OpenLoop(int(_port), Path(_body).read_bytes(), _key)
    sys.stdout.write(json.dumps(_load.run(float(_rate), float(_seconds), int(_seed))) + "\n")
