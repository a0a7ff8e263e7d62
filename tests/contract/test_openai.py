"""The official OpenAI client against the gateway on a real port, over the fake engine."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import aiohttp
import openai
import pytest
from openai import OpenAI
from sqlalchemy import select

from server.db import ApiKey
from server.services import keys
from tests.support.fake_engine import Served, serve
from tests.support.world import CHAT_KEY, KEY, World, ready, wait_for, why_not_ready


def ask(client: OpenAI, model: str = "smollm2", **parameters: Any) -> Any:
    messages: Any = [{"role": "user", "content": "Who are you?"}]
    return client.chat.completions.create(model=model, messages=messages, **parameters)


async def raw(world: World, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **headers}
    url = f"{world.gateway.url}/v1/chat/completions"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


def test_a_whole_reply_names_its_version_and_is_captured(world: World) -> None:
    reply = world.client().chat.completions.with_raw_response.create(
        model="smollm2", messages=[{"role": "user", "content": "Hi"}], user="someone"
    )
    completion = reply.parse()

    assert completion.model == "smollm2@v1.00000000"
    assert completion.choices[0].message.content == "smollm2@v1.00000000 1 2 3 4 5"
    assert reply.headers["x-everlearn-version"] == "smollm2@v1"
    assert reply.headers["x-request-id"].startswith("req_")
    (row,) = world.interactions(1)
    assert row.id == reply.headers["x-everlearn-interaction"]
    assert row.completion_id == completion.id == f"chatcmpl-{row.id}"
    assert (row.requested_model, row.version) == ("smollm2", "smollm2@v1")
    assert row.engine_name == "smollm2@v1.00000000"
    assert (row.outcome, row.status, row.is_stream) == ("complete", 200, False)
    assert row.reply == "smollm2@v1.00000000 1 2 3 4 5"
    assert (row.prompt_tokens, row.completion_tokens) == (7, 6)
    assert "user" not in row.request
    assert (row.end_user or "").startswith("usr_")
    assert row.request["model"] == "smollm2"
    assert row.first_byte_ms > 0
    assert row.duration_ms >= row.first_byte_ms
    assert world.engine.bodies[-1]["user"] == "someone"


def test_a_stream_arrives_piece_by_piece_and_is_captured(world: World) -> None:
    chunks = list(ask(world.client(), stream=True))

    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(texts) == "smollm2@v1.00000000 1 2 3 4 5"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.model for chunk in chunks} == {"smollm2@v1.00000000"}
    (row,) = world.interactions(1)
    assert (row.outcome, row.is_stream, row.finish_reason) == ("complete", True, "stop")
    assert row.reply == "smollm2@v1.00000000 1 2 3 4 5"


def test_tokens_are_counted_and_shown_only_to_who_asked(world: World) -> None:
    silent = list(ask(world.client(), stream=True))
    asked = list(ask(world.client(), stream=True, stream_options={"include_usage": True}))

    assert all(chunk.choices and chunk.usage is None for chunk in silent)
    assert asked[-1].choices == []
    assert asked[-1].usage.total_tokens == 13
    rows = world.interactions(2)
    assert [(row.prompt_tokens, row.completion_tokens) for row in rows] == [(7, 6), (7, 6)]


@pytest.mark.parametrize("is_stream", [False, True])
def test_several_choices_pass_and_are_all_captured(world: World, is_stream: bool) -> None:
    if is_stream:
        seen = {
            choice.index
            for chunk in ask(world.client(), n=2, stream=True)
            for choice in chunk.choices
        }
    else:
        seen = {choice.index for choice in ask(world.client(), n=2).choices}

    assert seen == {0, 1}
    (row,) = world.interactions(1)
    text = "smollm2@v1.00000000 1 2 3 4 5"
    assert row.reply == text
    assert row.choices == [
        {"index": index, "text": text, "tool_calls": [], "finish_reason": "stop"}
        for index in (0, 1)
    ]
    assert row.tokens is None
    assert row.completion_tokens == 12


@pytest.mark.parametrize(
    ("model", "engine_name"),
    [
        ("smollm2@base", "smollm2@base"),
        ("smollm2@champion", "smollm2@v1.00000000"),
        ("smollm2@v2", "smollm2@v2.00000000"),
        ("smollm2@v2.00000000", "smollm2@v2.00000000"),
    ],
)
def test_every_public_name_reaches_its_weights(world: World, model: str, engine_name: str) -> None:
    assert ask(world.client(), model).model == engine_name


def test_models_are_listed_with_what_stands_behind_them(world: World) -> None:
    listed = {model.id: model for model in world.client().models.list().data}

    assert list(listed) == ["smollm2", "smollm2@base", "smollm2@v2", "smollm2@v1"]
    assert listed["smollm2"].root == "smollm2@v1.00000000"
    assert listed["smollm2"].parent == "smollm2@base"
    assert listed["smollm2@base"].parent is None
    assert world.client().models.retrieve("smollm2@v2").root == "smollm2@v2.00000000"
    with pytest.raises(openai.NotFoundError):
        world.client().models.retrieve("nobody")


def test_an_unknown_model_says_what_there_is(world: World) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(world.client(), "gpt-9")

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "smollm2" in caught.value.message
    with pytest.raises(openai.NotFoundError, match="smollm2@v2"):
        ask(world.client(), "smollm2@v9")
    with pytest.raises(openai.NotFoundError, match="another digest"):
        ask(world.client(), "smollm2@v1.12345678")
    with pytest.raises(openai.ConflictError, match="exam is not over"):
        ask(world.client(), "smollm2@v3")


def test_without_a_good_key_nothing_answers(world: World) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(world.client("el_wrong"))

    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        world.client("el_wrong").models.list()
    assert not [body for body in world.engine.bodies if "Who are you?" in json.dumps(body)]


def test_a_revoked_key_stops_within_seconds(world: World) -> None:
    ask(world.client(CHAT_KEY))
    with world.database.unit_of_work() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.name == "chat")).one()
        keys.revoke_key(session, key.id)

    time.sleep(1.1)

    with pytest.raises(openai.AuthenticationError):
        ask(world.client(CHAT_KEY))


def test_the_engine_refusing_a_parameter_is_a_bad_request(world: World) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(world.client(), temperature=-1)

    assert caught.value.param == "temperature"
    assert caught.value.code == "invalid_request"
    (row,) = world.interactions(1)
    assert (row.outcome, row.status) == ("engine_error", 400)
    assert row.error == "temperature must be non-negative"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"\xff{}", None),
        (b'{"model": "smollm2", "messages": [1], "temperature": NaN}', None),
        (b"[" * 100_000, None),
        (b"{}", "model"),
        (b'{"model": 3}', "model"),
        (b'{"model": "smollm2"}', "messages"),
        (b'{"model": "smollm2", "messages": []}', "messages"),
        (b'{"model": "smollm2", "messages": "x"}', "messages"),
        (b'{"model": "smollm2", "messages": [1], "stream": "yes"}', "stream"),
    ],
)
async def test_a_bad_body_names_the_field(world: World, body: bytes, param: str | None) -> None:
    status, answer = await raw(world, body)

    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]


@pytest.mark.parametrize("says_its_length", [True, False])
async def test_a_body_beyond_the_limit_is_refused(world: World, says_its_length: bool) -> None:
    body = json.dumps({"model": "smollm2", "messages": [{"role": "x" * 4 * 1024 * 1024}]}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    status, answer = await raw(world, BytesIO(body) if says_its_length else pieces())

    assert status == 413
    assert answer["error"]["code"] == "payload_too_large"
    assert "EVERLEARN_GATEWAY__MAX_BODY_BYTES" in answer["error"]["message"]


def test_a_long_prompt_within_the_limit_passes(world: World) -> None:
    text = "x" * 3 * 1024 * 1024
    world.client().chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": text}]
    )

    assert world.engine.bodies[-1]["messages"][0]["content"] == text


async def test_unknown_routes_and_methods_answer_in_the_envelope(world: World) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{world.gateway.url}/v1/nothing") as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["code"] == "not_found"
            assert answer.headers["x-request-id"]
        async with session.get(f"{world.gateway.url}/v1/chat/completions") as answer:
            assert answer.status == 405
            assert (await answer.json())["error"]["code"] == "method_not_allowed"
            assert answer.headers["allow"] == "POST"


async def test_a_clients_request_id_comes_back(world: World) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{world.gateway.url}/healthz", headers={"x-request-id": "mine-1"}) as answer,
    ):
        assert answer.headers["x-request-id"] == "mine-1"


def test_a_client_that_leaves_a_stream_stops_the_engine(world: World) -> None:
    world.engine.words, world.engine.token_s = 200, 0.02
    stream = ask(world.client(), stream=True)
    for _ in range(4):
        next(stream)

    stream.close()

    wait_for(lambda: world.engine.cancelled == 1)
    (row,) = world.interactions(1)
    assert (row.outcome, row.status) == ("client_left", 499)
    assert row.reply.startswith("smollm2@v1.00000000 1")
    assert len(row.reply) < 200


def test_a_client_that_leaves_while_waiting_stops_the_engine(world: World) -> None:
    world.engine.words, world.engine.token_s = 100, 0.05
    with pytest.raises(openai.APITimeoutError):
        ask(world.client(timeout=0.5))

    wait_for(lambda: world.engine.cancelled == 1)
    (row,) = world.interactions(1)
    assert (row.outcome, row.status, row.reply) == ("client_left", 499, "")


def test_a_stream_that_the_engine_cuts_ends_with_an_error(world: World) -> None:
    world.engine.breaks_after = 3
    with pytest.raises(openai.APIError) as caught:
        list(ask(world.client(), stream=True))

    assert caught.value.code == "engine_unavailable"
    (row,) = world.interactions(1)
    assert (row.outcome, row.reply) == ("engine_error", "smollm2@v1.00000000 1 2")
    assert row.error


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_lone_engine_that_cuts_a_reply_before_its_first_byte_is_asked_once_more(
    world: World, is_stream: bool
) -> None:
    world.engine.breaks_at_head = True
    with pytest.raises(openai.InternalServerError) as caught:
        ask(world.client(), stream=is_stream)

    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
    (row,) = world.interactions(1)
    assert (row.outcome, row.status) == ("engine_error", 503)
    assert world.engine.request_ids.count(row.id) == 2


def test_an_error_inside_a_stream_is_passed_on_and_captured(world: World) -> None:
    world.engine.errors_after = 2
    with pytest.raises(openai.APIError, match="out of memory"):
        list(ask(world.client(), stream=True))

    (row,) = world.interactions(1)
    assert (row.outcome, row.error) == ("engine_error", "out of memory")


def test_a_failing_engine_is_not_the_clients_fault(world: World) -> None:
    world.engine.refuses_chat = 500
    with pytest.raises(openai.InternalServerError) as caught:
        ask(world.client())

    assert caught.value.status_code == 502
    assert caught.value.code == "engine_error"
    (row,) = world.interactions(1)
    assert (row.outcome, row.status) == ("engine_error", 502)


def test_a_stream_finishes_on_its_version_while_the_next_gets_the_new_one(world: World) -> None:
    world.engine.words, world.engine.token_s = 40, 0.02
    client = world.client()
    stream = ask(client, stream=True)
    first = next(stream)

    world.promote(2)
    later = ask(client, max_tokens=1)
    rest = list(stream)

    assert first.model == "smollm2@v1.00000000"
    assert {chunk.model for chunk in rest} == {"smollm2@v1.00000000"}
    assert rest[-1].choices[0].finish_reason == "stop"
    assert later.model == "smollm2@v2.00000000"
    assert sorted(row.version for row in world.interactions(2)) == ["smollm2@v1", "smollm2@v2"]


def test_adapters_lost_by_the_engine_come_back_and_no_other_weights_answer(world: World) -> None:
    wait_for(lambda: "smollm2@v1.00000000" in world.engine.adapters)

    for _ in range(20):
        world.engine.lose_adapters()
        assert ask(world.client()).model == "smollm2@v1.00000000"


def test_weights_that_cannot_be_loaded_again_are_an_error_not_the_base(world: World) -> None:
    wait_for(lambda: "smollm2@v1.00000000" in world.engine.adapters)
    world.engine.refuses_load = 500
    world.engine.lose_adapters()

    with pytest.raises(openai.InternalServerError) as caught:
        ask(world.client())

    assert caught.value.code == "adapter_refused"
    assert ask(world.client(), "smollm2@base").model == "smollm2@base"


def test_an_engine_that_is_away_is_a_503_that_says_when_to_return(
    world: World, served_engine: Served
) -> None:
    ask(world.client())
    served_engine.server.should_exit = True
    wait_for(lambda: not ready(world.gateway.url))

    with pytest.raises(openai.InternalServerError) as caught:
        ask(world.client())

    assert caught.value.status_code == 503
    assert caught.value.code == "engine_unavailable"
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert world.interactions(2)[-1].outcome == "engine_error"


def test_an_engine_that_comes_back_empty_is_probed_and_healed(
    world: World, served_engine: Served
) -> None:
    port = served_engine.server.servers[0].sockets[0].getsockname()[1]
    served_engine.server.should_exit = True
    wait_for(lambda: not ready(world.gateway.url))
    world.engine.lose_adapters()

    with serve(world.engine.app(), port):
        wait_for(lambda: ready(world.gateway.url))

        assert ask(world.client()).model == "smollm2@v1.00000000"
        assert set(world.engine.adapters) == {"smollm2@v1.00000000", "smollm2@v2.00000000"}


def test_an_engine_that_comes_back_unsafe_is_refused(world: World, served_engine: Served) -> None:
    port = served_engine.server.servers[0].sockets[0].getsockname()[1]
    served_engine.server.should_exit = True
    wait_for(lambda: not ready(world.gateway.url))
    world.engine.version = "0.30.0"

    with serve(world.engine.app(), port):
        wait_for(lambda: "0.30.0" in why_not_ready(world.gateway.url))

        with pytest.raises(openai.InternalServerError) as caught:
            ask(world.client())
        assert (caught.value.status_code, caught.value.code) == (503, "engine_unsafe")


def test_moving_the_alias_under_traffic_fails_no_request(world: World) -> None:
    async def traffic() -> list[str]:
        client = openai.AsyncOpenAI(
            base_url=f"{world.gateway.url}/v1", api_key=KEY, max_retries=0, timeout=30
        )
        moving = asyncio.to_thread(lambda: [world.promote(n) for n in (2, 1, None, 2, 1) * 2])
        mover = asyncio.create_task(moving)
        models: list[str] = []

        async def chat() -> None:
            while not mover.done():
                reply = await client.chat.completions.create(
                    model="smollm2", messages=[{"role": "user", "content": "Hi"}]
                )
                assert reply.choices[0].message.content.startswith(reply.model)
                models.append(reply.model)

        await asyncio.gather(mover, *(chat() for _ in range(8)))
        await client.close()
        return models

    models = asyncio.run(traffic())

    assert {"smollm2@base", "smollm2@v1.00000000", "smollm2@v2.00000000"} == set(models)
    rows = world.interactions(len(models))
    assert len(rows) == len(models)
    assert {row.outcome for row in rows} == {"complete"}
