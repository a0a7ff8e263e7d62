"""Are two formulas equal? math-verify in a process of its own, under a time limit that holds.

Any thread of any process may ask: a worker's pool is no main thread, and forked workers do not share
a child. What took too long is taken for unequal, and is remembered as such.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache

LIMIT_S = 3.0
"""For one comparison; the first one also loads sympy, which does not count."""
_MOST_CHARACTERS = 200


class Comparer:
    """A child process that compares; started when first needed, and anew when it died."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._owner = 0

    def are_equal(self, one: str, other: str) -> bool:
        """Whether both are the same as mathematics; never raises, for whatever they say."""
        if max(len(one), len(other)) > _MOST_CHARACTERS:
            return False
        with self._lock:
            verdict = self._ask(f"{json.dumps([one, other])}\n")
            if not verdict:  # it is dying; wait for it, so that the next one is asked of another
                self._end()
            return verdict == "true\n"

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _ask(self, line: str) -> str:
        """The child's answer; empty if it died over it."""
        child = self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(line)
            child.stdin.flush()
            return child.stdout.readline()
        except OSError:
            return ""

    def _running(self) -> subprocess.Popen[str]:
        if self._owner != os.getpid():  # forked: the child is another's
            self._child, self._owner = None, os.getpid()
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "adapters.rewards.math_child", str(self._limit_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):  # what was not sent yet cannot be
                if pipe is not None:
                    pipe.close()
        child.wait()


_COMPARER = Comparer()
atexit.register(_COMPARER.close)


def are_formulas_equal(one: str, other: str) -> bool:
    """Whether both are the same as mathematics, whichever comes first."""
    return _compared(*sorted((one, other)))


@lru_cache(maxsize=4096)
def _compared(one: str, other: str) -> bool:
    return _COMPARER.are_equal(one, other)
