"""What a chat request must have before it is routed. Everything else is the engine's to judge."""

from dataclasses import dataclass
from typing import Any

from server.core.errors import InvalidRequest
from server.http import parse_json


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request; ``body`` is what the client sent, every field of it."""

    model: str
    is_stream: bool
    body: dict[str, Any]


def parse_chat(raw: bytes) -> ChatRequest:
    """Read a request's bytes.

    Raises:
        InvalidRequest: not UTF-8, not a JSON object, or ``model``, ``messages``, ``stream`` or
            ``priority`` is not what it must be; names the field.
    """
    body = _json_object(raw)
    model = body.get("model")
    if model is None:
        raise InvalidRequest("A model must be named; GET /v1/models lists them.", "model")
    if not isinstance(model, str):
        raise InvalidRequest(f"model must be a string, not {_kind(model)}.", "model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message.", "messages")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest(f"stream must be true or false, not {_kind(stream)}.", "stream")
    priority = body.get("priority")
    if priority is not None and type(priority) is not int:
        raise InvalidRequest(f"priority must be a whole number, not {_kind(priority)}.", "priority")
    return ChatRequest(model, bool(stream), body)


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        body = parse_json(raw.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The body is not UTF-8: byte {error.start} is {raw[error.start]:#04x}."
        ) from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_kind(body)}.")
    return body


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")
