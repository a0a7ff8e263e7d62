"""What is left of a record when its client wants nothing of what was said to be stored."""

from collections.abc import Mapping
from typing import Any

_KEPT_OF_REQUEST = ("model", "store", "stream")

WITHHELD = "withheld: the request said store: false"
"""Stands for an error's message, which may quote the prompt."""


def without_content(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an interaction without a word of prompt or reply; the accounting stays."""
    request = record["request"]
    return {
        **record,
        "request": {name: request[name] for name in _KEPT_OF_REQUEST if name in request},
        "reply": "",
        "choices": None,
        "tokens": None,
        "error": record["error"] and WITHHELD,
    }
