"""Commands: tasks given by examples."""

import json
from typing import Any

import pytest

from tests.support.scripted_server import DELETION, LEARNT, RUN, run, sse

TASK: dict[str, Any] = {
    "id": "tsk_1",
    "title": "A [title]",
    "form": "text",
    "state": "ready",
    "adapter": "task-1",
    "example_count": 3,
    "test_count": 1,
    "versions": ["task-1@v1"],
    "prompt": "Input:\n{input}\nOutput:",
}


def test_a_task_is_sent_from_its_file(server, tmp_path):
    server.answers["POST /api/v1/tasks"] = (201, TASK)
    file = tmp_path / "0a1b.json"
    file.write_text(json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": []}))

    result = run("tasks", "add", str(file))

    assert result.exit_code == 0, result.output
    assert "tsk_1  A [title]  (3 examples, 1 tests, ready)" in result.stdout
    [(_, sent)] = server.asked
    assert sent["title"] == "0a1b"
    assert sent["train"] == [{"input": [[1]], "output": [[2]]}]


@pytest.mark.parametrize("text", ["{", "[1]", None])
def test_a_file_that_is_no_task_is_told_so(server, tmp_path, text):
    file = tmp_path / "task.json"
    if text is not None:
        file.write_text(text)

    result = run("tasks", "add", str(file))

    assert result.exit_code == 1
    assert str(file) in result.stderr.replace("\n", "")


def test_tasks_are_listed_and_shown(server):
    server.answers["GET /api/v1/tasks?limit=20"] = (200, {"data": [TASK], "next": None})
    server.answers["GET /api/v1/tasks/tsk_1"] = (200, TASK)

    listed, shown = run("tasks", "list"), run("tasks", "show", "tsk_1")

    assert "task-1@v1" in listed.stdout
    assert "Input:\n{input}\nOutput:" in shown.stdout
    assert "line task-1" in shown.stdout


def test_a_task_is_learnt_and_followed(server):
    server.answers["POST /api/v1/tasks/tsk_1/learn"] = (202, {**RUN, "adapter": "task-1"})
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", LEARNT), ("end", {})))

    result = run("tasks", "learn", "tsk_1", "--wait")

    assert result.exit_code == 0, result.output
    assert "run_1  running  on task-1" in result.stdout


def test_a_task_is_forgotten(server):
    deletion = {**DELETION, "kind": "task", "target": "tsk_1", "state": "open", "runs": []}
    deletion["is_rebuild"] = False
    server.answers["DELETE /api/v1/tasks/tsk_1"] = (200, {"id": "tsk_1", "deletion": deletion})

    result = run("tasks", "forget", "tsk_1")

    assert result.exit_code == 0, result.output
    assert "task tsk_1" in result.stdout
