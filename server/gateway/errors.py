"""The engine's refusals in the clients' form, with a status that blames the right side."""

import json
from dataclasses import dataclass, field
from typing import Any

from server.core.errors import (
    AppError,
    ContextLengthExceeded,
    EndpointNotServed,
    EngineError,
    EngineUnavailable,
    InvalidRequest,
    NotFound,
)
from server.core.json_codec import decode, encode
from server.engine.reading import error_message, says_no_such_model, says_too_long
from server.gateway.endpoints import RESPONSES, EndpointSpec
from server.http.errors import error_headers
from server.http.shapes import is_anthropic, shaped

_OUR_FAULT = (401, 403, 405)
"""What the engine says to the gateway about its order, not to the client about its request."""

_NO_SUCH_ROUTE = "Not Found"
"""The engine's words for a path that it does not have."""

BUSY_RETRY_S = "1"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the engine that is not 2xx, as the client gets it."""

    status: int
    envelope: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: AppError) -> "Refusal":
        return cls(error.status, error.envelope(), error_headers(error))


def engine_refusal(
    endpoint: EndpointSpec, status: int, body: bytes, retry_after: str | None = None
) -> Refusal:
    """What the client is told, from an answer of the engine that is not 2xx.

    A 4xx about the request keeps its status and message; vLLM names the field as ``body.FIELD`` and
    repeats the status as ``code``, OpenAI's form is the plain field and a word. Whatever else it
    answers is the engine's failure: 502, or 503 where it says that it is busy.
    """
    message, param = _read(body)
    if status == 501 or (status == 404 and message in ("", _NO_SUCH_ROUTE)):
        return Refusal.of(EndpointNotServed(endpoint.path))
    if status in (429, 503):
        return _busy(status, message, retry_after)
    if 400 <= status < 500 and status not in _OUR_FAULT and not is_lost_model(status, body):
        if says_too_long(message):
            return Refusal.of(ContextLengthExceeded(message, endpoint.prompt_field))
        envelope = InvalidRequest(message or f"The engine answers {status}.", param).envelope()
        if status == 404:
            envelope["error"]["code"] = NotFound.code
        return Refusal(status, envelope)
    return Refusal.of(EngineError(f"The engine failed ({status}): {message or 'no reason given'}"))


def is_lost_model(status: int, body: bytes) -> bool:
    """Whether the engine says that it does not know the weights it was asked for."""
    message, _ = _read(body)
    return says_no_such_model(status, message)


def stream_error(endpoint: EndpointSpec, message: str, code: str) -> bytes:
    """The event that tells a client that its stream ends here, unfinished."""
    envelope = {"error": {"message": message, "type": "api_error", "param": None, "code": code}}
    if is_anthropic(endpoint.path):
        return b"event: error\ndata: " + encode(shaped(endpoint.path, 500, envelope)) + b"\n\n"
    if endpoint is RESPONSES:
        event = {"type": "error", "message": message, "code": code, "param": None, **envelope}
        return b"event: error\ndata: " + encode(event) + b"\n\n"
    return b"data: " + encode(envelope) + b"\n\n"


def error_body(endpoint: EndpointSpec, status: int, envelope: dict[str, Any]) -> bytes:
    """An envelope as the endpoint's clients read it, in ASCII: it may quote half a character."""
    return json.dumps(shaped(endpoint.path, status, envelope)).encode()


def _busy(status: int, message: str, retry_after: str | None) -> Refusal:
    refusal = Refusal.of(EngineUnavailable(message or "it is busy"))
    if status == 429:
        kind = {"type": "rate_limit_error", "code": "rate_limit_exceeded"}
        error = {**refusal.envelope["error"], **kind, "message": message or "The engine is busy."}
        refusal = Refusal(429, {"error": error}, {"retry-after": BUSY_RETRY_S})
    if retry_after is not None and retry_after.isdecimal():
        refusal.headers["retry-after"] = retry_after
    return refusal


def _read(body: bytes) -> tuple[str, str | None]:
    try:
        payload = decode(body)
    except (ValueError, RecursionError):
        return body[:300].decode(errors="replace"), None
    if not isinstance(payload, dict):
        return str(payload)[:300], None
    if set(payload) == {"detail"}:  # the framework's own form
        return str(payload["detail"])[:300], None
    error = payload.get("error", payload)
    param = error.get("param") if isinstance(error, dict) else None
    return error_message(payload), param.removeprefix("body.") if isinstance(param, str) else None
