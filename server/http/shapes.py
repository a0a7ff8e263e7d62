"""The form in which an error leaves: OpenAI's envelope, and Anthropic's where its clients call."""

from collections.abc import Mapping
from typing import Any

ANTHROPIC_PATHS = "/v1/messages"
"""What begins with this is asked by Anthropic's clients."""

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def is_anthropic(path: str) -> bool:
    """Whether whoever calls this path reads errors in Anthropic's form."""
    return path.startswith(ANTHROPIC_PATHS)


def shaped(path: str, status: int, envelope: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAI envelope as the callers of ``path`` expect it."""
    if not is_anthropic(path):
        return dict(envelope)
    otherwise = "invalid_request_error" if status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(status, otherwise)
    return {"type": "error", "error": {"type": kind, "message": envelope["error"]["message"]}}
