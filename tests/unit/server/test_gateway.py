"""The gateway's small parts: keys, the order to the engine, refusals, and the import weight."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from server.core.errors import DatabaseUnavailable, EngineError, InvalidRequest
from server.core.security import Scope
from server.core.settings import EngineSettings, Settings
from server.db.session import Database
from server.engine import proxy
from server.engine.client import EngineClient
from server.engine.proxy import engine_order, open_reply
from server.engine.routing import Route
from server.engine.sse import event_data, split_events
from server.gateway import endpoints
from server.gateway.endpoints import EndpointSpec, parse_request
from server.gateway.errors import engine_refusal, stream_error
from server.gateway.usage import tokens_used
from server.http.auth import FRESH_S, STALE_S, KeyRing
from server.runtime import Runtime
from server.services import keys
from tests.conftest import RecordingQueue
from tests.support.fake_engine import FakeEngine, serve

SECRET = "el_test"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(database: Database) -> AsyncIterator[Database]:
    yield database
    await database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key_ring(database: Database, clock: Clock) -> KeyRing:
    with database.unit_of_work() as session:
        keys.add_key(session, "someone", ["chat"], secret=SECRET)
    return KeyRing(database, clock=clock)


async def test_a_key_gives_its_owner_and_a_wrong_one_nobody(key_ring: KeyRing) -> None:
    owner = await key_ring.authenticate(SECRET)

    assert owner is not None
    assert (owner.name, owner.scopes) == ("someone", {Scope.CHAT})
    assert await key_ring.authenticate("el_wrong") is None
    assert await key_ring.authenticate("x" * 100_000) is None


async def test_a_revoked_key_is_good_for_a_second_at_most(
    key_ring: KeyRing, database: Database, clock: Clock
) -> None:
    owner = await key_ring.authenticate(SECRET)
    assert owner is not None
    with database.unit_of_work() as session:
        keys.revoke_key(session, owner.id)

    assert await key_ring.authenticate(SECRET) == owner
    clock.now += FRESH_S
    assert await key_ring.authenticate(SECRET) is None


async def test_a_good_key_outlives_the_database_for_a_while(
    key_ring: KeyRing, database: Database, clock: Clock
) -> None:
    owner = await key_ring.authenticate(SECRET)
    with database.unit_of_work() as session:
        session.execute(text("ALTER TABLE api_keys RENAME TO elsewhere"))

    clock.now += STALE_S
    assert await key_ring.authenticate(SECRET) == owner
    clock.now += 1
    with pytest.raises(DatabaseUnavailable):
        await key_ring.authenticate(SECRET)
    with pytest.raises(DatabaseUnavailable):
        await key_ring.authenticate("el_never_seen")


@pytest.mark.parametrize(
    ("request_body", "options", "withholds"),
    [
        ({}, None, False),
        ({"stream": False}, None, False),
        ({"stream": True}, {"include_usage": True}, True),
        ({"stream": True, "stream_options": None}, {"include_usage": True}, True),
        (
            {"stream": True, "stream_options": {"include_usage": False, "other": 1}},
            {"include_usage": True, "other": 1},
            True,
        ),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            {"include_usage": True},
            True,
        ),
        (
            {
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            },
            {"include_usage": True, "continuous_usage_stats": True},
            False,
        ),
        ({"stream": True, "stream_options": "x"}, "x", False),
        ({"stream_options": {"include_usage": True}}, {"include_usage": True}, False),
    ],
)
def test_only_model_and_usage_are_changed_on_the_way_to_the_engine(
    request_body: dict[str, object], options: object, withholds: bool
) -> None:
    sent = {"model": "smollm2", "messages": [{"role": "user", "content": "\ud83d"}], "odd": [1.5]}

    order, withholds_usage = engine_order(proxy.CHAT, "smollm2@v1.0", {**sent, **request_body})

    received = json.loads(order)
    assert received.pop("stream_options", None) == options
    request_body = {k: v for k, v in request_body.items() if k != "stream_options"}
    assert received == {**sent, **request_body, "model": "smollm2@v1.0"}
    assert withholds_usage is withholds


@pytest.mark.parametrize(("given", "sent"), [(-1000, 0), (-(10**30), 0), (0, 0), (7, 7)])
def test_a_client_goes_before_nobody(given: int, sent: int) -> None:
    order, _ = engine_order(proxy.CHAT, "smollm2@base", {"messages": [], "priority": given})

    assert json.loads(order)["priority"] == sent


@pytest.mark.parametrize("priority", ["-5", -5.0, True, [1]])
def test_a_priority_is_a_whole_number_or_nothing(priority: object) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}

    with pytest.raises(InvalidRequest, match="priority must be a whole number"):
        parse_request(endpoints.CHAT, json.dumps({**body, "priority": priority}).encode())
    assert (
        parse_request(endpoints.CHAT, json.dumps({**body, "priority": None}).encode()).model == "m"
    )


async def test_the_connection_of_a_whole_stream_is_used_again() -> None:
    engine = FakeEngine()
    request = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    with serve(engine.app()) as served:
        async with EngineClient(EngineSettings(), served.url) as client:
            for _ in range(3):
                async with open_reply(client, proxy.CHAT, engine.base, request) as reply:
                    async for _ in reply.blocks():
                        if reply.is_done:  # the gateway leaves here
                            break

    assert len(engine.peers) == 3
    assert len(set(engine.peers)) == 1


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            {"error": {"message": "no", "type": "Bad Request", "param": "body.x", "code": 400}},
            (400, "no", "x", "invalid_request"),
        ),
        (422, {"object": "error", "message": "no", "param": None}, (422, "no", None, None)),
        (
            400,
            {"error": {"message": "This model's maximum context length is 8", "param": "input"}},
            (400, None, "messages", "context_length_exceeded"),
        ),
        (404, {"error": {"message": "Response 'x' not found."}}, (404, None, None, "not_found")),
        (404, {"error": {"message": "Not Found"}}, (404, None, None, "endpoint_not_served")),
        (404, {"detail": "Not Found"}, (404, None, None, "endpoint_not_served")),
        (501, {"error": {"message": "no embeddings"}}, (404, None, None, "endpoint_not_served")),
        (404, {"error": {"message": "The model `x` does not exist."}}, (502, None, None, None)),
        (401, {"error": "Unauthorized"}, (502, None, None, "engine_error")),
        (429, {"error": {"message": "slow"}}, (429, "slow", None, "rate_limit_exceeded")),
        (500, {"error": {"message": "dead"}}, (502, None, None, "engine_error")),
        (503, {"error": {"message": "busy"}}, (503, None, None, "engine_unavailable")),
    ],
)
def test_the_engines_refusals_become_openais(
    status: int, body: object, expected: tuple[int, str | None, str | None, str | None]
) -> None:
    refusal = engine_refusal(endpoints.CHAT, status, json.dumps(body).encode(), "17")

    error = refusal.envelope["error"]
    wanted_status, message, param, code = expected
    assert refusal.status == wanted_status
    assert error["param"] == param
    assert isinstance(error["code"], str)
    assert message is None or error["message"] == message
    assert code is None or error["code"] == code
    assert refusal.headers.get("retry-after") == ("17" if refusal.status in (429, 503) else None)


def test_an_engine_that_answers_no_json_is_still_an_envelope() -> None:
    assert engine_refusal(endpoints.CHAT, 500, b"\xff<html>").status == 502
    plain = engine_refusal(endpoints.CHAT, 400, b"plain")
    assert plain.envelope["error"]["message"] == "plain"


@pytest.mark.parametrize("endpoint", endpoints.ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_a_broken_stream_ends_with_an_event_that_clients_understand(
    endpoint: endpoints.EndpointSpec,
) -> None:
    event = stream_error(endpoint, "it broke\noff", "engine_error")

    (whole,) = split_events(event)
    assert whole.endswith(b"\n\n")
    assert json.loads(event_data(whole))["error"]["message"] == "it broke\noff"


@pytest.mark.parametrize("field", ["stream", "store"])
def test_a_flag_is_true_or_false(field: str) -> None:
    body = {"model": "m", "messages": [1], field: "false"}

    with pytest.raises(InvalidRequest, match=f"{field} must be true or false"):
        parse_request(endpoints.CHAT, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'"\\ud83d"', "\ud83d"),
        (b"1" + b"0" * 30, 10**30),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"[1.0, -0.0]", [1.0, -0.0]),
    ],
)
def test_odd_values_pass(raw: bytes, value: object) -> None:
    body = b'{"model": "m", "messages": [1], "odd": ' + raw + b"}"

    request = parse_request(endpoints.CHAT, body)
    order, _ = engine_order(proxy.CHAT, "m", request.body)

    assert request.body["odd"] == json.loads(order)["odd"] == value


def test_the_server_starts_without_any_ml_framework() -> None:
    program = (
        "import sys, server.app; "
        "heavy = {'torch', 'transformers', 'peft', 'vllm', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("prompt_tokens", "completion_tokens", "reply", "tokens"),
    [
        (7, 6, "x" * 400, 13),
        (7, 0, "", 7),
        (7, None, "", 7),  # an embedding
        (7, None, "x" * 4000, 1007),
        (None, None, "x" * 4000, pytest.approx(1200, rel=0.05)),  # the client left
        (None, None, "", 0),  # a refusal
    ],
)
@pytest.mark.parametrize("prompt", ["messages", "prompt", "input"])
def test_what_a_reply_counts_for(
    prompt: str, prompt_tokens: int | None, completion_tokens: int | None, reply: str, tokens: int
) -> None:
    body = {"model": "smollm2", prompt: [{"role": "user", "content": "y" * 800}]}

    assert tokens_used(prompt_tokens, completion_tokens, reply, body) == tokens


async def test_an_engine_that_refuses_our_key_is_named_in_readyz(
    settings: Settings, database: Database
) -> None:
    engine = FakeEngine(api_key="another")
    with serve(engine.app()) as served:
        at = settings.model_copy(update={"engine": EngineSettings(url=served.url)})
        runtime = Runtime(at, database, RecordingQueue())
        (replica,) = runtime.fleet.replicas.values()
        await replica.tend(runtime)
        state = (await runtime.readiness())["engine"]
        with pytest.raises(EngineError, match="401"):
            await runtime.ensure_route(Route("smollm2", "smollm2@base", "smollm2@base", None))
        await runtime.close()

    assert "401" in state


@pytest.mark.parametrize(
    ("endpoint", "fields", "refused"),
    [
        (endpoints.CHAT, {"prompt_logprobs": 0}, "prompt_logprobs"),
        (endpoints.COMPLETIONS, {"prompt_logprobs": 5}, "prompt_logprobs"),
        (endpoints.RESPONSES, {"prompt_logprobs": 1}, "prompt_logprobs"),
        (endpoints.COMPLETIONS, {"echo": True, "logprobs": 1}, "logprobs"),
        (endpoints.CHAT, {"prompt_logprobs": None, "logprobs": True, "top_logprobs": 3}, None),
        (endpoints.CHAT, {"echo": True, "logprobs": True}, None),
        (endpoints.COMPLETIONS, {"logprobs": 3}, None),
        (endpoints.COMPLETIONS, {"echo": True}, None),
    ],
)
def test_a_prompt_is_never_scored(
    endpoint: EndpointSpec, fields: dict[str, object], refused: str | None
) -> None:
    """An engine that scores a prompt with an adapter dies."""
    body = {"model": "m", "messages": [{}], "prompt": "a", "input": "a", **fields}
    raw = json.dumps(body).encode()

    if refused is None:
        assert parse_request(endpoint, raw).body == body
    else:
        with pytest.raises(InvalidRequest) as error:
            parse_request(endpoint, raw)
        assert error.value.param == refused
