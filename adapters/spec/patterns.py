"""Patterns that users write: measured before they are compiled, because compiling has no time limit.

`regex` writes a repeat out, so often as it must match and once more where it may match more often:
`((a{1000}){1000}){10}` is ten million characters, which is seconds, and gigabytes. How large a pattern
becomes is never underestimated here, however it is meant: what is told apart is only whether a repeat
follows a bracket that closes, and may so have other repeats in it, or cannot.

The library is imported when there is something to compile.
"""

import re
from functools import lru_cache
from typing import Any

MAX_PATTERN_SIZE = 50_000
"""Of a pattern that is written out, in characters: some 50 ms, and 15 MB."""

_REPEAT = re.compile(r"(?P<bracket>\)?)(?:\+|\{(?P<least>[0-9]*)(?P<more>,?)(?P<most>[0-9]*)\})")
_MOST_DIGITS = 9
_FLAGS = re.compile(r"(?<!\\)(?:\\\\)*\(\?[A-Za-z0-9-]*[xf][A-Za-z0-9-]*[:)]")
"""Free spacing, in which a count may be written so that no one sees it, and full case-folding, by which
one class of characters becomes a thousand."""


def size_of(pattern: str) -> int:
    """How many characters a pattern has at most where all its repeats are written out.

    Stops counting just above the limit.
    """
    around, size = 1, len(pattern)
    for repeat in _REPEAT.finditer(pattern):
        times = _times(repeat)
        if repeat["bracket"]:
            around = min(around * times, MAX_PATTERN_SIZE + 1)
        elif times > 1:
            size += times
    return min(around * size, MAX_PATTERN_SIZE + 1)


def check_size(size: int, what: str) -> None:
    """Refuse what would be too large if it were compiled.

    Raises:
        ValueError: it is; the message says what helps.
    """
    if size > MAX_PATTERN_SIZE:
        raise ValueError(
            f"{what} would be more than {MAX_PATTERN_SIZE:,} characters with all repeats written "
            "out; use smaller counts, repeat fewer groups, or write * or {0,9} in place of + or {9}"
        )


def compile_pattern(pattern: str) -> Any:
    """A pattern, ready to be matched under a time limit.

    Raises:
        ValueError: it is none, or it is too large; the message says why, and what helps.
    """
    import regex

    if _FLAGS.search(pattern):
        raise ValueError(f"{_shown(pattern)}: the flags x and f are not supported; leave them out")
    check_size(size_of(pattern), _shown(pattern))
    try:
        # Not into the library's cache, which would keep hundreds of them, however large.
        return regex.compile(pattern, cache_pattern=False)
    except (regex.error, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{_shown(pattern)} is no pattern: {error}") from None


@lru_cache(maxsize=16)
def compiled(pattern: str) -> Any:
    """As `compile_pattern`; the last ones are kept, for those that are matched again and again."""
    return compile_pattern(pattern)


def _times(repeat: re.Match[str]) -> int:
    """How often what is repeated is written out; 1 for what is no repeat."""
    least, most = repeat["least"], repeat["most"]
    if least is None:  # a plus
        return 2
    if max(len(least), len(most)) > _MOST_DIGITS:
        return MAX_PATTERN_SIZE + 1
    wanted = int(least or 0)
    is_more = bool(repeat["more"]) and (not most or int(most) > wanted)
    return max(1, wanted + is_more)


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 100 else pattern[:100] + "\u2026")
