"""Commands: replicas, gateways and the audit trail."""

import pytest

from tests.support.scripted_server import run

FLEET = {
    "data": [
        {
            "id": "rep_1",
            "url": "http://10.0.0.1:8000",
            "origin": "settings",
            "is_draining": False,
            "state": "healing",
            "error": "smollm2@v1.0 is not [loaded] yet",
            "outstanding": 3,
            "resident": ["smollm2@v2.0"],
            "created_at": "2026-11-21T10:00:00Z",
        }
    ],
    "gateways": [
        {
            "id": "gwy_1",
            "name": "host:7",
            "seen_at": "2026-11-21T10:00:00Z",
            "revision": 9,
            "in_flight": {"smollm2@v2.0": 3, "smollm2@base": 2},
            "replicas": {},
        }
    ],
}


def test_fleet_shows_replicas_and_gateways(server):
    server.answers["GET /api/v1/replicas"] = (200, FLEET)

    shown = run("fleet")

    assert shown.exit_code == 0
    for word in ("rep_1", "http://10.0.0.1:8000", "healing", "[loaded]", "host:7"):
        assert word in shown.output
    assert shown.output.split()[-1] == "5"


@pytest.mark.parametrize("which", ["rep_1", "http://10.0.0.1:8000/"])
@pytest.mark.parametrize(
    ("command", "method", "body"),
    [
        ("drain", "PATCH", {"is_draining": True}),
        ("undrain", "PATCH", {"is_draining": False}),
        ("remove", "DELETE", None),
    ],
)
def test_a_replica_is_drained_and_removed_by_id_or_address(server, which, command, method, body):
    server.answers["GET /api/v1/replicas"] = (200, FLEET)
    server.answers[f"{method} /api/v1/replicas/rep_1"] = (200, FLEET["data"][0])

    assert run("fleet", command, which).exit_code == 0

    assert server.asked[-1][:2] == (f"{method} /api/v1/replicas/rep_1", body)


def test_a_replica_is_added_and_an_unknown_one_is_named(server):
    server.answers["GET /api/v1/replicas"] = (200, FLEET)
    server.answers["POST /api/v1/replicas"] = (201, FLEET["data"][0])

    assert "rep_1" in run("fleet", "add", "http://10.0.0.1:8000").output
    assert server.asked[-1][1] == {"url": "http://10.0.0.1:8000"}
    unknown = run("fleet", "drain", "rep_9")
    assert unknown.exit_code == 1
    assert "http://10.0.0.1:8000" in unknown.output


def test_audit_lists_what_admins_did_and_where_to_go_on(server):
    event = {
        "id": "aud_1",
        "owner": None,
        "actor": "key:key_1 (ops [a])",
        "action": "key.revoke",
        "target": "key_2",
        "detail": {},
        "request_id": "req_1",
        "created_at": "2026-11-21T10:00:00Z",
    }
    server.answers["GET /api/v1/audit?limit=1"] = (200, {"data": [event], "next": "aud_1"})

    listed = run("audit", "--limit", "1")

    assert listed.exit_code == 0, listed.output
    assert "key:key_1 (ops [a])" in listed.stdout
    assert "key.revoke" in listed.stdout
    assert "everlearn audit --after aud_1" in listed.stdout
