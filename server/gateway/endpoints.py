"""The endpoints under /v1 that the engine answers, and what their requests must have.

Whatever is not checked here is the engine's to judge.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from server.core.errors import InvalidRequest
from server.db import Endpoint
from server.engine import proxy
from server.http import parse_json


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One endpoint; the engine has it under the same path."""

    door: proxy.Door
    kind: Endpoint | None
    """How its interactions are stored; None where nothing is said that could be."""
    prompt_field: str
    """The field that holds the prompt."""
    check: Callable[[Mapping[str, Any]], None]
    """Raises InvalidRequest for a body that cannot be passed on."""
    summary: str

    @property
    def path(self) -> str:
        return self.door.path


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A checked request; ``body`` is what the client sent, every field of it."""

    endpoint: EndpointSpec
    model: str
    is_stream: bool
    may_store: bool
    """False where the client said ``store: false``: neither prompt nor reply may be kept."""
    body: dict[str, Any]


def parse_request(endpoint: EndpointSpec, raw: bytes) -> EngineRequest:
    """Read a request's bytes.

    Raises:
        InvalidRequest: not UTF-8, not a JSON object, or a field that we read is not what it must
            be; names the field.
    """
    body = _json_object(raw)
    model = body.get("model")
    if model is None:
        raise InvalidRequest("A model must be named; GET /v1/models lists them.", "model")
    if not isinstance(model, str):
        raise InvalidRequest(f"model must be a string, not {_kind(model)}.", "model")
    endpoint.check(body)
    priority = body.get("priority")
    if priority is not None and type(priority) is not int:
        raise InvalidRequest(f"priority must be a whole number, not {_kind(priority)}.", "priority")
    _check_no_prompt_scores(endpoint, body)
    is_stream = _flag(body, "stream") is True
    return EngineRequest(endpoint, model, is_stream, _flag(body, "store") is not False, body)


def _check_no_prompt_scores(endpoint: EndpointSpec, body: Mapping[str, Any]) -> None:
    """vLLM 0.32 dies when it is to score a prompt with an adapter (vllm#16668, #29955).

    Refused for the base model as well: which weights a name means may change at any moment.
    """
    echoes = endpoint.kind is Endpoint.COMPLETIONS and _flag(body, "echo")
    for name in ("prompt_logprobs", "logprobs") if echoes else ("prompt_logprobs",):
        if body.get(name) is not None:
            raise InvalidRequest(
                f"{name} would score the prompt, which can end the engine while it serves adapters. "
                + (
                    "Leave echo out."
                    if name == "logprobs"
                    else "Leave it out; logprobs are told for the reply."
                ),
                name,
            )


def _check_messages(body: Mapping[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message.", "messages")


def _check_prompt(body: Mapping[str, Any]) -> None:
    if not body.get("prompt_embeds"):
        _check_text_or_list(body, "prompt")


def _check_response(body: Mapping[str, Any]) -> None:
    _check_text_or_list(body, "input")
    if body.get("previous_response_id") is not None:
        raise InvalidRequest(
            "Responses are not kept for later requests here: send the whole conversation in input.",
            "previous_response_id",
        )
    if _flag(body, "background"):
        raise InvalidRequest(
            "Responses are not kept, so none can be made in the background: leave it out, or "
            "stream.",
            "background",
        )


def _check_embedding(body: Mapping[str, Any]) -> None:
    if not isinstance(body.get("messages"), list):  # vLLM embeds conversations too
        _check_text_or_list(body, "input")


def _check_text_or_list(body: Mapping[str, Any], name: str) -> None:
    value = body.get(name)
    if not isinstance(value, str | list):
        raise InvalidRequest(f"{name} must be a string or a list, not {_kind(value)}.", name)


CHAT = EndpointSpec(proxy.CHAT, Endpoint.CHAT, "messages", _check_messages, "A chat's next message")
COMPLETIONS = EndpointSpec(
    proxy.COMPLETIONS, Endpoint.COMPLETIONS, "prompt", _check_prompt, "A text's continuation"
)
RESPONSES = EndpointSpec(
    proxy.RESPONSES,
    Endpoint.RESPONSES,
    "input",
    _check_response,
    "A response, as OpenAI's agents ask",
)
EMBEDDINGS = EndpointSpec(
    proxy.EMBEDDINGS, Endpoint.EMBEDDINGS, "input", _check_embedding, "A text's vector"
)
MESSAGES = EndpointSpec(
    proxy.MESSAGES, Endpoint.MESSAGES, "messages", _check_messages, "A chat in Anthropic's form"
)
COUNT_TOKENS = EndpointSpec(
    proxy.COUNT_TOKENS, None, "messages", _check_messages, "What a chat in Anthropic's form costs"
)

ENDPOINTS = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MESSAGES, COUNT_TOKENS)


def _flag(body: Mapping[str, Any], name: str) -> bool | None:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false, not {_kind(value)}.", name)
    return value


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidRequest("The body holds a number that is out of range.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = _decode_oddity(raw)
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_kind(body)}.")
    return body


def _decode_oddity(raw: bytes) -> Any:
    """The standard library takes half characters, and says where the body is broken."""
    try:
        return parse_json(raw.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The body is not UTF-8: byte {error.start} is {raw[error.start]:#04x}."
        ) from error


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")
