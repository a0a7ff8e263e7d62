"""Commands: trials."""

import pytest

from tests.support.scripted_server import LINE, run

TRIAL = {
    "id": "tri_1",
    "version": "smollm2@v2",
    "champion": "smollm2@v1",
    "mode": "canary",
    "state": "running",
    "share": 12.5,
    "started_by": "key:key_1 (me)",
    "reason": "",
    "created_at": "2026-11-21T10:02:00Z",
    "judged_at": None,
    "replies": 0,
    "verdict": None,
    "evidence": {},
    "ended_at": None,
    "ended_by": None,
    "outcome": None,
}

SEEN = {
    **TRIAL,
    "evidence": {
        "failed": {
            "pairs": 40,
            "challenger": 0.3,
            "champion": 0.0,
            "margin": 0.02,
            "harm_e": 123.4,
            "safe_e": 0.01,
            "difference_low": 0.1,
            "difference_high": 0.5,
        },
        "feedback": {
            "pairs": 0,
            "challenger": None,
            "champion": None,
            "margin": 0.1,
            "harm_e": 1.0,
            "safe_e": 1.0,
            "difference_low": -1.0,
            "difference_high": 1.0,
        },
    },
}

OVER = {**SEEN, "state": "aborted", "ended_by": "judge", "outcome": "failed: 30.0% [of 40]"}


def test_a_trial_is_started_with_what_was_said(server):
    server.answers["POST /api/v1/adapters/smollm2/trial"] = (201, TRIAL)

    result = run("trial", "start", "smollm2", "--version", "v2", "--share", "12.5", "--force")

    assert result.exit_code == 0, result.output
    assert server.asked[0][1] == {
        "version": "v2",
        "mode": "canary",
        "share": 12.5,
        "reason": "",
        "force": True,
    }
    assert "smollm2@v2 against smollm2@v1: canary, 12.5 %, running" in result.stdout


def test_without_a_share_the_lines_own_counts_and_the_only_line_is_meant(server):
    server.answers["GET /api/v1/adapters"] = (200, {"data": [LINE]})
    server.answers["POST /api/v1/adapters/smollm2/trial"] = (201, {**TRIAL, "mode": "shadow"})

    result = run("trial", "start", "--version", "v2", "--mode", "shadow")

    assert result.exit_code == 0, result.output
    assert "share" not in server.asked[1][1]
    assert server.asked[1][1]["mode"] == "shadow"


@pytest.mark.parametrize("arguments", [[], ["--version", "v2", "--mode", "hold"]], ids=str)
def test_a_trial_of_nothing_is_not_sent(server, arguments):
    assert run("trial", "start", *arguments).exit_code != 0
    assert server.asked == []


def test_a_trial_is_shown_with_its_evidence(server):
    server.answers["GET /api/v1/adapters/smollm2/trial"] = (200, SEEN)

    result = run("trial", "show", "smollm2")

    assert "failed" in result.stdout
    assert "30.0%" in result.stdout
    assert "123" in result.stdout


def test_trials_that_are_over_are_shown_on_request(server):
    server.answers["GET /api/v1/adapters/smollm2/trials"] = (200, {"data": [TRIAL, OVER]})

    result = run("trial", "show", "smollm2", "--all")

    assert "failed: 30.0% [of 40]  (judge)" in result.stdout
    assert result.stdout.index("running") < result.stdout.index("aborted")


def test_a_trial_is_ended_and_approved(server):
    server.answers["DELETE /api/v1/adapters/smollm2/trial"] = (200, OVER)
    server.answers["POST /api/v1/adapters/smollm2/trial/approve"] = (
        200,
        {**TRIAL, "mode": "hold", "state": "promoted"},
    )

    assert "aborted" in run("trial", "abort", "smollm2").stdout
    result = run("trial", "approve", "smollm2", "--reason", "fine")

    assert "hold, promoted" in result.stdout
    assert server.asked[1][1] == {"reason": "fine"}
