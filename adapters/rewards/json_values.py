"""JSON in a reply: read strictly, told apart by value."""

import json
import re
from collections.abc import Iterator

_FENCE = re.compile(r"```[a-zA-Z0-9]*[ \t]*\n(.*?)```", re.DOTALL)
_MOST_STARTS = 50
"""Places of one reply at which a value is looked for."""
_MOST_EXACT = 2**53
"""Up to here a float holds every whole number."""


def read_json(text: str) -> object:
    """The JSON value that a text is; 1.0 is read as 1.

    Raises:
        ValueError: it is none, is too deep, or holds NaN, infinity or a name twice.
    """
    try:
        return json.loads(
            text, parse_constant=_refuse, parse_float=_number, object_pairs_hook=_unique
        )
    except RecursionError as error:
        raise ValueError("too deep") from error


def write_json(value: object) -> str:
    """A value of `read_json` in the one form that equal values have: names are sorted."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_values_in(text: str) -> list[object]:
    """What the fenced blocks of a text hold, else the whole of it, else its outermost objects and
    lists; blocks that are no JSON are passed over."""
    if fences := _FENCE.findall(text):
        return [value for fence in fences for value in _read(fence)]
    return list(_read(text)) or [value for part in _parts(text) for value in _read(part)]


def _read(text: str) -> Iterator[object]:
    try:
        yield read_json(text)
    except ValueError:
        return


def _parts(text: str) -> Iterator[str]:
    decoder = json.JSONDecoder()
    place = 0
    for _ in range(_MOST_STARTS):
        starts = [at for at in (text.find("{", place), text.find("[", place)) if at >= 0]
        if not starts:
            return
        start = min(starts)
        try:
            _, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            place = start + 1
            continue
        yield text[start:end]
        place = end


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _number(text: str) -> float | int:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return int(value) if value.is_integer() and abs(value) < _MOST_EXACT else value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields
