"""Commands: keys, over the API and on the database."""

from server.core.security import Scope
from server.db import Base
from server.db.session import Database
from server.services.audit import list_events
from server.services.keys import authenticate
from tests.support.scripted_server import run


def test_key_is_created_listed_and_revoked(server):
    row = {
        "id": "key_1",
        "name": "app",
        "hint": "el_abcd…",
        "scopes": ["chat"],
        "owner": "[acme]",
        "allows_learning": True,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "token_budget": 500,
        "tokens_used": 12,
        "created_at": "2026-11-21T10:00:00Z",
        "revoked_at": None,
    }
    server.answers["POST /api/v1/keys"] = (201, {**row, "key": "el_secret"})
    server.answers["GET /api/v1/keys"] = (200, {"data": [row]})
    server.answers["DELETE /api/v1/keys/key_1"] = (
        200,
        {**row, "revoked_at": "2026-11-21T11:00:00Z"},
    )

    created = run("key", "create", "app", "--scope", "chat")

    assert created.stdout == "el_secret\n"
    assert server.asked[0][1] == {"name": "app", "scopes": ["chat"]}
    listed = run("key", "list").stdout
    assert "el_abcd…" in listed
    assert "[acme]" in listed
    assert "12 of 500" in listed
    assert "revoked" in run("key", "revoke", "key_1").stdout


def test_key_is_created_with_owner_limits_and_consent(server):
    server.answers["POST /api/v1/keys"] = (201, {"key": "el_secret"})

    created = run(
        *("key", "create", "app", "--owner", "acme", "--requests-per-minute", "60"),
        *("--tokens-per-minute", "9000", "--token-budget", "0", "--no-learning"),
    )

    assert created.exit_code == 0, created.output
    assert server.asked[0][1] == {
        "name": "app",
        "scopes": ["chat", "ingest"],
        "owner": "acme",
        "requests_per_minute": 60,
        "tokens_per_minute": 9000,
        "token_budget": 0,
        "allows_learning": False,
    }


def test_limits_of_a_key_are_set_and_lifted(server):
    row = {"id": "key_1", "name": "app", "requests_per_minute": 60}
    answer = {**row, "tokens_per_minute": None, "token_budget": None}
    server.answers["PATCH /api/v1/keys/key_1"] = (200, answer)

    changed = run(
        *("key", "limit", "key_1", "--requests-per-minute", "60"),
        *("--tokens-per-minute", "0", "--token-budget", "-1"),
    )
    nothing = run("key", "limit", "key_1")

    assert changed.exit_code == 0, changed.output
    assert server.asked == [
        (
            "PATCH /api/v1/keys/key_1",
            {"requests_per_minute": 60, "tokens_per_minute": None, "token_budget": None},
        )
    ]
    assert "requests per minute: 60" in changed.stdout
    assert "token budget: no limit" in changed.stdout
    assert nothing.exit_code == 1


def test_local_key_carries_the_same_and_leaves_a_trail(server, tmp_path):
    (tmp_path / "home").mkdir()
    database = Database(f"sqlite:///{tmp_path / 'home' / 'everlearn.db'}")
    Base.metadata.create_all(database.engine)

    minted = run("key", "create", "app", "--owner", "acme", "--token-budget", "7", "--local")

    assert minted.exit_code == 0, minted.output
    with database.unit_of_work() as session:
        principal = authenticate(session, minted.stdout.strip())
        [event] = list_events(session)
    assert principal is not None
    assert (principal.owner, principal.limits.token_budget) == ("acme", 7)
    assert (event.action, event.target, event.owner) == ("key.create", principal.id, "acme")
    database.close_sync()


def test_local_key_works_on_the_database(server, tmp_path):
    (tmp_path / "home").mkdir()
    database = Database(f"sqlite:///{tmp_path / 'home' / 'everlearn.db'}")
    Base.metadata.create_all(database.engine)

    result = run("key", "create", "me", "--scope", "admin", "--local")

    assert result.exit_code == 0, result.output
    with database.unit_of_work() as session:
        principal = authenticate(session, result.stdout.strip())
    assert principal is not None
    assert principal.scopes == {Scope.ADMIN}
    assert server.asked == []
    database.close_sync()


def test_local_key_without_a_server_says_what_to_start(server):
    result = run("key", "create", "me", "--local")

    assert result.exit_code == 1
    assert "everlearn up" in result.stderr
