"""A process that compares formulas: `python -m adapters.rewards.math_child`.

Reads `[one, other]` as JSON, a line each, and writes `true` or `false`. A comparison that takes too
long ends the process by the alarm's default action, which no computation can hold up; so it can
neither hang its parent nor outlive it. math-verify's own time limit works in a main thread only.
"""

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

_MEMORY_BYTES = 2 << 30
# The other way to read, by `sympy.parse_expr`, evaluates text as Python: not for a model's replies.
_READERS = (LatexExtractionConfig(),)


def main(limit_s: float) -> None:
    """Compare until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    for line in sys.stdin:
        one, other = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        is_equal = _are_equal(one, other)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(f"{json.dumps(is_equal)}\n")
        answers.flush()


def _are_equal(one: str, other: str) -> bool:
    try:
        left, right = _read(one), _read(other)
        if not left or not right:
            return False
        return bool(
            verify(list(left), list(right), timeout_seconds=None)
            or verify(list(right), list(left), timeout_seconds=None)
        )
    except Exception:  # of whatever a formula provokes in sympy
        return False


@lru_cache(maxsize=256)
def _read(formula: str) -> tuple[Any, ...]:
    return tuple(
        parse(
            f"${formula}$",
            extraction_config=_READERS,
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )
    )


if __name__ == "__main__":
    main(float(sys.argv[1]))
