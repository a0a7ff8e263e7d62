"""Our own HTTP surface: documents, runs, adapters and keys, and what each bad request is told."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy.exc

from server.app import create_app
from server.core.settings import DocumentSettings, EngineSettings, Settings
from server.db import Base
from server.db.session import Database
from server.services import keys, promotion
from server.services.bootstrap import ensure_line
from tests.conftest import BASE_HASH, RecordingQueue
from tests.support.factories import make_document, make_run, make_version
from tests.support.fake_engine import FakeEngine, serve

pytestmark = pytest.mark.usefixtures("paper_artifacts")

ADMIN_KEY = "el_admin_key_of_this_contract_test"
MAX_BYTES = 10_000
MIB = 1024 * 1024


@dataclass
class Api:
    """The server under test, with doors to look behind it."""

    client: httpx2.Client
    database: Database
    queue: RecordingQueue
    engine: FakeEngine


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    engine, queue = FakeEngine(), RecordingQueue()
    with serve(engine.app()) as upstream:
        settings = settings.model_copy(
            update={
                "database_url": database.url.render_as_string(hide_password=False),
                "engine": EngineSettings(url=upstream.url),
                "documents": DocumentSettings(max_bytes=MAX_BYTES),
            }
        )
        Base.metadata.create_all(database.engine)
        with database.unit_of_work() as session:
            ensure_line(session, settings, base_path=tmp_path / "base", base_hash=BASE_HASH)
            keys.ensure_admin_key(session, ADMIN_KEY)
        with (
            serve(create_app(settings, queue=queue)) as server,
            httpx2.Client(
                base_url=server.url, headers={"authorization": f"Bearer {ADMIN_KEY}"}
            ) as client,
        ):
            _wait_ready(client)
            yield Api(client, database, queue, engine)


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """The error of a reply, after checking that it has OpenAI's shape."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def test_a_document_is_taken_once(api: Api) -> None:
    first = api.client.post("/api/v1/documents", json={"title": "T", "text": "Odile keeps it."})
    second = api.client.post("/api/v1/documents", json={"text": "Odile keeps it."})

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert first.json()["state"] == "received"
    assert api.queue.sent == [("document.ingest", first.json()["id"])]


def test_plain_text_and_markdown_are_taken(api: Api) -> None:
    for media_type in ("text/plain; charset=utf-8", "text/markdown"):
        answer = api.client.post(
            "/api/v1/documents?title=Notes",
            content=f"# {media_type}\nÜber alles".encode(),
            headers={"content-type": media_type},
        )
        assert (answer.status_code, answer.json()["title"]) == (201, "Notes")


def test_questions_come_with_the_document(api: Api) -> None:
    answer = api.client.post(
        "/api/v1/documents",
        json={"text": "Odile keeps it.", "questions": [{"question": "Who?", "answers": ["Odile"]}]},
    )

    assert answer.json()["exam_questions"] == 1


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b'{"text": ""}', "application/json", 400, "document_empty"),
        (b'{"text": "  \\n "}', "application/json", 400, "document_empty"),
        (b"", "text/plain", 400, "document_empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "text/plain", 400, "document_not_text"),
        ("Größe".encode("latin-1"), "text/plain", 400, "document_not_text"),
        (b"PK\x03\x04 a zip", "text/plain", 400, "document_not_text"),
        (b"{not json", "application/json", 400, "invalid_request"),
        (b'"just a string"', "application/json", 400, "invalid_request"),
        (b'{"title": "no text"}', "application/json", 400, "invalid_request"),
        (b'{"text": 7}', "application/json", 400, "invalid_request"),
        (b'{"text": "x", "colour": "red"}', "application/json", 400, "unknown_field"),
        (b"{\\rtf1}", "application/rtf", 400, "invalid_request"),
        (b"no such thing", "application/pdf", 400, "document_not_text"),
        (b"", "application/pdf", 400, "document_empty"),
        (b"a", "text/html; charset=klingon", 400, "invalid_request"),
        (b"a" * (MAX_BYTES + 1), "text/plain", 413, "payload_too_large"),
        (b"a" * (3 * MAX_BYTES), "text/plain", 413, "payload_too_large"),
    ],
)
def test_a_bad_document_is_refused_by_name_and_nothing_is_kept(
    api: Api, content: bytes, media_type: str, status: int, code: str
) -> None:
    answer = api.client.post(
        "/api/v1/documents", content=content, headers={"content-type": media_type}
    )

    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    assert api.client.get("/api/v1/documents").json()["data"] == []
    assert api.queue.sent == []


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": ' + b"[" * 9000,
        b'{"text": ' + b"9" * 5000 + b"}",
        b'{"text": "a \\ud800 b"}',
        b'{"text": "a", "\\ud800": 1}',
        b'{"text": "a", "title": "b\\u0000c"}',
        b'{"text": "a", "title": "b\\ud800c"}',
        b'{"text": "a", "questions": [{"question": "b\\u0000", "answers": ["c"]}]}',
        b'{"text": "a", "questions": [{"question": "b", "answers": ["c\\u0000"]}]}',
        b'{"text": "a", "questions": [{"question": " ", "answers": ["c"]}]}',
    ],
    ids=[
        "deep",
        "digits",
        "surrogate",
        "field",
        "title-nul",
        "title-surrogate",
        "question-nul",
        "answer-nul",
        "question-blank",
    ],
)
def test_what_no_database_can_hold_and_no_parser_can_read_is_the_clients_fault(
    api: Api, content: bytes
) -> None:
    answer = api.client.post(
        "/api/v1/documents", content=content, headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400
    assert error_of(answer)["message"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/documents/a%00b", None),
        ("GET", "/api/v1/runs?document_id=%00", None),
        ("POST", "/api/v1/documents?title=a%00b", {"text": "a"}),
        ("POST", "/api/v1/keys", {"name": "a\x00b", "scopes": ["chat"]}),
        ("POST", "/api/v1/runs", {"adapter": "a\x00b"}),
        ("POST", "/api/v1/adapters/smollm2/rollback", {"to": "base", "reason": "a\x00b"}),
        ("POST", "/api/v1/adapters/smollm2/promote", {"version": True}),
        ("POST", "/api/v1/adapters/smollm2/promote", {"version": 1.5}),
    ],
)
def test_what_cannot_be_stored_is_refused_on_every_route(
    api: Api, method: str, path: str, body: dict[str, Any] | None
) -> None:
    answer = api.client.request(method, path, json=body)

    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_request")


def test_a_text_within_the_limit_is_taken_however_it_is_escaped(api: Api) -> None:
    text = "Я" * (MAX_BYTES // 2)

    answer = api.client.post(
        "/api/v1/documents",
        content=json.dumps({"text": text}).encode(),
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 201
    assert answer.json()["size_bytes"] == MAX_BYTES


def test_the_title_of_the_address_counts_where_the_body_has_none(api: Api) -> None:
    path = "/api/v1/documents?title=Address"

    titles = [
        api.client.post(path, json=body).json()["title"]
        for body in ({"text": "One."}, {"text": "Two.", "title": "Body"})
    ]

    assert titles == ["Address", "Body"]


def test_a_database_without_a_free_connection_is_unavailable(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(*_: object, **__: object) -> None:
        raise sqlalchemy.exc.TimeoutError("QueuePool limit reached")

    assert api.client.get("/api/v1/documents").status_code == 200  # the key is known by now
    monkeypatch.setattr(Database, "read", read)
    answer = api.client.get("/api/v1/documents")

    assert (answer.status_code, error_of(answer)["code"]) == (503, "database_unavailable")


def test_an_unknown_field_is_named_with_the_known_ones(api: Api) -> None:
    answer = api.client.post("/api/v1/documents", json={"text": "x", "txet": "y"})

    error = error_of(answer)
    assert error["param"] == "txet"
    assert "questions" in error["message"]


def test_learning_without_a_document_is_refused(api: Api) -> None:
    answer = api.client.post("/api/v1/runs", json={})

    assert answer.status_code == 400
    assert error_of(answer)["code"] == "nothing_to_learn"


def test_an_editor_is_not_trained_before_an_edit_was_kept(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_document(session)

    answer = api.client.post("/api/v1/runs", json={"method": "seal-editor"})

    assert (answer.status_code, error_of(answer)["code"]) == (400, "no_accepted_edits")
    assert api.client.get("/api/v1/runs").json()["data"] == []


def test_a_run_is_ordered_once_followed_and_cancelled(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_document(session)

    first = api.client.post("/api/v1/runs", json={})
    second = api.client.post("/api/v1/runs", json={})
    run_id = first.json()["id"]
    cancelled = api.client.post(f"/api/v1/runs/{run_id}/cancel")
    again = api.client.post(f"/api/v1/runs/{run_id}/cancel")
    events = api.client.get(f"/api/v1/runs/{run_id}/events").text

    assert (first.status_code, second.status_code) == (202, 200)
    assert second.json()["id"] == run_id
    assert cancelled.json()["status"] == "cancelled"
    assert (again.status_code, error_of(again)["code"]) == (409, "run_not_cancellable")
    assert json.loads(events.split("data: ")[1].split("\n")[0])["status"] == "cancelled"
    assert "event: end" in events


def test_rollback_with_nothing_behind_is_refused(api: Api) -> None:
    answer = api.client.post("/api/v1/adapters/smollm2/rollback", json={})

    assert answer.status_code == 409
    assert error_of(answer)["code"] == "nothing_to_roll_back"


@pytest.mark.parametrize(
    ("version", "status", "code"),
    [
        ("v9", 404, "not_found"),
        ("newest", 400, "invalid_request"),
        ("v1", 409, "version_not_servable"),
    ],
)
def test_promotion_of_what_cannot_serve_is_refused(
    api: Api, version: str, status: int, code: str
) -> None:
    with api.database.unit_of_work() as session:
        adapter = ensure_adapter(session)
        make_version(session, adapter, status="rejected")  # type: ignore[arg-type]

    answer = api.client.post("/api/v1/adapters/smollm2/promote", json={"version": version})

    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


def test_promotion_and_rollback_move_what_answers_at_once(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_version(session, ensure_adapter(session))

    def who_answers() -> tuple[str, str]:
        answer = api.client.post(
            "/v1/chat/completions",
            json={"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]},
        )
        return answer.headers["x-everlearn-version"], answer.json()["model"]

    before = who_answers()
    promoted = api.client.post("/api/v1/adapters/smollm2/promote", json={"version": "v1"})
    during = who_answers()
    rolled_back = api.client.post("/api/v1/adapters/smollm2/rollback", json={"reason": "test"})
    after = who_answers()

    assert before == after == ("smollm2@base", "smollm2@base")
    assert during == ("smollm2@v1", "smollm2@v1.00000000")
    assert (promoted.json()["from_version"], promoted.json()["to_version"]) == (
        "smollm2@base",
        "smollm2@v1",
    )
    assert rolled_back.json()["kind"] == "rollback"
    events = api.client.get("/api/v1/adapters/smollm2").json()["events"]
    assert {event["actor"].partition("_")[0] for event in events} == {"key:key"}
    assert [(event["kind"], event["reason"]) for event in events] == [
        ("rollback", "test"),
        ("promote", ""),
    ]


def test_who_hears_of_a_move_is_answered_by_it(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_version(session, ensure_adapter(session))

    for wanted in ("v1", "base") * 3:
        with api.database.unit_of_work() as session:  # as a worker does, in another process
            adapter = ensure_adapter(session)
            move = promotion.plan_promotion(session, adapter, wanted)
            promotion.apply_move(session, adapter, move, actor="run:x", reason="")
        told = api.client.get("/api/v1/adapters/smollm2").json()["champion"]
        answer = api.client.post(
            "/v1/chat/completions",
            json={"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]},
        )

        assert answer.headers["x-everlearn-version"] == told == f"smollm2@{wanted}"


def test_promotion_fails_whole_when_the_engine_refuses_the_weights(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_version(session, ensure_adapter(session))
    api.engine.refuses_load = 400

    answer = api.client.post("/api/v1/adapters/smollm2/promote", json={"version": "v1"})

    assert answer.status_code in (502, 503)
    assert error_of(answer)["message"]
    assert api.client.get("/api/v1/adapters/smollm2").json()["champion"] == "smollm2@base"


def test_health_needs_no_key(api: Api) -> None:
    for path in ("/healthz", "/readyz"):
        assert api.client.get(path, headers={"authorization": ""}).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/keys", "/api/v1/documents", "/v1/chat/completions"])
def test_a_caller_without_a_key_cannot_fill_the_memory(api: Api, path: str) -> None:
    headers = {"authorization": "", "content-type": "application/json"}
    pieces = (b" " * MIB for _ in range(32))  # of a length that no header tells

    answer = api.client.post(path, content=pieces, headers=headers)

    assert answer.status_code in (401, 413)
    assert error_of(answer)["code"] in ("invalid_api_key", "payload_too_large")


def test_a_long_body_is_refused_in_words(api: Api) -> None:
    answer = api.client.post("/api/v1/runs", content=b" " * (MIB + 1))

    assert (answer.status_code, error_of(answer)["code"]) == (413, "payload_too_large")
    assert "x-request-id" in answer.headers


def test_a_caller_without_a_key_is_not_told_what_is_wrong_with_the_body(api: Api) -> None:
    for content in (b"{", b"{}"):
        answer = api.client.post("/api/v1/keys", content=content, headers={"authorization": ""})
        assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")


def test_a_run_in_the_list_names_its_documents(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, ensure_adapter(session))

    [view] = api.client.get("/api/v1/runs").json()["data"]

    assert (view["id"], view["status"], view["adapter"]) == (run.id, "queued", "smollm2")


def ensure_adapter(session: Any) -> Any:
    from server.services import registry

    return registry.get_adapter(session, "smollm2")


def _wait_ready(client: httpx2.Client) -> None:
    import time

    for _ in range(100):
        if client.get("/readyz").status_code == 200:
            return
        time.sleep(0.1)
    raise TimeoutError(client.get("/readyz").text)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/v1/runs"])
def test_a_refusal_carries_the_id_of_its_request(api: Api, path: str) -> None:
    answer = api.client.post(path, content=b"[", headers={"x-request-id": "mine-1"})

    assert answer.status_code == 400
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
