"""Who may do what: every route with every scope, tenants apart, limits, revocation, the audit trail."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session

from server.app import create_app
from server.core.security import Scope
from server.core.settings import EngineSettings, Settings, SwapSettings
from server.db import AuditEvent, RunStatus
from server.db.session import Database
from server.services import audit, evaluations, keys, registry, runs
from server.services.bootstrap import ensure_line
from tests.conftest import BASE_HASH, RecordingQueue
from tests.support.factories import make_document, make_run, make_version
from tests.support.fake_engine import FakeEngine, serve

pytestmark = pytest.mark.usefixtures("paper_artifacts")

ADMIN_KEY = "el_admin_key_of_this_contract_test"

CHAT = frozenset({Scope.CHAT, Scope.ADMIN})
INGEST = frozenset({Scope.INGEST, Scope.ADMIN})
READ = frozenset({Scope.READ, Scope.ADMIN})
FEEDBACK = frozenset({Scope.FEEDBACK, Scope.ADMIN})
READ_OR_INGEST = READ | INGEST
ADMIN = frozenset({Scope.ADMIN})

OPEN = {("GET", "/healthz"), ("GET", "/readyz")}
"""Routes that need no key."""

ROUTES = {
    ("POST", "/v1/chat/completions"): CHAT,
    ("POST", "/v1/completions"): CHAT,
    ("POST", "/v1/responses"): CHAT,
    ("GET", "/v1/responses/{response_id}"): CHAT,
    ("DELETE", "/v1/responses/{response_id}"): CHAT,
    ("POST", "/v1/responses/{response_id}/cancel"): CHAT,
    ("POST", "/v1/embeddings"): CHAT,
    ("POST", "/v1/messages"): CHAT,
    ("POST", "/v1/messages/count_tokens"): CHAT,
    ("GET", "/v1/models"): CHAT,
    ("GET", "/v1/models/{name}"): CHAT,
    ("POST", "/api/v1/documents"): INGEST,
    ("GET", "/api/v1/documents"): READ_OR_INGEST,
    ("GET", "/api/v1/documents/{document_id}"): READ_OR_INGEST,
    ("GET", "/api/v1/documents/{document_id}/chunks"): READ_OR_INGEST,
    ("DELETE", "/api/v1/documents/{document_id}"): ADMIN,
    ("POST", "/api/v1/documents/{document_id}/questions"): INGEST,
    ("GET", "/api/v1/documents/{document_id}/questions"): READ_OR_INGEST,
    ("DELETE", "/api/v1/documents/{document_id}/questions/{question_id}"): ADMIN,
    ("GET", "/api/v1/exams/judge"): READ,
    ("POST", "/api/v1/documents/{document_id}/release"): ADMIN,
    ("POST", "/api/v1/prompts"): INGEST,
    ("GET", "/api/v1/prompts"): READ_OR_INGEST,
    ("GET", "/api/v1/prompts/{prompt_id}"): READ_OR_INGEST,
    ("DELETE", "/api/v1/prompts/{prompt_id}"): ADMIN,
    ("POST", "/api/v1/policies"): ADMIN,
    ("GET", "/api/v1/policies"): READ,
    ("GET", "/api/v1/policies/{policy_id}"): READ,
    ("PATCH", "/api/v1/policies/{policy_id}"): ADMIN,
    ("DELETE", "/api/v1/policies/{policy_id}"): ADMIN,
    ("POST", "/api/v1/policies/{policy_id}/dry-run"): READ,
    ("POST", "/api/v1/tasks"): INGEST,
    ("GET", "/api/v1/tasks"): READ_OR_INGEST,
    ("GET", "/api/v1/tasks/{task_id}"): READ_OR_INGEST,
    ("POST", "/api/v1/tasks/{task_id}/learn"): ADMIN,
    ("DELETE", "/api/v1/tasks/{task_id}"): ADMIN,
    ("GET", "/api/v1/interactions"): READ,
    ("GET", "/api/v1/interactions/export"): READ,
    ("GET", "/api/v1/interactions/{interaction_id}"): READ,
    ("POST", "/api/v1/interactions/{interaction_id}/redact"): ADMIN,
    ("DELETE", "/api/v1/interactions/{interaction_id}"): ADMIN,
    ("POST", "/api/v1/feedback"): FEEDBACK,
    ("GET", "/api/v1/feedback"): READ,
    ("GET", "/api/v1/runs"): READ_OR_INGEST,
    ("POST", "/api/v1/runs"): ADMIN,
    ("GET", "/api/v1/runs/{run_id}"): READ_OR_INGEST,
    ("GET", "/api/v1/runs/{run_id}/events"): READ_OR_INGEST,
    ("GET", "/api/v1/runs/{run_id}/report"): READ,
    ("GET", "/api/v1/runs/{run_id}/report.html"): READ,
    ("POST", "/api/v1/runs/{run_id}/cancel"): ADMIN,
    ("GET", "/api/v1/methods"): READ_OR_INGEST,
    ("GET", "/api/v1/adapters"): READ,
    ("POST", "/api/v1/adapters"): ADMIN,
    ("GET", "/api/v1/adapters/{name}"): READ,
    ("PATCH", "/api/v1/adapters/{name}"): ADMIN,
    ("POST", "/api/v1/adapters/{name}/trial"): ADMIN,
    ("GET", "/api/v1/adapters/{name}/trial"): READ,
    ("GET", "/api/v1/adapters/{name}/trials"): READ,
    ("DELETE", "/api/v1/adapters/{name}/trial"): ADMIN,
    ("POST", "/api/v1/adapters/{name}/trial/approve"): ADMIN,
    ("POST", "/api/v1/adapters/{name}/promote"): ADMIN,
    ("POST", "/api/v1/adapters/{name}/rollback"): ADMIN,
    ("POST", "/api/v1/adapters/{name}/versions"): ADMIN,
    ("GET", "/api/v1/adapters/{name}/versions/{version}"): READ,
    ("GET", "/api/v1/adapters/{name}/versions/{version}/export"): ADMIN,
    ("POST", "/api/v1/adapters/{name}/versions/{version}/rebuild"): ADMIN,
    ("GET", "/api/v1/replicas"): ADMIN,
    ("POST", "/api/v1/replicas"): ADMIN,
    ("PATCH", "/api/v1/replicas/{replica_id}"): ADMIN,
    ("DELETE", "/api/v1/replicas/{replica_id}"): ADMIN,
    ("POST", "/api/v1/adapters/{name}/versions/{version}/retire"): ADMIN,
    ("GET", "/api/v1/deletions"): ADMIN,
    ("GET", "/api/v1/deletions/{deletion_id}"): ADMIN,
    ("POST", "/api/v1/deletions/{deletion_id}/rebuild"): ADMIN,
    ("DELETE", "/api/v1/tenants/{owner}/data"): ADMIN,
    ("GET", "/api/v1/keys"): ADMIN,
    ("POST", "/api/v1/keys"): ADMIN,
    ("PATCH", "/api/v1/keys/{key_id}"): ADMIN,
    ("DELETE", "/api/v1/keys/{key_id}"): ADMIN,
    ("GET", "/api/v1/audit"): ADMIN,
    ("GET", "/api/openapi.json"): READ_OR_INGEST,
    ("GET", "/metrics"): READ,
}
"""Every other route, and the scopes any of which opens it."""


@dataclass
class Api:
    """The server under test as its operator sees it, with doors to look behind it."""

    client: httpx2.Client
    database: Database
    engine: FakeEngine
    app: FastAPI
    url: str

    def mint(self, *scopes: str, **fields: Any) -> "Caller":
        return Caller(self, self.client.post("/api/v1/keys", json=_key(*scopes, **fields)))

    def events(self, **filters: Any) -> list[dict[str, Any]]:
        return self.client.get("/api/v1/audit", params=filters).json()["data"]


class Caller:
    """Somebody with a key of its own."""

    def __init__(self, api: Api, minted: httpx2.Response) -> None:
        assert minted.status_code == 201, minted.text
        self._api = api
        self.id: str = minted.json()["id"]
        self.key: str = minted.json()["key"]

    def __call__(self, method: str, path: str, **request: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        return self._api.client.request(method, path, headers=headers, **request)

    def get(self, path: str) -> httpx2.Response:
        return self("GET", path)

    def post(self, path: str, body: Any = None) -> httpx2.Response:
        return self("POST", path, json={} if body is None else body)

    def chat(self, model: str = "smollm2", **fields: Any) -> httpx2.Response:
        messages = [{"role": "user", "content": "Hi"}]
        body = {"model": model, "messages": messages, **fields}
        return self.post("/v1/chat/completions", body)

    def ids(self, path: str) -> list[str]:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return [row.get("id", row.get("name")) for row in answer.json()["data"]]


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    engine = FakeEngine()
    with serve(engine.app()) as upstream:
        settings = settings.model_copy(
            update={
                "database_url": database.url.render_as_string(hide_password=False),
                "engine": EngineSettings(url=upstream.url),
                "swap": SwapSettings(refresh_s=0.05),
            }
        )
        with database.unit_of_work() as session:
            ensure_line(session, settings, base_path=tmp_path / "base", base_hash=BASE_HASH)
            keys.ensure_admin_key(session, ADMIN_KEY)
        app = create_app(settings, queue=RecordingQueue())
        with (
            serve(app) as server,
            httpx2.Client(
                base_url=server.url,
                headers={"authorization": f"Bearer {ADMIN_KEY}"},
                timeout=30,
            ) as client,
        ):
            _wait_ready(client)
            yield Api(client, database, engine, app, server.url)


def error_code(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code; Anthropic's errors have a type in its place."""
    error = answer.json()["error"]
    return answer.status_code, error.get("code", error["type"])


def test_every_route_is_in_the_table(api: Api) -> None:
    assert [route for route in api.app.routes if not hasattr(route, "methods")] == []
    served = {
        (method, route.path)
        for route in api.app.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }

    assert served == OPEN | ROUTES.keys()


def test_every_route_opens_to_its_scopes_and_to_nothing_else(api: Api) -> None:
    callers = {scope: api.mint(scope) for scope in Scope}
    revoked = api.mint("admin")
    api.client.delete(f"/api/v1/keys/{revoked.id}")
    bad = {"none": "", "not bearer": f"Basic {ADMIN_KEY}", "forged": "Bearer el_x"}
    bad["revoked"] = f"Bearer {revoked.key}"
    wrong: dict[str, object] = {}
    for (method, path), scopes in ROUTES.items():
        address = path.replace("{", "").replace("}", "")
        body = None if method == "GET" else {}
        for name, header in bad.items():
            refused = api.client.request(
                method, address, json=body, headers={"authorization": header}
            )
            if error_code(refused) not in (
                (401, "invalid_api_key"),
                (401, "authentication_error"),
            ):
                wrong[f"{method} {path} with {name} key"] = refused.status_code
        for scope, caller in callers.items():
            answer = caller(method, address, json=body)
            if scope not in scopes:
                is_right = error_code(answer) in (
                    (403, "insufficient_scope"),
                    (403, "permission_error"),
                )
            else:
                is_right = answer.status_code not in (401, 403) and answer.status_code < 500
            if not is_right:
                wrong[f"{method} {path} with {scope}"] = answer.status_code

    assert wrong == {}


def test_open_routes_need_no_key(api: Api) -> None:
    for method, path in OPEN:
        answer = api.client.request(method, path, headers={"authorization": ""})
        assert answer.status_code == 200


def test_a_refusal_names_the_scopes_that_open(api: Api) -> None:
    answer = api.mint("chat").get("/api/v1/documents")

    assert "'read' or 'ingest'" in answer.json()["error"]["message"]


# Keys of tenants


def test_a_tenants_admin_mints_only_for_its_tenant(api: Api) -> None:
    admin = api.mint("admin", owner="acme")

    own = admin.post("/api/v1/keys", _key("chat"))
    named = admin.post("/api/v1/keys", _key("admin", owner="acme"))
    others = admin.post("/api/v1/keys", _key("chat", owner="globex"))

    assert (own.json()["owner"], named.json()["owner"]) == ("acme", "acme")
    assert error_code(others) == (403, "foreign_tenant")
    assert {row["owner"] for row in admin.get("/api/v1/keys").json()["data"]} == {"acme"}


def test_a_tenants_admin_cannot_touch_other_keys(api: Api) -> None:
    admin, other = api.mint("admin", owner="acme"), api.mint("chat", owner="globex")
    [operator] = [
        row for row in api.client.get("/api/v1/keys").json()["data"] if "from" in row["name"]
    ]

    for key_id in (other.id, operator["id"]):
        for method in ("DELETE", "PATCH"):
            answer = admin(method, f"/api/v1/keys/{key_id}", json={})
            assert error_code(answer) == (404, "not_found")
        assert key_id not in admin.get("/api/v1/keys").text
    assert other.chat().status_code == 200


def test_the_operator_administers_every_tenants_keys(api: Api) -> None:
    caller = api.mint("chat", owner="acme")

    answer = api.client.delete(f"/api/v1/keys/{caller.id}")

    assert (answer.status_code, answer.json()["owner"]) == (200, "acme")


@pytest.mark.parametrize(
    "fields",
    [
        {"owner": ""},
        {"owner": "x" * 101},
        {"requests_per_minute": 0},
        {"requests_per_minute": 1.5},
        {"requests_per_minute": 2**31},
        {"tokens_per_minute": -1},
        {"token_budget": -1},
        {"token_budget": 2**63},
        {"token_budget": "1"},
        {"allows_learning": None},
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_by_name(api: Api, fields: dict[str, Any]) -> None:
    answer = api.client.post("/api/v1/keys", json=_key("chat", **fields))

    assert error_code(answer) == (400, "invalid_request")
    assert answer.json()["error"]["param"] == next(iter(fields))


# Documents, runs and lines of tenants


def test_a_tenant_sees_its_own_documents_and_the_operator_all(api: Api) -> None:
    acme, globex = (api.mint("ingest", "read", owner=name) for name in ("acme", "globex"))
    text = {"text": "The same words."}
    mine = acme.post("/api/v1/documents", text)
    again = acme.post("/api/v1/documents", text)
    theirs = globex.post("/api/v1/documents", text)
    operators = api.client.post("/api/v1/documents", json=text)

    ids = [answer.json()["id"] for answer in (mine, theirs, operators)]
    assert len(set(ids)) == 3
    assert [answer.status_code for answer in (mine, again, theirs, operators)] == [
        201,
        200,
        201,
        201,
    ]
    assert acme.ids("/api/v1/documents") == [ids[0]]
    assert globex.ids("/api/v1/documents") == [ids[1]]
    assert {row["id"] for row in api.client.get("/api/v1/documents").json()["data"]} == set(ids)
    for foreign in ids[1:]:
        assert error_code(acme.get(f"/api/v1/documents/{foreign}")) == (404, "not_found")
    assert api.client.get(f"/api/v1/documents/{ids[0]}").status_code == 200


def test_a_line_answers_its_tenant_and_the_operator(api: Api) -> None:
    acme, globex = (api.mint("admin", owner=name) for name in ("acme", "globex"))
    made = acme.post("/api/v1/adapters", {"name": "acme-line"})
    assert (made.status_code, made.json()["owner"]) == (201, "acme")

    answer = acme.chat("acme-line")

    assert answer.headers["x-everlearn-version"] == "acme-line@base"
    assert answer.json()["model"] == "smollm2@base"  # the engine knows one base, by one name
    assert {"acme-line", "acme-line@base", "smollm2"} <= set(acme.ids("/v1/models"))
    assert acme.get("/v1/models/acme-line").status_code == 200
    for name in ("acme-line", "acme-line@base", "acme-line@v1"):
        refused = globex.chat(name)
        assert error_code(refused) == (404, "model_not_found")
        assert "acme" not in refused.json()["error"]["message"].replace(repr(name), "")
        assert error_code(globex.get(f"/v1/models/{name}")) == (404, "model_not_found")
    assert set(globex.ids("/v1/models")) == {"smollm2", "smollm2@base"}
    assert "acme-line" not in globex.get("/api/v1/adapters").text
    assert error_code(globex.get("/api/v1/adapters/acme-line")) == (404, "not_found")
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=ADMIN_KEY, max_retries=0) as operator:
        assert "acme-line" in {model.id for model in operator.models.list()}


def test_a_tenant_moves_its_own_line_only(api: Api) -> None:
    acme, globex = (api.mint("admin", owner=name) for name in ("acme", "globex"))
    acme.post("/api/v1/adapters", {"name": "acme-line"})
    with api.database.unit_of_work() as session:
        for name in ("acme-line", "smollm2"):
            _make_learnt_version(session, name)

    for path, body in (("promote", {"version": "v1"}), ("rollback", {})):
        shared = acme.post(f"/api/v1/adapters/smollm2/{path}", body)
        foreign = globex.post(f"/api/v1/adapters/acme-line/{path}", body)
        assert error_code(shared) == (403, "foreign_tenant")
        assert error_code(foreign) == (404, "not_found")
    moved = acme.post("/api/v1/adapters/acme-line/promote", {"version": "v1"})

    assert moved.status_code == 200, moved.text
    assert acme.chat("acme-line").json()["model"].startswith("acme-line@v1.")
    assert acme.chat().json()["model"] == "smollm2@base"
    assert api.client.post("/api/v1/adapters/smollm2/promote", json={"version": "v1"}).is_success


def test_of_everybodys_line_a_tenant_sees_names_and_no_material(api: Api) -> None:
    reader = api.mint("read", owner="acme")
    with api.database.unit_of_work() as session:
        document_id, run_id = _make_learnt_version(session, "smollm2")

    [line] = reader.get("/api/v1/adapters").json()["data"]
    told = reader.get("/api/v1/adapters/smollm2")

    assert told.json() == line
    assert [version["name"] for version in line["versions"]] == ["smollm2@v1"]
    assert line["versions"][0]["documents"] == []
    assert line["versions"][0]["exam"] is None
    assert document_id not in told.text
    assert run_id not in told.text
    assert reader.ids("/api/v1/runs") == []
    assert reader.ids(f"/api/v1/runs?document_id={document_id}") == []
    for part in ("", "/events", "/report", "/report.html"):
        path = f"/api/v1/runs/{run_id}{part}"
        assert error_code(reader.get(path)) == (404, "not_found")
    operators = api.client.get("/api/v1/adapters/smollm2")
    assert document_id in operators.text
    assert operators.json()["versions"][0]["exam"]["verdict"] == "promote"


def test_a_tenants_run_takes_its_documents_and_is_its_own_secret(api: Api) -> None:
    acme, globex = (api.mint("admin", owner=name) for name in ("acme", "globex"))
    for admin, name in ((acme, "acme-line"), (globex, "globex-line")):
        admin.post("/api/v1/adapters", {"name": name})
    with api.database.unit_of_work() as session:
        mine = make_document(session, "Acme's own.", owner="acme").id
        make_document(session, "The operator's.")

    nothing = globex.post("/api/v1/runs", {"adapter": "globex-line"})
    foreign = globex.post("/api/v1/runs", {"adapter": "acme-line"})
    shared = acme.post("/api/v1/runs")
    started = acme.post("/api/v1/runs", {"adapter": "acme-line"})
    run_id = started.json()["id"]
    stolen = globex.post(f"/api/v1/runs/{run_id}/cancel")
    cancelled = acme.post(f"/api/v1/runs/{run_id}/cancel")

    assert error_code(nothing) == (400, "nothing_to_learn")
    assert error_code(foreign) == (404, "not_found")
    assert error_code(shared) == (403, "foreign_tenant")
    assert error_code(stolen) == (404, "not_found")
    assert started.status_code == 202
    assert cancelled.json()["documents"] == [mine]
    assert acme.ids("/api/v1/runs") == [run_id]
    assert globex.ids("/api/v1/runs") == []
    assert error_code(globex.get(f"/api/v1/runs/{run_id}")) == (404, "not_found")


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a@b", "-x", "x" * 101, "a\n"])
def test_a_lines_name_is_fit_for_a_folder(api: Api, name: str) -> None:
    answer = api.client.post("/api/v1/adapters", json={"name": name})

    assert error_code(answer) == (400, "invalid_request")


def test_a_lines_name_is_taken_once_and_for_one_tenant(api: Api) -> None:
    acme, globex = (api.mint("admin", owner=name) for name in ("acme", "globex"))
    body = {"name": "line"}

    for_another = globex.post("/api/v1/adapters", {**body, "owner": "acme"})
    by_operator = api.client.post("/api/v1/adapters", json={**body, "owner": "acme"})
    again = acme.post("/api/v1/adapters", body)

    assert error_code(for_another) == (403, "foreign_tenant")
    assert by_operator.json()["owner"] == "acme"
    assert error_code(again) == (409, "conflict")
    assert "line" in acme.ids("/v1/models")


# Limits


def test_a_key_that_asks_too_often_is_refused_until_it_may_again(api: Api) -> None:
    caller = api.mint("chat", requests_per_minute=2)
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=caller.key, max_retries=0) as client:
        replies = [_ask(client) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as caught:
            _ask(client)
        client.models.list()  # costs nothing

    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["1", "0"]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "2"
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert api.mint("chat").chat().status_code == 200

    lifted = api.client.patch(f"/api/v1/keys/{caller.id}", json={"requests_per_minute": None})

    assert lifted.json()["requests_per_minute"] is None
    answer = caller.chat()
    assert answer.status_code == 200
    assert "x-ratelimit-limit-requests" not in answer.headers


@pytest.mark.parametrize("is_stream", [False, True])
def test_tokens_count_when_the_reply_is_over(api: Api, is_stream: bool) -> None:
    caller = api.mint("chat", tokens_per_minute=20)

    statuses = [caller.chat(stream=is_stream).status_code for _ in range(3)]  # of 13 tokens each

    assert statuses == [200, 200, 429]


def test_a_client_that_leaves_pays_for_what_it_saw(api: Api) -> None:
    caller = api.mint("chat")
    api.engine.words, api.engine.token_s = 200, 0.02
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=caller.key, max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Hi"}]
        with client.chat.completions.create(
            model="smollm2", messages=messages, stream=True
        ) as stream:
            for _ in range(10):
                next(stream)

    _wait_for(lambda: _used(api, caller) > 0)


def test_a_budget_ends_and_is_raised(api: Api) -> None:
    caller = api.mint("chat", token_budget=20)
    assert [caller.chat().status_code for _ in range(2)] == [200, 200]

    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=caller.key, max_retries=2) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            _ask(client)
    raised = api.client.patch(f"/api/v1/keys/{caller.id}", json={"token_budget": 27})

    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert raised.json()["token_budget"] == 27
    assert [caller.chat().status_code for _ in range(2)] == [200, 429]


def test_the_tokens_a_key_has_used_are_in_its_row(api: Api) -> None:
    caller = api.mint("chat")
    for _ in range(3):
        caller.chat()

    _wait_for(lambda: _used(api, caller) == 39)


def test_what_a_key_may_not_ask_costs_it_no_engine(api: Api) -> None:
    caller = api.mint("chat", requests_per_minute=1)
    caller.chat()
    seen = len(api.engine.bodies)

    assert caller.chat().status_code == 429
    assert len(api.engine.bodies) == seen


def test_a_change_of_limits_leaves_the_rest(api: Api) -> None:
    caller = api.mint("chat", requests_per_minute=5, token_budget=100, owner="acme")

    view = api.client.patch(
        f"/api/v1/keys/{caller.id}", json={"tokens_per_minute": 9, "allows_learning": False}
    ).json()

    assert (view["requests_per_minute"], view["tokens_per_minute"]) == (5, 9)
    assert (view["token_budget"], view["allows_learning"], view["owner"]) == (100, False, "acme")
    for body in ({"scopes": ["admin"]}, {"owner": "globex"}):
        refused = api.client.patch(f"/api/v1/keys/{caller.id}", json=body)
        assert error_code(refused) == (400, "unknown_field")


# Revocation


def test_a_revoked_key_is_closed_when_the_answer_comes(api: Api) -> None:
    for _ in range(5):
        caller = api.mint("chat")
        assert caller.get("/v1/models").status_code == 200

        api.client.delete(f"/api/v1/keys/{caller.id}")

        assert error_code(caller.get("/v1/models")) == (401, "invalid_api_key")
        assert caller.key not in api.client.get("/api/v1/keys").text


def test_a_key_that_is_used_all_the_time_is_closed_too(api: Api) -> None:
    caller = api.mint("chat")
    is_over = threading.Event()
    late: list[int] = []

    def use() -> None:
        with httpx2.Client(base_url=api.url) as client:
            while not is_over.is_set():
                client.get("/v1/models", headers={"authorization": f"Bearer {caller.key}"})

    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    try:
        api.client.delete(f"/api/v1/keys/{caller.id}")
        late = [caller.get("/v1/models").status_code for _ in range(20)]
    finally:
        is_over.set()
        for user in users:
            user.join()

    assert set(late) == {401}


# The audit trail


def test_every_admin_act_leaves_its_trace(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_document(session)
        _make_learnt_version(session, "smollm2")
    caller = api.mint("chat", owner="acme", token_budget=5)
    api.client.patch(f"/api/v1/keys/{caller.id}", json={"token_budget": 6})
    api.client.delete(f"/api/v1/keys/{caller.id}", headers={"x-request-id": "mine-7"})
    api.client.post("/api/v1/adapters", json={"name": "second"})
    run_id = api.client.post("/api/v1/runs", json={}).json()["id"]
    api.client.post("/api/v1/runs", json={})  # open already: nothing is done
    api.client.post(f"/api/v1/runs/{run_id}/cancel")
    api.client.post("/api/v1/adapters/smollm2/promote", json={"version": "v1"})
    api.client.post("/api/v1/adapters/smollm2/rollback", json={"reason": "because"})

    events = api.events()

    assert [(event["action"], event["target"]) for event in reversed(events)] == [
        ("key.create", caller.id),
        ("key.change", caller.id),
        ("key.revoke", caller.id),
        ("adapter.create", "second"),
        ("run.start", run_id),
        ("run.cancel", run_id),
        ("adapter.promote", "smollm2"),
        ("adapter.rollback", "smollm2"),
    ]
    assert {event["actor"].partition(" ")[2] for event in events} == {"(admin (from the settings))"}
    by_action = {event["action"]: event for event in events}
    assert by_action["key.create"]["owner"] == "acme"
    assert by_action["key.change"]["detail"] == {"token_budget": 6}
    assert by_action["key.revoke"]["request_id"] == "mine-7"
    assert by_action["adapter.promote"]["detail"] == {"from": "smollm2@base", "to": "smollm2@v1"}
    assert caller.key not in str(events)


def test_what_was_refused_leaves_no_trace(api: Api) -> None:
    api.client.post("/api/v1/keys", json=_key("root"))
    api.client.delete("/api/v1/keys/key_x")
    api.client.post("/api/v1/runs", json={})
    api.client.post("/api/v1/adapters/smollm2/rollback", json={})
    api.client.post("/api/v1/adapters", json={"name": "smollm2"})

    assert api.events() == []


def test_the_trail_is_read_page_by_page_while_it_grows(api: Api) -> None:
    ids = [api.mint("chat").id for _ in range(5)]

    pages, after = [], None
    while True:
        page = api.client.get(
            "/api/v1/audit", params={"limit": 2, **({"after": after} if after else {})}
        ).json()
        pages.append([event["target"] for event in page["data"]])
        api.mint("chat")
        after = page["next"]
        if after is None:
            break

    assert pages == [ids[:-3:-1], ids[2:0:-1], ids[:1]]
    assert error_code(api.client.get("/api/v1/audit?after=doc_1")) == (400, "invalid_request")


def test_a_tenants_admin_reads_its_own_trail(api: Api) -> None:
    api.mint("chat")
    api.mint("chat", owner="globex")
    admin = api.mint("admin", owner="acme")
    admin.post("/api/v1/keys", _key("chat"))

    found = admin.get("/api/v1/audit").json()["data"]

    assert [event["owner"] for event in found] == ["acme", "acme"]
    assert found[0]["actor"].startswith(f"key:{admin.id}")


def test_an_act_and_its_trace_are_stored_together_or_not_at_all(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> AuditEvent:
        raise RuntimeError("no room for the trace")

    def ids() -> set[str]:
        return {row["id"] for row in api.client.get("/api/v1/keys").json()["data"]}

    before = ids()
    monkeypatch.setattr(audit, "record", fails)

    alone = {"connection": "close"}  # the server closes it after a defect of its own
    answer = api.client.post("/api/v1/keys", json=_key("admin"), headers=alone)
    assert answer.status_code == 500
    assert ids() == before


def _key(*scopes: str, **fields: Any) -> dict[str, Any]:
    return {"name": "k", "scopes": list(scopes), **fields}


def _used(api: Api, caller: Caller) -> int:
    rows = api.client.get("/api/v1/keys").json()["data"]
    return next(row["tokens_used"] for row in rows if row["id"] == caller.id)


def _ask(client: openai.OpenAI) -> Any:
    messages: Any = [{"role": "user", "content": "Hi"}]
    return client.chat.completions.with_raw_response.create(model="smollm2", messages=messages)


def _make_learnt_version(session: Session, line: str) -> tuple[str, str]:
    """A servable version with an exam, trained on a document; the ids of document and run."""
    adapter = registry.get_adapter(session, line)
    document = make_document(session, f"Learnt by {line}.", owner=adapter.owner)
    run = make_run(session, adapter)
    owned = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=30))
    assert owned is not None
    runs.take_documents(session, owned)
    version = make_version(session, adapter, claim=owned)
    evaluations.record(
        session,
        run_id=run.id,
        version=version,
        champion=None,
        verdict="promote",
        decision={"verdict": "promote"},
        results=[],
    )
    runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")
    return document.id, run.id


def _wait_ready(client: httpx2.Client) -> None:
    _wait_for(lambda: client.get("/readyz").status_code == 200)


def _wait_for(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
