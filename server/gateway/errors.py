"""The engine's refusals in OpenAI's envelope, with a status that blames the right side."""

import json
from typing import Any

from server.core.errors import EngineError, EngineUnavailable, InvalidRequest
from server.engine.sse import error_message

_OUR_FAULT = (401, 403, 404, 405)
"""What the engine says to the gateway about its order, not to the client about its request."""


def engine_refusal(status: int, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and body for the client, from an answer of the engine that is not 2xx.

    A 4xx about the request keeps its status and message; vLLM names the field as ``body.FIELD`` and
    repeats the status as ``code``, OpenAI's form is the plain field and a word. Whatever else it
    answers is the engine's failure: 502, or 503 where it says that it is busy.
    """
    message, param = _read(body)
    if 400 <= status < 500 and status not in _OUR_FAULT:
        return status, InvalidRequest(message or f"The engine answers {status}.", param).envelope()
    if status == 503:
        return 503, EngineUnavailable(message or "it is busy").envelope()
    error = EngineError(f"The engine failed ({status}): {message or 'no reason given'}")
    return error.status, error.envelope()


def stream_error(message: str, code: str) -> bytes:
    """The event that tells a client that its stream ends here, unfinished."""
    error = {"message": message, "type": "api_error", "param": None, "code": code}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def _read(body: bytes) -> tuple[str, str | None]:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return body[:300].decode(errors="replace"), None
    if not isinstance(payload, dict):
        return str(payload)[:300], None
    error = payload.get("error", payload)
    param = error.get("param") if isinstance(error, dict) else None
    return error_message(payload), param.removeprefix("body.") if isinstance(param, str) else None
