"""Commands: forgetting."""

import pytest

from tests.support.scripted_server import DELETION, run


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("document", "doc_1", "/api/v1/documents/doc_1"),
        ("interaction", "int_1", "/api/v1/interactions/int_1"),
    ],
)
def test_forget_names_the_versions_that_saw_it(server, kind, name, path):
    deletion = {**DELETION, "state": "open", "is_rebuild": False, "runs": []}
    server.answers[f"DELETE {path}"] = (200, {"id": name, "deletion": deletion})

    result = run("forget", kind, name)

    assert result.exit_code == 0, result.output
    assert "Versions that saw it: smollm2@v1." in result.stdout
    assert "everlearn deletions del_1 --rebuild" in result.stdout


def test_forget_waits_until_it_is_done(server):
    server.answers["DELETE /api/v1/tenants/acme%2Feu/data?rebuild=true"] = (200, DELETION)
    server.answers["GET /api/v1/deletions/del_1"] = (200, {**DELETION, "state": "done"})

    result = run("forget", "tenant", "acme/eu", "--rebuild", "--wait")

    assert result.exit_code == 0, result.output
    assert "done" in result.stdout


def test_forget_fails_when_the_rebuild_is_stuck(server):
    stuck = {**DELETION, "state": "open", "reason": "smollm2: run run_2 succeeded, verdict reject"}
    server.answers["DELETE /api/v1/documents/doc_1?rebuild=true"] = (200, {"deletion": DELETION})
    server.answers["GET /api/v1/deletions/del_1"] = (200, stuck)

    result = run("forget", "document", "doc_1", "--rebuild", "--wait")

    assert result.exit_code == 1
    assert "verdict reject" in result.stdout


def test_deletions_are_listed_and_one_is_shown_with_its_chain(server):
    event = {
        "created_at": "2026-11-21T10:02:00Z",
        "actor": "an admin",
        "action": "document.delete",
        "target": "doc_1",
    }
    server.answers["GET /api/v1/deletions?limit=20"] = (200, {"data": [DELETION], "next": None})
    server.answers["POST /api/v1/deletions/del_1/rebuild"] = (200, DELETION)
    server.answers["GET /api/v1/deletions/del_1"] = (200, {**DELETION, "chain": [event]})

    listed = run("deletions")
    shown = run("deletions", "del_1", "--rebuild")

    assert "document doc_1" in listed.stdout
    assert "document.delete" in shown.stdout
    assert ("POST /api/v1/deletions/del_1/rebuild", None) in server.asked
