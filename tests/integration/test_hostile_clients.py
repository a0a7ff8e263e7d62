"""Clients that are slow, silent, many or malformed: each is refused or bounded, and others are served."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.core.settings import Settings
from server.db import Base
from server.db.session import Database
from server.embedded.preflight import free_port
from server.services import keys
from server.services.bootstrap import ensure_line
from tests.conftest import BASE_HASH
from tests.support.fake_engine import FakeEngine, serve
from tests.support.stack import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ADMIN_KEY = "el_admin_key_of_the_hostile_tests"
HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}
HEAD_TIMEOUT_S, BODY_TIMEOUT_S, WRITE_TIMEOUT_S = 1.5, 2.0, 1.5
MANY = 10_000


@dataclass
class Gateway:
    port: int
    engine: FakeEngine
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def chat(self) -> int:
        body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]}
        answer = httpx2.post(
            f"{self.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=20
        )
        return answer.status_code

    def say(self, raw: bytes) -> bytes:
        """What is answered to these very bytes, until the connection is closed."""
        with self.connect() as client:
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
            return read_all(client)


def read_all(client: socket.socket) -> bytes:
    answer = b""
    try:
        while part := client.recv(65536):
            answer += part
    except ConnectionResetError:
        pass
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    database = Database(f"sqlite:///{folder / 'test.db'}")
    settings = Settings(_env_file=None, home=folder / "home")
    Base.metadata.create_all(database.engine)
    with database.unit_of_work() as session:
        ensure_line(session, settings, base_path=folder / "base", base_hash=BASE_HASH)
        keys.ensure_admin_key(session, ADMIN_KEY)
    engine = FakeEngine()
    with ExitStack() as stack:
        upstream = stack.enter_context(serve(engine.app()))
        port = free_port()
        environment = {
            **os.environ,
            "EVERLEARN_HOME": str(folder / "home"),
            "EVERLEARN_DATABASE_URL": str(database.url),
            "EVERLEARN_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
            "EVERLEARN_ENGINE__URL": upstream.url,
            "EVERLEARN_GATEWAY__HEAD_TIMEOUT_S": str(HEAD_TIMEOUT_S),
            "EVERLEARN_GATEWAY__BODY_TIMEOUT_S": str(BODY_TIMEOUT_S),
            "EVERLEARN_GATEWAY__WRITE_TIMEOUT_S": str(WRITE_TIMEOUT_S),
        }
        log = stack.enter_context((folder / "gateway.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", "server.serve", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
        gateway = Gateway(port, engine, process)

        def is_ready() -> bool:
            try:
                return httpx2.get(f"{gateway.url}/readyz").status_code == 200
            except httpx2.TransportError:
                return False

        try:
            wait_for(is_ready, "a ready gateway", timeout_s=40)
            yield gateway
        finally:
            process.kill()
            process.wait(10)
            database.close_sync()


@pytest.mark.parametrize(
    "said", [b"", b"\r\n", b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"]
)
def test_a_client_that_falls_silent_is_let_go(gateway: Gateway, said: bytes) -> None:
    began = time.monotonic()
    with gateway.connect() as client:
        client.sendall(said)
        answer = read_all(client)

    assert status_of(answer) == 408
    assert HEAD_TIMEOUT_S * 0.5 < time.monotonic() - began < HEAD_TIMEOUT_S + 5


def test_headers_that_drip_are_not_waited_for(gateway: Gateway) -> None:
    began = time.monotonic()
    with gateway.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        try:
            while time.monotonic() - began < HEAD_TIMEOUT_S + 5:
                client.sendall(b"x: y\r\n")
                time.sleep(0.1)
        except OSError:
            pass

    assert time.monotonic() - began < HEAD_TIMEOUT_S + 4


def test_endless_headers_are_refused(gateway: Gateway) -> None:
    with gateway.connect() as client:
        try:
            client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
            for number in range(20_000):
                client.sendall(b"x-%d: %s\r\n" % (number, b"y" * 100))
        except OSError:
            pass
        else:
            pytest.fail("two megabytes of headers were taken")

    assert gateway.chat() == 200


def test_a_body_that_stops_is_let_go(gateway: Gateway) -> None:
    began = time.monotonic()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
    with gateway.connect() as client:
        client.sendall(head.encode() + b"content-length: 1000\r\n\r\n" + b"{")
        read_all(client)

    assert time.monotonic() - began < BODY_TIMEOUT_S + 5


def test_a_client_that_does_not_read_ends_the_engines_work(gateway: Gateway) -> None:
    cancelled = gateway.engine.cancelled
    gateway.engine.words = 200_000
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "stream": True}
    raw = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
    try:
        with gateway.connect() as client:
            client.sendall(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
            wait_for(
                lambda: gateway.engine.cancelled > cancelled, "the engine to stop", timeout_s=30
            )
    finally:
        gateway.engine.words = 6


def test_ten_thousand_connections_do_not_stop_the_service(gateway: Gateway) -> None:
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < MANY + 500:
        pytest.skip(f"a process may open {files} files here, and {MANY} connections are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    slowest_s = 0.0
    with ExitStack() as stack:
        for number in range(MANY):
            stack.enter_context(gateway.connect())
            if number % 2000 == 1999:
                began = time.monotonic()
                with gateway.connect() as one:
                    one.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    assert status_of(read_all(one)) in (200, 503)
                slowest_s = max(slowest_s, time.monotonic() - began)

    assert slowest_s < 5
    wait_for(lambda: gateway.chat() == 200, "service as before", timeout_s=20)
    assert gateway.process.poll() is None


MALFORMED = [
    b"GET /healthz HTTP/1.1\r\nhost: x\r\nx\x00y: z\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"GET /%ff%fe%00 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"GET //v1//models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"GET http://elsewhere/v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"TRACE /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("raw", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_malformed_is_the_clients_fault(gateway: Gateway, raw: bytes) -> None:
    answer = gateway.say(raw)

    assert answer == b"" or 400 <= status_of(answer) < 500
    assert gateway.chat() == 200


@given(raw=st.binary(max_size=400))
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_with_a_key_is_answered_without_a_5xx(gateway: Gateway, raw: bytes) -> None:
    answer = httpx2.post(f"{gateway.url}/v1/chat/completions", content=raw, headers=HEADERS)

    assert 400 <= answer.status_code < 500
    assert set(answer.json()) == {"error"}
