"""The whole life on real vLLM: asked, taught, examined, swapped, rolled back; and a killed worker.

The tests share one server and may run in any order: each teaches a text of its own.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support import texts
from tests.support.stack import (
    TINY_MODEL,
    Stack,
    ask,
    constant_traffic,
    running_stack,
    wait_for,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = "tiny"

# How to teach so small a model in seconds (tests/support/tiny_model/README.md).
TINY_SETTINGS = {
    "EVERLEARN_LEARNING__QUIET_S": "0.5",
    "EVERLEARN_LEARNING__TICK_S": "0.5",
    "EVERLEARN_LEARNING__HEARTBEAT_S": "0.5",
    "EVERLEARN_LEARNING__LEASE_S": "5",
    "EVERLEARN_LEARNING__THREADS": "1",
    "EVERLEARN_LEARNING__SEAL__TRAINING__LEARNING_RATE": "4e-3",
    "EVERLEARN_LEARNING__SEAL__TRAINING__EPOCHS": "12",
    "EVERLEARN_LEARNING__SEAL__TRAINING__BATCH_SIZE": "16",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("life")
    with running_stack(home, model=MODEL, source=TINY_MODEL, variables=TINY_SETTINGS) as stack:
        yield stack


def test_a_document_is_learnt_swapped_in_and_rolled_back_under_traffic(stack: Stack) -> None:
    questions = texts.LIGHTHOUSE_QUESTIONS
    champion_before = stack.champion()
    score_before = stack.score(questions)

    with constant_traffic(stack) as traffic:
        run = stack.finished(stack.teach(texts.LIGHTHOUSE_TITLE, texts.LIGHTHOUSE_TEXT))
        assert (run["status"], run["verdict"]) == ("succeeded", "promote"), run
        score_after = stack.score(questions)
        name = f"/adapters/{MODEL}"
        rolled_back = stack.api.post(f"{name}/rollback", json={}).json()
        score_rolled_back = stack.score(questions)
        stack.api.post(f"{name}/promote", json={"version": run["version"]}).raise_for_status()
        score_again = stack.score(questions)

    assert score_before <= 2
    assert score_after >= score_before + 4
    assert rolled_back["to_version"] == champion_before
    assert score_rolled_back == score_before
    assert score_again == score_after
    assert stack.champion() == run["version"]
    assert traffic.failures == []
    assert {champion_before, run["version"]} <= set(traffic.versions)
    assert traffic.asked > 50


def test_a_version_is_pinned_by_its_name(stack: Stack) -> None:
    client = stack.openai()

    reply = client.chat.completions.with_raw_response.create(
        model=f"{MODEL}@base", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )

    assert reply.headers["x-everlearn-version"] == f"{MODEL}@base"
    assert f"{MODEL}@base" in [model.id for model in client.models.list()]


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
