"""The gateway's small parts: keys, the order to the engine, refusals, and the import weight."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from server.core.security import Scope
from server.db.session import Database
from server.engine.proxy import engine_order
from server.gateway.errors import engine_refusal, stream_error
from server.http.auth import FRESH_S, STALE_S, KeyRing
from server.services import keys

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
    with pytest.raises(Exception, match="no such table"):
        await key_ring.authenticate(SECRET)
    with pytest.raises(Exception, match="no such table"):
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

    order, withholds_usage = engine_order("smollm2@v1.0", {**sent, **request_body})

    received = json.loads(order)
    assert received.pop("stream_options", None) == options
    request_body = {k: v for k, v in request_body.items() if k != "stream_options"}
    assert received == {**sent, **request_body, "model": "smollm2@v1.0"}
    assert withholds_usage is withholds


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            {"error": {"message": "no", "type": "Bad Request", "param": "body.x", "code": 400}},
            (400, "no", "x", "invalid_request_error"),
        ),
        (422, {"object": "error", "message": "no", "param": None}, (422, "no", None, None)),
        (404, {"error": {"message": "no model"}}, (502, None, None, "api_error")),
        (401, {"error": "Unauthorized"}, (502, None, None, "api_error")),
        (500, {"error": {"message": "dead"}}, (502, None, None, "api_error")),
        (503, {"error": {"message": "busy"}}, (503, None, None, "api_error")),
    ],
)
def test_the_engines_refusals_become_openais(
    status: int, body: object, expected: tuple[int, str | None, str | None, str | None]
) -> None:
    seen, envelope = engine_refusal(status, json.dumps(body).encode())

    error = envelope["error"]
    wanted_status, message, param, kind = expected
    assert seen == wanted_status
    assert error["param"] == param
    assert isinstance(error["code"], str)
    assert message is None or error["message"] == message
    assert kind is None or error["type"] == kind


def test_an_engine_that_answers_no_json_is_still_an_envelope() -> None:
    assert engine_refusal(500, b"\xff<html>")[0] == 502
    assert engine_refusal(400, b"plain")[1]["error"]["message"] == "plain"


def test_a_broken_stream_ends_with_an_event_that_clients_understand() -> None:
    event = stream_error("it broke\noff", "engine_error")

    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2


def test_the_server_starts_without_any_ml_framework() -> None:
    program = (
        "import sys, server.app; "
        "heavy = {'torch', 'transformers', 'peft', 'vllm', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
