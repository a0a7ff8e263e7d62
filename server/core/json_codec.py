"""JSON to and from bytes, fast: msgspec, and the standard library for what msgspec will not take."""

import json
from typing import Any

import msgspec


def encode(value: Any) -> bytes:
    """Compact JSON in UTF-8; in ASCII where a string holds half a character.

    Raises:
        RecursionError: it is nested beyond what Python follows.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def decode(raw: bytes) -> Any:
    """The value that ``raw`` holds; half characters are taken, as the standard library takes them.

    Raises:
        ValueError: it is not JSON, or not UTF-8.
        RecursionError: it is nested beyond what Python follows.
    """
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return json.loads(raw)


def decode_object(raw: bytes) -> dict[str, Any] | None:
    """The object that ``raw`` holds; None when it holds anything else, or nothing readable."""
    try:
        value = decode(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
