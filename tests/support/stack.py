"""The whole product as a user starts it: `everlearn up` on real vLLM, in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI

ADMIN_KEY = "el_admin_key_of_the_end_to_end_tests"
START_TIMEOUT_S = 240

TINY_MODEL = Path(__file__).parent / "tiny_model" / "weights"

# How to teach so small a model in seconds (tests/support/tiny_model/README.md).
TINY_SETTINGS = {
    "EVERLEARN_LEARNING__QUIET_S": "0.5",
    "EVERLEARN_LEARNING__TICK_S": "0.5",
    "EVERLEARN_LEARNING__HEARTBEAT_S": "0.5",
    "EVERLEARN_LEARNING__LEASE_S": "5",
    "EVERLEARN_LEARNING__THREADS": "1",
    # A tenth of the time would be enough beside users, and ten times as long for us.
    "EVERLEARN_LEARNING__SHARE_BESIDE_USERS": "1",
    "EVERLEARN_LEARNING__SEAL__TRAINING__LEARNING_RATE": "4e-3",
    "EVERLEARN_LEARNING__SEAL__TRAINING__EPOCHS": "12",
    "EVERLEARN_LEARNING__SEAL__TRAINING__BATCH_SIZE": "16",
    "EVERLEARN_LEARNING__SEAL__REPLAY__PROMPTS": "64",
    "EVERLEARN_LEARNING__SEAL__REPLAY__PROMPTS_PER_EPOCH": "64",
}


@dataclass
class Stack:
    """A running server."""

    home: Path
    url: str
    model: str
    _open: ExitStack

    @cached_property
    def api(self) -> httpx2.Client:
        """Our own surface, as admin."""
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        client = httpx2.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=60)
        return self._open.enter_context(client)

    def openai(self) -> OpenAI:
        """A client that never tries twice, so that a failure is seen."""
        client = OpenAI(base_url=f"{self.url}/v1", api_key=ADMIN_KEY, max_retries=0, timeout=60)
        return self._open.enter_context(client)

    def child_pid(self, name: str) -> int:
        state = json.loads((self.home / "state.json").read_text())
        pid: int = state["children"][name]
        return pid

    def champion(self) -> str:
        return str(self.api.get(f"/adapters/{self.model}").json()["champion"])

    def teach(self, title: str, text: str) -> str:
        """Send a document; the id of the run that it starts by itself."""
        answer = self.api.post("/documents", json={"title": title, "text": text})
        assert answer.status_code == 201, answer.text
        document_id = answer.json()["id"]
        runs = wait_for(
            lambda: self.api.get("/runs", params={"document_id": document_id}).json()["data"],
            "a run that takes the document",
            timeout_s=60,
        )
        return str(runs[0]["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        view: dict[str, Any] = self.api.get(f"/runs/{run_id}").json()
        return view

    def finished(self, run_id: str, timeout_s: float = 540) -> dict[str, Any]:
        """The run's last view."""

        def over() -> dict[str, Any] | None:
            view = self.run(run_id)
            return view if view["status"] not in ("queued", "running") else None

        last: dict[str, Any] = wait_for(over, f"the end of {run_id}", timeout_s=timeout_s)
        return last

    def score(self, questions: list[tuple[str, str]]) -> int:
        """How many questions are answered right, asked alone and greedily."""
        client = self.openai()
        return sum(
            answer.lower() in ask(client, self.model, question).lower()
            for question, answer in questions
        )


@dataclass
class Traffic:
    """What a client saw that never stopped asking."""

    asked: int = 0
    failures: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


@contextmanager
def constant_traffic(stack: Stack, *, clients: int = 3) -> Iterator[Traffic]:
    """Clients that ask all the time, streaming and not, and check who answers."""
    traffic, over, lock = Traffic(), threading.Event(), threading.Lock()

    def keep_asking(is_stream: bool) -> None:
        client = stack.openai()
        while not over.is_set():
            began = time.monotonic()
            try:
                version, engine_name = _ask_for_names(client, stack.model, is_stream)
                problem = None if engine_name.startswith(version) else f"{version}≠{engine_name}"
            except Exception as error:  # whatever a client may see is a failure here
                version, problem = "", repr(error)
            with lock:
                traffic.asked += 1
                traffic.slowest_s = max(traffic.slowest_s, time.monotonic() - began)
                traffic.versions.append(version)
                if problem:
                    traffic.failures.append(problem)
            time.sleep(0.2)  # a user reads; without it, they would starve the learner of two cores

    threads = [
        threading.Thread(target=keep_asking, args=(number % 2 == 0,)) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield traffic
    finally:
        over.set()
        for thread in threads:
            thread.join()


def ask(client: OpenAI, model: str, question: str) -> str:
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=32,
    )
    return completion.choices[0].message.content or ""


@contextmanager
def running_stack(
    home: Path, *, model: str, source: str | Path, variables: Mapping[str, str]
) -> Iterator[Stack]:
    """`everlearn up` in the foreground of a child, until the block ends."""
    env = {name: value for name, value in os.environ.items() if "EVERLEARN_" not in name}
    env |= {
        "EVERLEARN_HOME": str(home),
        "EVERLEARN_ADMIN_KEY": ADMIN_KEY,
        "EVERLEARN_GATEWAY__PORT": "0",
        "EVERLEARN_MODEL__NAME": model,
        "EVERLEARN_MODEL__SOURCE": str(source),
        **variables,
    }
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "server.cli.main", "up"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            with ExitStack() as clients:
                yield Stack(home, _ready_url(server, home), model, clients)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_for(condition: Callable[[], Any], what: str, *, timeout_s: float) -> Any:
    """The first truthy value of the condition."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"no sign of {what} within {timeout_s} s")


def _ready_url(server: "subprocess.Popen[bytes]", home: Path) -> str:
    def url() -> str | None:
        if server.poll() is not None:
            raise RuntimeError(f"`everlearn up` ended:\n{(home / 'up.log').read_text()}")
        state_file = home / "state.json"
        state = json.loads(state_file.read_text()) if state_file.exists() else {}
        if not state.get("is_ready"):
            return None
        is_ready = httpx2.get(f"{state['url']}/readyz").status_code == 200
        return str(state["url"]) if is_ready else None

    found: str = wait_for(url, "a ready server", timeout_s=START_TIMEOUT_S)
    return found


def _ask_for_names(client: OpenAI, model: str, is_stream: bool) -> tuple[str, str]:
    """The version that the header names, and the engine name that the body carries."""
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
    }
    if not is_stream:
        raw = client.chat.completions.with_raw_response.create(**request)
        return raw.headers["x-everlearn-version"], raw.parse().model
    with client.chat.completions.with_streaming_response.create(**request, stream=True) as raw:
        names = {
            json.loads(line.removeprefix("data: "))["model"]
            for line in raw.iter_lines()
            if line.startswith("data: {")
        }
        [name] = names  # one stream, one version, from its first token to its last
        return raw.headers["x-everlearn-version"], name
