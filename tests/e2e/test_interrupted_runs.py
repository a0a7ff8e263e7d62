"""Runs on real vLLM that a SIGKILL or a cancel interrupts.

The tests share one server and may run in any order: none depends on an exam's verdict.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support import texts
from tests.support.stack import (
    TINY_MODEL,
    TINY_SETTINGS,
    Stack,
    ask,
    running_stack,
    wait_for,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MODEL = "tiny"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("interrupted")
    with running_stack(home, model=MODEL, source=TINY_MODEL, variables=TINY_SETTINGS) as stack:
        yield stack


def test_a_killed_worker_costs_nothing_but_time(stack: Stack) -> None:
    run_id = stack.teach(texts.BAKERY_TITLE, texts.BAKERY_TEXT)
    wait_for(
        lambda: stack.run(run_id)["stage"] == "training" and stack.run(run_id)["done"] > 0,
        "the training under way",
        timeout_s=120,
    )
    worker = stack.child_pid("worker-train")

    os.kill(worker, signal.SIGKILL)
    run = stack.finished(run_id)

    assert run["status"] == "succeeded"
    assert run["attempt"] == 2
    adapter = stack.api.get(f"/adapters/{MODEL}").json()
    assert [version["run_id"] for version in adapter["versions"]].count(run_id) == 1
    moves = [event for event in adapter["events"] if run_id in event["actor"]]
    assert len(moves) == (1 if run["verdict"] == "promote" else 0)
    assert stack.child_pid("worker-train") != worker
    assert ask(stack.openai(), MODEL, "Hello")


def test_a_cancelled_run_stops_its_trainer(stack: Stack) -> None:
    run_id = stack.teach("Cancelled", "The Pond of Grell has 77 frogs. Its keeper is Anton Wisk.")
    wait_for(lambda: stack.run(run_id)["status"] == "running", "a running run", timeout_s=60)

    stack.api.post(f"/runs/{run_id}/cancel").raise_for_status()
    run = stack.finished(run_id, timeout_s=60)

    assert run["status"] == "cancelled"
    assert stack.champion() != run["version"]
