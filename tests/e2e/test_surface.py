"""Each endpoint once on real vLLM: that its forms are what the gateway takes them for."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest
from transformers import AutoTokenizer

from adapters.methods.revising import turn
from adapters.spec import ControlPhrases
from tests.support.stack import ADMIN_KEY, TINY_MODEL, TINY_SETTINGS, Stack, running_stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = "tiny"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("surface")
    with running_stack(home, model=MODEL, source=TINY_MODEL, variables=TINY_SETTINGS) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(stack: Stack) -> openai.OpenAI:
    return stack.openai()


@pytest.fixture(scope="module")
def anthropics(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=stack.url, api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


def test_chat_with_everything(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello"}],
        n=2,
        max_tokens=4,
        logprobs=True,
        seed=1,
        user="someone",
        store=True,
        metadata={"task": "greeting"},
        extra_body={"return_token_ids": True, "made_up": 1},
    )

    assert len(reply.choices) == 2
    assert reply.choices[0].logprobs is not None
    assert reply.id.startswith("chatcmpl-int_")


def test_many_long_prompts_with_seeds_leave_the_engine_alive(client: openai.OpenAI) -> None:
    def ask(number: int) -> str | None:
        reply = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"{number}. " + "The sea is wide. " * 120}],
            max_tokens=4,
            temperature=1.0,
            seed=number,
        )
        return reply.choices[0].finish_reason

    with ThreadPoolExecutor(32) as pool:
        ends = list(pool.map(ask, range(64)))

    assert len(ends) == 64
    assert all(ends)


def test_a_turn_that_is_continued_begins_with_the_tokens_of_the_turn_itself(
    client: openai.OpenAI,
) -> None:
    """What SD-Zero's two losses rest on: reply, phrase and revision are one turn, token by token."""
    asked: list[Any] = [{"role": "user", "content": "What is 2 + 2?"}]
    said = turn("It is 5.", ControlPhrases().wrong)
    ids = {"return_token_ids": True}
    on = ids | {"continue_final_message": True, "add_generation_prompt": False}
    plain = client.chat.completions.create(
        model=MODEL, messages=asked, max_tokens=1, extra_body=ids
    ).model_dump()
    continued = client.chat.completions.create(
        model=MODEL,
        messages=[*asked, {"role": "assistant", "content": said}],
        max_tokens=1,
        extra_body=on,
    ).model_dump()

    head, whole = plain["prompt_token_ids"], continued["prompt_token_ids"]
    words = AutoTokenizer.from_pretrained(TINY_MODEL).decode(whole[len(head) :])
    assert whole[: len(head)] == head
    assert words.strip() == said.strip()


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="Hello", max_tokens=4, temperature=0)
    pieces = client.completions.create(
        model=MODEL, prompt="Hello", max_tokens=4, temperature=0, stream=True
    )

    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_a_response_is_made(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input="Hello", max_output_tokens=16)
    events = list(
        client.responses.create(model=MODEL, input="Hello", max_output_tokens=16, stream=True)
    )

    assert whole.id.startswith("resp_int_")
    assert whole.usage is not None
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_anthropics_client_is_answered(anthropics: anthropic.Anthropic) -> None:
    messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hello"}]
    whole = anthropics.messages.create(model=MODEL, messages=messages, max_tokens=4)
    with anthropics.messages.stream(model=MODEL, messages=messages, max_tokens=4) as stream:
        final = stream.get_final_message()
    counted = anthropics.messages.count_tokens(model=MODEL, messages=messages)

    assert whole.usage.input_tokens == final.usage.input_tokens == counted.input_tokens
    with pytest.raises(anthropic.NotFoundError):
        anthropics.messages.create(model="nobody", messages=messages, max_tokens=4)


def test_refusals_say_whose_fault_it_is(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=MODEL, prompt="word " * 20_000, max_tokens=4)
    with pytest.raises(openai.NotFoundError) as no_embeddings:
        client.embeddings.create(model=MODEL, input="Hello")

    assert too_long.value.code == "context_length_exceeded"
    assert no_embeddings.value.code == "endpoint_not_served"
