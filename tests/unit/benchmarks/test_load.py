"""The loads against a server that answers as the stub does, in time or late."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest

from benchmarks.load import Reply, problem_of
from benchmarks.open_loop import OpenLoop
from benchmarks.stub import JSON_REPLY

BODY = json.dumps({"model": "m", "stream": False}).encode()


@contextmanager
def server(delay_s: float = 0, reply: bytes = JSON_REPLY) -> Iterator[int]:
    class Server(ThreadingTCPServer):
        request_queue_size = 128  # with the default of five, further connects are tried again late
        daemon_threads = True
        block_on_close = False

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            while head := self.rfile.readline():
                length = 0
                while line := head.strip().lower():
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                    head = self.rfile.readline()
                self.rfile.read(length)
                time.sleep(delay_s)
                self.wfile.write(reply)

    with Server(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listening.server_address[1]
        finally:
            listening.shutdown()
            thread.join()


def run(port: int, rate: float = 100) -> dict:
    return OpenLoop(port, BODY, "key").run(rate, 0.5, seed=1)


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.open_loop.WARM_UP_S", 0.0)


def test_every_request_is_answered_and_counted():
    with server() as port:
        seen = run(port)

    assert seen["failures"] == {}
    assert seen["requests_per_second"] == pytest.approx(100, rel=0.5)
    assert seen["first_byte_ms"]["p50"] <= seen["latency_ms"]["p50"]


def test_a_slow_server_holds_up_no_later_request():
    with server(delay_s=0.3) as port:
        seen = run(port)

    assert seen["failures"] == {}
    assert 300 <= seen["latency_ms"]["p50"] < 2000  # one after the other would take many seconds
    assert seen["lateness_ms"]["p50"] < 300


def test_a_reply_that_is_not_whole_is_a_failure():
    with server(reply=b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") as port:
        seen = run(port)

    assert seen["latency_ms"] == {}
    assert seen["failures"].keys() == {"tokens are missing"}


@pytest.mark.parametrize(
    ("status", "body", "is_stream", "problem"),
    [
        (200, b" word" * 64, False, None),
        (200, b" word" * 64, True, "the stream has no end"),
        (200, b" word" * 64 + b"data: [DONE]\n\n", True, None),
        (200, b" word" * 63, False, "tokens are missing"),
        (429, b"", False, "status 429"),
    ],
)
def test_what_is_wrong_with_a_reply_is_told(status, body, is_stream, problem):
    reply = Reply(0.0, status=status, parts=[body])

    assert problem_of(reply, is_stream=is_stream) == problem
