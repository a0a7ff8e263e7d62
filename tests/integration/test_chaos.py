"""Parts of a real set-up taken away under load: what a client saw complete is stored, and once.

The gateway is a process of its own over PostgreSQL and Valkey, both real and both behind something
that can take them away. Only the engine is a fake, because what it says is not what is tested.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from sqlalchemy import select
from sqlalchemy.engine import make_url

from server.core.settings import Settings
from server.db import Base, Interaction
from server.db.session import Database
from server.embedded.preflight import free_port
from server.services import keys
from server.services.bootstrap import ensure_line
from tests.conftest import BASE_HASH
from tests.support.chaos import Mode, Proxy
from tests.support.fake_engine import FakeEngine, serve
from tests.support.servers import running_postgres, running_valkey
from tests.support.stack import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ADMIN_KEY = "el_admin_key_of_the_chaos_tests"
HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}
DATABASE_AWAY_S = 30
SLOWEST_S = 5
"""Longest that a chat may take beside a missing database, on a busy machine."""


@dataclass
class Place:
    """The set-up, and the handles by which parts of it are taken away."""

    folder: Path
    database: Database
    database_proxy: Proxy
    engine: FakeEngine
    environment: dict[str, str]
    valkey: ExitStack
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start_gateway(self) -> None:
        command = [sys.executable, "-m", "server.serve", "--port", str(self.port)]
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        wait_for(self.is_ready, "a ready gateway", timeout_s=40)

    def is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def kill_gateway(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stored(self) -> dict[str, str]:
        """Outcome of every stored interaction, by id."""
        with self.database.unit_of_work() as session:
            rows = session.execute(select(Interaction.id, Interaction.outcome)).all()
        assert max(Counter(row.id for row in rows).values(), default=1) == 1
        return {row.id: row.outcome for row in rows}

    def wait_for_rows(self, acknowledged: set[str]) -> None:
        """Until every acknowledged interaction is stored as complete."""

        def are_stored() -> bool:
            stored = self.stored()
            return all(stored.get(row) == "complete" for row in acknowledged)

        wait_for(are_stored, "every acknowledged interaction in the database", timeout_s=30)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture
def place(postgres: str, tmp_path: Path, settings: Settings) -> Iterator[Place]:
    socket_folder = make_url(postgres).query["host"]
    proxy = Proxy(lambda: asyncio.open_unix_connection(f"{socket_folder}/.s.PGSQL.5432"))
    engine = FakeEngine()
    with ExitStack() as stack, ExitStack() as valkey:
        stack.enter_context(proxy.running())
        upstream = stack.enter_context(serve(engine.app()))
        redis_url = valkey.enter_context(running_valkey(tmp_path))
        through_proxy = make_url(postgres).set(
            host="127.0.0.1", port=proxy.port, query={"connect_timeout": "2"}
        )
        database = Database(postgres)
        stack.callback(database.close_sync)
        Base.metadata.drop_all(database.engine)
        Base.metadata.create_all(database.engine)
        with database.unit_of_work() as session:
            ensure_line(session, settings, base_path=tmp_path / "base", base_hash=BASE_HASH)
            keys.ensure_admin_key(session, ADMIN_KEY)
        environment = {
            **os.environ,
            "EVERLEARN_HOME": str(tmp_path / "home"),
            "EVERLEARN_DATABASE_URL": through_proxy.render_as_string(hide_password=False),
            "EVERLEARN_REDIS_URL": redis_url,
            "EVERLEARN_ENGINE__URL": upstream.url,
        }
        place = Place(tmp_path, database, proxy, engine, environment, valkey)
        place.start_gateway()
        try:
            yield place
        finally:
            proxy.set_mode(Mode.PASS)
            place.kill_gateway()


@dataclass
class Load:
    """Clients that chat all the time, streaming and not, and note what reached them whole."""

    url: str
    acknowledged: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    slowest_s: float = 0.0
    _leave: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        with httpx2.Client(base_url=self.url, headers=HEADERS, timeout=20) as client:
            while not self._leave.is_set():
                began = time.monotonic()
                try:
                    self._chat(client, is_stream=number % 2 == 0)
                except httpx2.TransportError:
                    self.broken += 1
                    time.sleep(0.05)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _chat(self, client: httpx2.Client, *, is_stream: bool) -> None:
        body: dict[str, Any] = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": is_stream,
        }
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            content = b"".join(answer.iter_bytes())
        self.statuses[answer.status_code] += 1
        is_whole = answer.status_code == 200 and (not is_stream or b"data: [DONE]" in content)
        if is_whole:
            self.acknowledged.add(answer.headers["x-everlearn-interaction"])


@contextmanager
def load(place: Place, clients: int = 6) -> Iterator[Load]:
    running = Load(place.url)
    threads = [threading.Thread(target=running.run, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running._leave.set()
        for thread in threads:
            thread.join(30)


def reaches(running: Load, more: int) -> Callable[[], bool]:
    """Whether so many more replies have been seen whole from now on."""
    goal = len(running.acknowledged) + more
    return lambda: len(running.acknowledged) >= goal


def test_a_killed_gateway_loses_nothing_it_acknowledged(place: Place) -> None:
    with load(place) as running:
        for _ in range(3):
            wait_for(reaches(running, 50), "traffic", timeout_s=30)
            place.kill_gateway()
            place.start_gateway()
        wait_for(reaches(running, 50), "traffic after the last start", timeout_s=30)

    place.wait_for_rows(running.acknowledged)
    assert set(running.statuses) <= {200, 503}  # 503: started, and the routes not read yet
    assert running.broken > 0


def test_what_a_killed_gateway_left_is_stored_without_a_new_one(place: Place) -> None:
    with load(place) as running:
        wait_for(reaches(running, 50), "traffic", timeout_s=30)
        place.kill_gateway()

    place.wait_for_rows(running.acknowledged)


def test_a_shipper_that_is_killed_is_replaced(place: Place) -> None:
    assert place.process is not None
    gateway = psutil.Process(place.process.pid)

    with load(place) as running:
        wait_for(reaches(running, 50), "traffic", timeout_s=30)
        (shipper,) = gateway.children()
        shipper.kill()
        wait_for(
            lambda: [one for one in gateway.children() if one.pid != shipper.pid],
            "another shipper",
            timeout_s=20,
        )

    place.wait_for_rows(running.acknowledged)
    assert set(running.statuses) == {200}
    assert running.broken == 0


@pytest.mark.parametrize("mode", [Mode.CUT, Mode.HANG])
def test_serving_goes_on_while_the_database_is_away(place: Place, mode: Mode) -> None:
    away_s = DATABASE_AWAY_S if mode is Mode.CUT else DATABASE_AWAY_S / 3
    with load(place) as running:
        wait_for(reaches(running, 50), "traffic", timeout_s=30)
        place.database_proxy.set_mode(mode)
        before = len(running.acknowledged)
        time.sleep(away_s)
        during = len(running.acknowledged) - before
        place.database_proxy.set_mode(Mode.PASS)
        wait_for(reaches(running, 50), "traffic afterwards", timeout_s=30)

    place.wait_for_rows(running.acknowledged)
    assert during > 50
    assert running.slowest_s < SLOWEST_S
    assert set(running.statuses) == {200}
    assert running.broken == 0


def test_serving_and_taking_documents_goes_on_without_the_queue(place: Place) -> None:
    place.valkey.close()

    with load(place) as running:
        wait_for(reaches(running, 50), "traffic", timeout_s=30)
        answer = httpx2.post(
            f"{place.url}/api/v1/documents", json={"text": "A text."}, headers=HEADERS, timeout=20
        )

    assert answer.status_code == 201
    assert set(running.statuses) == {200}
    place.wait_for_rows(running.acknowledged)


def test_an_engine_that_breaks_off_is_reported_and_recorded(place: Place) -> None:
    with load(place) as running:
        wait_for(reaches(running, 50), "traffic", timeout_s=30)
        place.engine.refuses_chat = 500
        wait_for(lambda: running.statuses[502] >= 10, "refusals", timeout_s=30)
        place.engine.refuses_chat = None
        place.engine.breaks_after = 2
        time.sleep(1)
        place.engine.breaks_after = None
        wait_for(reaches(running, 50), "traffic afterwards", timeout_s=30)

    place.wait_for_rows(running.acknowledged)
    assert running.broken == 0
    outcomes = Counter(place.stored().values())
    assert outcomes["engine_error"] >= 10
    assert outcomes["complete"] >= len(running.acknowledged)


def test_clients_that_leave_end_the_engines_work_and_are_recorded(place: Place) -> None:
    place.engine.token_s = 0.2
    place.engine.words = 50
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "stream": True}

    left = set()
    with httpx2.Client(base_url=place.url, headers=HEADERS, timeout=20) as client:
        for _ in range(5):
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_bytes())
                left.add(answer.headers["x-everlearn-interaction"])

    wait_for(lambda: left <= set(place.stored()), "their rows", timeout_s=15)
    assert {place.stored()[row] for row in left} == {"client_left"}
    wait_for(lambda: place.engine.cancelled >= 5, "the engine to stop", timeout_s=10)
