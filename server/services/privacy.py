"""What may be stored of a request: nothing of its words when the client says ``store: false``."""

import json
import re
from collections.abc import Mapping
from typing import Any

from server.core.json_codec import encode

Record = Mapping[str, Any]

_ACCOUNTING = frozenset(
    {
        "model",
        "stream",
        "store",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "logprobs",
        "top_logprobs",
    }
)
"""Fields of a request that say how much was asked for, never what."""

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)"
)
_UNSTORABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2})")


def may_keep_content(record: Record) -> bool:
    """Whether the client lets the words of a captured record be stored."""
    return record["request"].get("store") is not False


def without_content(record: Record) -> dict[str, Any]:
    """A captured record with its accounting and no word of prompt or reply.

    Kept are tokens, timing, version, key and outcome. The engine's error goes too: it may quote
    the prompt. Such a record is never learnt from.
    """
    return {
        **record,
        "request": accounting_of(record["request"]),
        "reply": "",
        "choices": None,
        "tokens": None,
        "error": None,
        "may_learn": False,
    }


def accounting_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that carry no text of anybody's, but for the model's name."""
    return {
        name: value
        for name, value in request.items()
        if name in _ACCOUNTING
        and (name == "model" or value is None or isinstance(value, bool | int | float))
    }


def storable(record: Record) -> dict[str, Any]:
    """The record without what a database has no place for.

    NUL and halves of characters become U+FFFD, numbers beyond every range become their names. It
    works on the JSON text, so no depth of nesting that could be read can break it.
    """
    try:
        text = json.dumps(record, allow_nan=False)
    except ValueError:
        text = json.dumps(json.loads(json.dumps(record), parse_constant=str))
    if not _UNSTORABLE.search(text):
        whole: dict[str, Any] = json.loads(text)
        return whole
    clean: dict[str, Any] = json.loads(_ESCAPE.sub(_storable_escape, text))
    return clean


def _storable_escape(match: re.Match[str]) -> str:
    """Whole characters and plain escapes stay; the pattern reads a pair as one."""
    is_pair = len(match[0]) == 12
    return r"\ufffd" if not is_pair and _UNSTORABLE.fullmatch(match[0]) else match[0]


def inside_json(text: str) -> str:
    """The text as it stands inside a string of stored JSON."""
    return encode(text).decode()[1:-1]
