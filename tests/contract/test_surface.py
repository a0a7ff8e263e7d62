"""Every endpoint under /v1 with the clients that people use: OpenAI's, Anthropic's, LangChain's."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from sqlalchemy import select

from server.db import ApiKey, Interaction
from tests.support.fake_engine import FakeEngine, serve
from tests.support.world import CHAT_KEY, KEY, World, running_world, wait_for

TEXT = "smollm2@v1.00000000 1 2 3 4 5"
CHAT: Any = [{"role": "user", "content": "Who are you?"}]
MODEL = "smollm2"

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": CHAT},
    "/v1/completions": {"model": MODEL, "prompt": "Who"},
    "/v1/responses": {"model": MODEL, "input": "Who"},
    "/v1/messages": {"model": MODEL, "messages": CHAT, "max_tokens": 9},
}


async def post(world: World, path: str, body: dict[str, Any]) -> tuple[int, Any, Any]:
    """Status, headers and the body's bytes."""
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{world.gateway.url}{path}", json=body, headers=headers) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


def only_row(world: World) -> Interaction:
    (row,) = world.interactions(1)
    return row


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_text_is_continued(world: World, is_stream: bool) -> None:
    client = world.client()
    if is_stream:
        chunks = list(client.completions.create(model=MODEL, prompt="Who", stream=True))
        text = "".join(chunk.choices[0].text for chunk in chunks)
        reply_id = chunks[0].id
    else:
        reply = client.completions.create(model=MODEL, prompt="Who")
        text, reply_id = reply.choices[0].text, reply.id

    row = only_row(world)
    assert text == row.reply == TEXT
    assert (row.endpoint, row.outcome, row.finish_reason) == ("completions", "complete", "stop")
    assert row.completion_id == reply_id == f"cmpl-{row.id}"
    assert (row.prompt_tokens, row.completion_tokens, row.is_stream) == (7, 6, is_stream)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_response_is_made(world: World, is_stream: bool) -> None:
    client = world.client()
    asked: dict[str, Any] = {"model": MODEL, "input": "Who", "metadata": {"task": "names"}}
    if is_stream:
        events = list(client.responses.create(**asked, stream=True))
        assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
        assert events[-1].type == "response.completed"
        reply = events[-1].response
    else:
        reply = client.responses.create(**asked)

    row = only_row(world)
    assert reply.output_text == row.reply == TEXT
    assert row.completion_id == reply.id == f"resp_{row.id}"
    assert (row.endpoint, row.outcome, row.finish_reason) == ("responses", "complete", "completed")
    assert (row.prompt_tokens, row.completion_tokens) == (7, 6)
    assert world.engine.bodies[-1]["metadata"] == {"task": "names"}


@pytest.mark.parametrize("is_stream", [False, True])
def test_anthropics_client_is_answered(world: World, is_stream: bool) -> None:
    client = world.anthropic()
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "max_tokens": 50}
    if is_stream:
        with client.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream) == TEXT
            message = stream.get_final_message()
    else:
        message = client.messages.create(**asked)

    row = only_row(world)
    assert [block.text for block in message.content if block.type == "text"] == [TEXT]
    assert message.stop_reason == row.finish_reason == "end_turn"
    assert message.id == row.completion_id
    assert (row.endpoint, row.reply, row.outcome) == ("messages", TEXT, "complete")
    assert (row.prompt_tokens, row.completion_tokens) == (7, 6)


def test_counting_tokens_is_no_interaction(world: World) -> None:
    client = world.anthropic()

    counted = client.messages.count_tokens(model=MODEL, messages=CHAT)
    client.messages.create(model=MODEL, messages=CHAT, max_tokens=5)

    assert counted.input_tokens == 7
    assert only_row(world).endpoint == "messages"


def test_anthropics_client_gets_anthropics_errors(world: World) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "max_tokens": 5}
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        world.anthropic("el_wrong").messages.create(**asked)
    with pytest.raises(anthropic.NotFoundError) as missing:
        world.anthropic().messages.create(**{**asked, "model": "gpt-9"})
    with pytest.raises(anthropic.BadRequestError) as refused:
        world.anthropic().messages.create(**asked, extra_body={"temperature": -1})

    for caught, kind in (
        (unknown, "authentication_error"),
        (missing, "not_found_error"),
        (refused, "invalid_request_error"),
    ):
        body: Any = caught.value.body
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["error"]["message"]


async def test_even_a_wrong_method_is_refused_in_anthropics_form(world: World) -> None:
    url = f"{world.gateway.url}/v1/messages"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 405
        assert (await answer.json())["type"] == "error"


def test_embeddings_come_from_an_engine_that_has_them(world: World) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        world.client().embeddings.create(model=MODEL, input="x", encoding_format="float")

    assert caught.value.code == "endpoint_not_served"
    assert (only_row(world).endpoint, only_row(world).status) == ("embeddings", 404)


def test_embeddings_are_passed_on(embedding_world: World) -> None:
    world = embedding_world
    reply = world.client().embeddings.create(model=MODEL, input="x", encoding_format="float")

    assert reply.data[0].embedding == [0.5, -0.5]
    row = only_row(world)
    assert (row.reply, row.prompt_tokens, row.outcome) == ("", 7, "complete")


@pytest.fixture
def embedding_world(tmp_path: Path, paper_artifacts: None) -> Iterator[World]:
    engine = FakeEngine(has_embeddings=True)
    with serve(engine.app()) as served, running_world(tmp_path, engine, served.url) as world:
        yield world


@pytest.mark.parametrize("is_stream", [False, True])
def test_langchain_chats(world: World, is_stream: bool) -> None:
    url, key = f"{world.gateway.url}/v1", SecretStr(KEY)
    model = ChatOpenAI(model=MODEL, base_url=url, api_key=key, max_retries=0)
    with model.root_client:
        if is_stream:
            text = "".join(str(piece.content) for piece in model.stream("Who are you?"))
        else:
            text = str(model.invoke("Who are you?").content)

    assert text == only_row(world).reply == TEXT


def test_fields_that_openai_knows_and_the_engine_may_not_do_no_harm(world: World) -> None:
    reply = world.client().chat.completions.create(
        model=MODEL,
        messages=CHAT,
        user="someone",
        metadata={"task": "names"},
        store=True,
        seed=7,
        response_format={"type": "json_object"},
        extra_body={"made_up": {"deep": [1, 2.5, None]}, "top_k": 3},
    )

    assert reply.choices[0].message.content == TEXT
    sent = world.engine.bodies[-1]
    assert (sent["seed"], sent["made_up"], sent["top_k"]) == (7, {"deep": [1, 2.5, None]}, 3)
    row = only_row(world)
    assert row.may_learn is True
    assert row.request["metadata"] == {"task": "names"}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_must_not_be_stored_reaches_no_table(
    world: World, path: str, is_stream: bool
) -> None:
    secret = "PLANTED-SECRET"
    body = json.loads(json.dumps(BODIES[path]).replace("Who", secret))

    status, _, sent = await post(world, path, {**body, "store": False, "stream": is_stream})

    assert status == 200
    assert b"smollm2@v1.00000000" in sent
    row = only_row(world)
    assert (row.may_learn, row.outcome, row.reply, row.choices) == (False, "complete", "", None)
    assert row.prompt_tokens == 7
    assert secret not in json.dumps(row.request)


def test_a_key_that_allows_no_learning_marks_its_rows(world: World) -> None:
    with world.database.unit_of_work() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.name == "chat")).one()
        key.allows_learning, key.owner = False, "acme"

    world.client(CHAT_KEY).chat.completions.create(model=MODEL, messages=CHAT)

    row = only_row(world)
    assert (row.may_learn, row.owner, row.reply) == (False, "acme", TEXT)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_token_ids_and_logprobs_are_captured(
    world: World, path: str, is_stream: bool
) -> None:
    more = {"return_token_ids": True, "stream": is_stream}
    if "chat" in path:
        more["logprobs"] = True

    await post(world, path, {**BODIES[path], **more})

    tokens = only_row(world).tokens
    assert tokens is not None
    assert tokens["prompt_token_ids"] == [1, 2, 3, 4, 5, 6, 7]
    assert tokens["token_ids"] == [0, 1, 2, 3, 4, 5]
    assert ("logprobs" in tokens) is ("chat" in path)


@pytest.mark.parametrize("is_stream", [False, True])
def test_tool_calls_pass_and_are_captured(world: World, is_stream: bool) -> None:
    world.engine.calls_tool = True
    tool: Any = {"type": "function", "function": {"name": "find", "parameters": {}}}
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "tools": [tool]}
    client = world.client()
    if is_stream:
        with client.chat.completions.stream(**asked) as stream:
            reply = stream.get_final_completion()
    else:
        reply = client.chat.completions.create(**asked)

    (call,) = reply.choices[0].message.tool_calls or []
    assert (call.id, call.function.name) == ("call_1", "find")  # type: ignore[union-attr]
    kept = json.loads(only_row(world).reply)["tool_calls"]
    assert kept[0]["function"] == {"name": "find", "arguments": '{"who": "Odile"}'}
    assert world.engine.bodies[-1]["tools"] == [tool]


@pytest.mark.parametrize("path", BODIES)
async def test_a_prompt_that_is_too_long_is_named_so(world: World, path: str) -> None:
    world.engine.context = 10

    status, _, body = await post(world, path, BODIES[path])

    error = json.loads(body)["error"]
    assert status == 400
    assert "maximum context length" in error["message"]
    if path != "/v1/messages":
        assert error["code"] == "context_length_exceeded"
        assert error["param"] in BODIES[path]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("given", "seen"), [(429, 429), (503, 503), (500, 502)])
async def test_a_busy_engine_says_when_to_return(
    world: World, path: str, given: int, seen: int
) -> None:
    world.engine.refuses_chat = given

    status, headers, _ = await post(world, path, BODIES[path])

    assert status == seen
    assert headers.get("retry-after") == (None if seen == 502 else "17")


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_fails_says_so_and_is_captured(world: World, path: str) -> None:
    world.engine.breaks_after = 3

    status, _, sent = await post(world, path, {**BODIES[path], "stream": True})

    assert status == 200
    assert b'"error"' in sent.split(b"\n\n")[-2]
    row = only_row(world)
    assert (row.outcome, row.reply) == ("engine_error", "smollm2@v1.00000000 1 2")


@pytest.mark.parametrize("path", BODIES)
async def test_an_error_inside_a_stream_is_captured(world: World, path: str) -> None:
    world.engine.errors_after = 2

    _, _, sent = await post(world, path, {**BODIES[path], "stream": True})

    assert sent.count(b"out of memory") == 1
    row = only_row(world)
    assert (row.outcome, row.error) == ("engine_error", "out of memory")


@pytest.mark.parametrize("path", BODIES)
async def test_a_client_that_leaves_stops_the_engine(world: World, path: str) -> None:
    world.engine.words, world.engine.token_s = 200, 0.02
    headers = {"authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession() as session:
        url, body = f"{world.gateway.url}{path}", {**BODIES[path], "stream": True}
        async with session.post(url, json=body, headers=headers) as answer:
            seen = b""
            while b" 2" not in seen:
                seen += await answer.content.readany()
            answer.close()

    wait_for(lambda: world.engine.cancelled == 1)
    row = only_row(world)
    assert (row.outcome, row.status) == ("client_left", 499)
    assert row.reply.startswith("smollm2@v1.00000000 1")
    assert len(row.reply) < 300


@pytest.mark.parametrize(
    ("field", "value"), [("previous_response_id", "resp_1"), ("background", True)]
)
def test_responses_are_not_kept(world: World, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        world.client().responses.create(model=MODEL, input="x", extra_body={field: value})

    assert caught.value.param == field
    with pytest.raises(openai.NotFoundError, match="not kept"):
        world.client().responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="not kept"):
        world.client().responses.delete("resp_1")


@pytest.mark.parametrize("path", [*BODIES, "/v1/embeddings", "/v1/messages/count_tokens"])
async def test_every_endpoint_needs_a_key_and_a_model(world: World, path: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{world.gateway.url}{path}", json={}) as answer:
            assert answer.status == 401
        headers = {"x-api-key": KEY}
        async with session.post(f"{world.gateway.url}{path}", json={}, headers=headers) as answer:
            assert answer.status == 400
            assert "model" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_reply_is_the_engines_byte_for_byte(
    world: World, path: str, is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    body = {**BODIES[path], "stream": is_stream, "stream_options": {"include_usage": True}}

    _, headers, seen = await post(world, path, body)
    sent = world.engine.bodies[-1]
    form = world.engine.form(path, sent, world.engine.request_ids[-1])

    assert headers["x-everlearn-version"] == "smollm2@v1"
    assert seen == form
