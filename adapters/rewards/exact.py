"""Is a reply the very answer? Compares texts but for white space: grids, labels, JSON."""

import json
from collections.abc import Sequence


def is_exact(reply: str, answers: Sequence[str]) -> bool:
    """Whether the reply is an accepted answer, line by line, blanks and empty lines aside.

    Lines count, so a grid of one row is not one of two. Two JSON objects or arrays are compared
    however they are laid out; the order of names counts.
    """
    given, given_json = _lines(reply), _compact(reply)
    return bool(given) and any(
        _lines(answer) == given or (given_json is not None and _compact(answer) == given_json)
        for answer in answers
    )


def _lines(text: str) -> list[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line]


def _compact(text: str) -> str | None:
    """JSON without white space; None where the text is no object or array."""
    if not text.strip().startswith(("{", "[")):
        return None
    try:
        return json.dumps(json.loads(text), separators=(",", ":"))
    except (ValueError, RecursionError):
        return None
