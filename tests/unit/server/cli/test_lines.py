"""Commands: runs, lines and their moves."""

import pytest

from tests.support.scripted_server import LEARNT, LINE, MOVE, RUN, run, sse


def test_runs_are_listed(server):
    server.answers["GET /api/v1/runs?limit=20"] = (200, {"data": [LEARNT, RUN]})

    result = run("runs")

    assert result.exit_code == 0, result.output
    assert "training 3/10" in result.stdout
    assert "smollm2@v1" in result.stdout


def test_run_is_shown_and_cancelled(server):
    server.answers["GET /api/v1/runs/run_1"] = (200, LEARNT)
    server.answers["POST /api/v1/runs/run_1/cancel"] = (200, RUN)

    assert "Verdict: promote" in run("runs", "run_1").stdout
    assert run("runs", "run_1", "--cancel").exit_code == 0
    assert server.asked[-1][0] == "POST /api/v1/runs/run_1/cancel"


def test_adapters_show_champion_and_moves(server):
    server.answers["GET /api/v1/adapters"] = (200, {"data": [LINE]})

    result = run("adapters")

    assert result.exit_code == 0, result.output
    assert "smollm2@base" in result.stdout
    assert "champion" in result.stdout
    assert "the gate" in result.stdout


REBUILD = {**RUN, "kind": "rebuild", "rebuilds": "smollm2@v1", "stage": "compare"}

SAME = {
    "version": "smollm2@v1",
    "is_identical": True,
    "tensors": 28,
    "differing": 0,
    "max_abs_difference": 0.0,
    "max_relative_difference": 0.0,
    "libraries": {},
    "environment": {},
}

OTHER = {
    **SAME,
    "is_identical": False,
    "differing": 3,
    "max_abs_difference": 0.00012,
    "environment": {"threads": {"then": 1, "now": 7}},
}


@pytest.mark.parametrize(
    ("found", "words"),
    [(SAME, ["identical", "bit by bit"]), (OTHER, ["3 of 28", "0.00012", "was 1, is 7"])],
    ids=["same", "other"],
)
def test_a_rebuild_is_followed_and_compared(server, found, words):
    over = {**REBUILD, "status": "succeeded", "report": {"rebuild": found}}
    server.answers["POST /api/v1/adapters/smollm2/versions/v1/rebuild"] = (202, REBUILD)
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", REBUILD), ("run", over)))

    result = run("adapters", "rebuild", "smollm2", "v1", "--wait")

    assert result.exit_code == 0, result.output
    assert all(word in result.stdout for word in words), result.stdout


def test_rollback_of_the_only_line_needs_no_name(server):
    server.answers["GET /api/v1/adapters"] = (200, {"data": [LINE]})
    server.answers["POST /api/v1/adapters/smollm2/rollback"] = (200, MOVE)

    result = run("rollback", "--reason", "tried it")

    assert result.exit_code == 0, result.output
    assert server.asked[-1][1] == {"reason": "tried it"}
    assert "smollm2@v1 → smollm2@base" in result.stdout
    assert "Stepped over, because they cannot serve again: smollm2@v7." in result.stdout


def test_promote_sends_the_version(server):
    server.answers["POST /api/v1/adapters/smollm2/promote"] = (200, MOVE)

    result = run("promote", "smollm2", "--to", "v1")

    assert result.exit_code == 0, result.output
    assert server.asked == [
        ("POST /api/v1/adapters/smollm2/promote", {"version": "v1", "reason": ""})
    ]


def test_promote_sends_force_and_the_revision_that_was_seen(server):
    server.answers["POST /api/v1/adapters/smollm2/promote"] = (200, MOVE)

    result = run("promote", "smollm2", "--to", "v1", "--force", "--expect", "0")

    assert result.exit_code == 0, result.output
    assert server.asked[-1][1] == {
        "version": "v1",
        "reason": "",
        "expected_revision": 0,
        "force": True,
    }


def test_promote_without_a_version_says_how(server):
    result = run("promote")

    assert result.exit_code == 1
    assert "--to v2" in result.stderr
