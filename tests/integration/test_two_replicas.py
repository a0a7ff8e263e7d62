"""The life of a line on two real vLLM replicas: promotion, rollback, a killed replica, deletion.

The tiny model serves on both, with versions of random weights, so that each says something else
and every reply can be checked against the version that its header names.
"""

import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.versions import register, write_lora
from server.app import create_app
from server.core.settings import (
    CaptureSettings,
    EngineSettings,
    ModelSettings,
    Settings,
    SwapSettings,
)
from server.db import Base
from server.db.session import Database
from server.embedded.preflight import free_port
from server.embedded.up import prepare_model
from server.engine.launch import engine_command
from server.services import keys
from server.services.bootstrap import ensure_line
from tests.conftest import RecordingQueue
from tests.support.fake_engine import serve
from tests.support.stack import TINY_MODEL, wait_for
from workers import cleaning
from workers.context import WorkerContext

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ADMIN_KEY = "el_admin_key_of_the_two_replicas"
HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}
LINE = "tiny"
START_TIMEOUT_S = 400
PROMPTS = tuple(
    f"Tell me of the {thing}." for thing in ("sea", "hill", "mill", "bell", "boat", "fox")
)
"""One conversation stays on one replica while it is there; several spread over both."""
MODELS = (f"{LINE}@base", f"{LINE}@v1", f"{LINE}@v2", f"{LINE}@v3")

ONE_CORE = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""Two engines share what cores there are."""


@dataclass
class RealReplica:
    """One vLLM process on a port that it keeps over restarts."""

    settings: Settings
    model: Path
    log: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begin to start; :meth:`wait_until_ready` says when it is done."""
        command = engine_command(self.settings, self.model, self.port)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command.argv,
                env={**os.environ, **command.env, **ONE_CORE},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                return httpx2.get(f"{self.url}/health", timeout=5).status_code == 200
            except httpx2.TransportError:
                return False

        wait_for(is_ready, f"vLLM on {self.url}", timeout_s=START_TIMEOUT_S)

    def kill(self) -> None:
        """The whole group at once, as a lost machine does."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """There, and silent."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def adapters(self) -> set[str]:
        """What it holds by its own account."""
        listed = httpx2.get(f"{self.url}/v1/models", timeout=30).json()["data"]
        return {model["id"] for model in listed if model["parent"] is not None}

    def replies(self) -> float:
        """How many it has finished since its start."""
        text = httpx2.get(f"{self.url}/metrics", timeout=30).text
        lines = [line for line in text.splitlines() if line.startswith("vllm:request_success")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@dataclass
class Pair:
    """A gateway over two replicas, and what each version says to the one prompt."""

    replicas: list[RealReplica]
    client: httpx2.Client
    settings: Settings
    database: Database
    words: dict[tuple[str, str], str] = field(default_factory=dict)
    """What a version replies to a prompt, greedily."""

    def chat(
        self, model: str = LINE, prompt: str = PROMPTS[0], *, is_stream: bool = False
    ) -> tuple[int, str, str]:
        """Status, version of the header and text of a reply; an error's body as the text."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 8,
            "temperature": 0,
            "stream": is_stream,
        }
        answer = self.client.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            return answer.status_code, "", answer.text
        version = answer.headers["x-everlearn-version"]
        if not is_stream:
            return 200, version, answer.json()["choices"][0]["message"]["content"]
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        events = [json.loads(line) for line in lines]
        if [event for event in events if "error" in event]:
            return 200, version, answer.text
        parts = [event["choices"][0]["delta"].get("content") or "" for event in events]
        return 200, version, "".join(parts)

    def order(self, kind: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/api/v1/adapters/{LINE}/{kind}", json=body)
        assert answer.status_code == 200, answer.text
        moved: dict[str, Any] = answer.json()
        return moved

    def serve(self, version: str) -> None:
        """Have this version be the champion, whatever other tests have left."""
        if self.champion() != f"{LINE}@{version}":
            self.order("promote", version=version)

    def champion(self) -> str:
        return str(self.client.get(f"/api/v1/adapters/{LINE}").json()["champion"])

    def engine_name(self, number: int) -> str:
        versions = self.client.get(f"/api/v1/adapters/{LINE}").json()["versions"]
        [name] = [one["engine_name"] for one in versions if one["number"] == number]
        return str(name)


@dataclass
class Traffic:
    """What clients saw that never stopped asking."""

    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextmanager
def traffic(pair: Pair, *, clients: int = 3, streams: bool = True) -> Iterator[Traffic]:
    """Clients that ask for the line all the time and check every word."""
    seen, over, lock = Traffic(), threading.Event(), threading.Lock()

    def keep_asking(is_stream: bool) -> None:
        for prompt in itertools.cycle(PROMPTS):
            if over.is_set():
                return
            try:
                status, version, text = pair.chat(prompt=prompt, is_stream=is_stream)
            except httpx2.TransportError as error:
                status, version, text = 0, "", repr(error)
            with lock:
                seen.versions[version] += 1
                if status != 200 or text != pair.words[version, prompt]:
                    seen.failures.append(f"{status} {version}: {text[:300]}")
            time.sleep(0.05)

    threads = [
        threading.Thread(target=keep_asking, args=(streams and number % 2 == 0,))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join(120)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("pair")
    settings = Settings(
        _env_file=None,
        home=home,
        model=ModelSettings(name=LINE, source=str(TINY_MODEL)),
        engine=EngineSettings(max_model_len=512),
    )
    model = prepare_model(str(TINY_MODEL), home)
    with ExitStack() as stack:
        replicas = [RealReplica(settings, model.path, home / f"vllm-{n}.log") for n in (1, 2)]
        for replica in replicas:
            stack.callback(replica.kill)
            replica.start()
        urls = [replica.url for replica in replicas]
        settings = settings.model_copy(
            update={
                "engine": settings.engine.model_copy(
                    update={"url": urls[0], "more_urls": urls[1:]}
                ),
                "swap": SwapSettings(refresh_s=0.1, remove_after_s=0),
                "capture": CaptureSettings(ship_s=0.1),
            }
        )
        database = Database(settings.sqlalchemy_url)
        stack.callback(database.close_sync)
        Base.metadata.create_all(database.engine)
        with database.unit_of_work() as session:
            keys.ensure_admin_key(session, ADMIN_KEY)
            line = ensure_line(session, settings, base_path=model.path, base_hash=model.hash)
            for seed in (1, 2, 3, 4):
                trained = write_lora(home / f"trained-{seed}", TINY_MODEL, seed)
                register(session, settings, line, trained)
        for replica in replicas:
            replica.wait_until_ready()
        served = stack.enter_context(serve(create_app(settings, queue=RecordingQueue())))
        client = stack.enter_context(
            httpx2.Client(base_url=served.url, headers=HEADERS, timeout=120)
        )
        wait_for(lambda: client.get("/readyz").status_code == 200, "a gateway", timeout_s=120)
        made = Pair(replicas, client, settings, database)
        for name, prompt in itertools.product(MODELS, PROMPTS):
            status, version, text = made.chat(name, prompt)
            assert (status, version) == (200, name), text
            made.words[name, prompt] = text
        yield made


def test_every_reply_is_its_versions_own(pair: Pair) -> None:
    """Caches and batches mix nothing up: four versions, the same prompts, their own words."""
    for prompt in PROMPTS:
        assert len({pair.words[name, prompt] for name in MODELS}) == len(MODELS)

    for is_stream in (True, False, True):
        for prompt, name in itertools.product(PROMPTS, MODELS):
            said = pair.chat(name, prompt, is_stream=is_stream)
            assert said == (200, name, pair.words[name, prompt])


def test_a_promotion_under_traffic_fails_nothing(pair: Pair) -> None:
    before = [replica.replies() for replica in pair.replicas]
    pair.serve("v1")
    with traffic(pair) as seen:
        for _ in range(3):
            pair.order("promote", version="v2")
            name = pair.engine_name(2)
            assert all(name in replica.adapters() for replica in pair.replicas)
            assert pair.chat()[1] == f"{LINE}@v2"
            time.sleep(1)
            pair.order("rollback")
            assert pair.chat()[1] == f"{LINE}@v1"
            time.sleep(1)

    assert seen.failures == []
    assert set(seen.versions) == {f"{LINE}@v1", f"{LINE}@v2"}
    after = [replica.replies() for replica in pair.replicas]
    assert all(now > then for now, then in zip(after, before, strict=True))


def test_a_killed_replica_costs_no_whole_reply_and_is_healed_before_it_serves(pair: Pair) -> None:
    pair.serve("v2")
    lost, kept = pair.replicas
    with traffic(pair, streams=False) as seen:
        time.sleep(1)
        lost.kill()
        time.sleep(3)
        pair.order("promote", version="v3")  # every healthy replica has it: the one that is left
        assert pair.engine_name(3) in kept.adapters()
        lost.start()
        lost.wait_until_ready()
        wait_for(lambda: pair.engine_name(3) in lost.adapters(), "the lost weights", timeout_s=60)
        done = lost.replies()
        wait_for(lambda: lost.replies() > done, "a reply of the one that came back", timeout_s=60)

    assert seen.failures == []
    assert set(seen.versions) == {f"{LINE}@v2", f"{LINE}@v3"}


def test_a_canary_of_half_the_traffic_is_attributed_by_version(pair: Pair) -> None:
    pair.serve("v1")
    trial = {"version": "v3", "mode": "canary", "share": 50}
    answer = pair.client.post(f"/api/v1/adapters/{LINE}/trial", json=trial)
    assert answer.status_code == 201, answer.text

    seen: Counter[str] = Counter()
    for number in range(60):
        said = [{"role": "user", "content": f"Conversation {number}."}]
        body = {"model": LINE, "messages": said, "max_tokens": 4, "temperature": 0}
        twice = [pair.client.post("/v1/chat/completions", json=body) for _ in range(2)]
        versions = {reply.headers["x-everlearn-version"] for reply in twice}
        assert len(versions) == 1  # one conversation, one arm
        seen.update(versions)
    ended = pair.client.delete(f"/api/v1/adapters/{LINE}/trial")

    assert set(seen) == {f"{LINE}@v1", f"{LINE}@v3"}
    assert 15 <= seen[f"{LINE}@v3"] <= 45
    assert ended.status_code == 200
    assert pair.chat()[1] == f"{LINE}@v1"


def test_files_go_only_after_both_replicas_let_the_version_go(pair: Pair) -> None:
    pair.serve("v1")
    folder = pair.settings.artifacts_path / LINE / "v0004"
    name = pair.engine_name(4)
    assert folder.is_dir()

    answer = pair.client.post(
        f"/api/v1/adapters/{LINE}/versions/v4/retire", json={"reason": "the test's end"}
    )

    assert answer.status_code == 200, answer.text
    context = WorkerContext(pair.settings, pair.database, RecordingQueue(), "test")
    with pair.replicas[1].paused():  # nobody can say whether it still holds the files
        for _ in range(2):
            cleaning.remove_files(context)  # what the worker's tick does
            assert folder.is_dir()
    deadline = time.monotonic() + 120
    while folder.exists():
        assert time.monotonic() < deadline
        cleaning.remove_files(context)
        time.sleep(0.5)
    assert all(name not in replica.adapters() for replica in pair.replicas)
    assert pair.chat(f"{LINE}@v4")[0] == 409
