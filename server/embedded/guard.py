"""Kills the process groups of a supervisor that was itself killed. Standard library only.

The kernel's parent-death signal reaches a supervisor's own children, not what those have started:
vLLM's engine process outlives its API server, with gigabytes of memory (seen with vLLM 0.32). So a
guard holds the other end of a pipe, and acts when it closes.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO


class Guard:
    """The supervisor's side: says which groups would have to go."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        self._say(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Its processes are gone; the number may be reused."""
        self._say(f"-{group}\n")

    def close(self) -> None:
        """Dismiss the guard; what is still watched is killed."""
        with suppress(BrokenPipeError):
            self._pipe.close()
        self._process.wait()

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _say(self, line: str) -> None:
        with suppress(BrokenPipeError):  # somebody killed the guard: nothing to lean on any more
            self._pipe.write(line.encode())
            self._pipe.flush()


def stand_guard(orders: IO[str]) -> None:
    """Follow the orders until they end, then kill every group that is still on the list."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for order in orders:
        group = int(order[1:])
        if order.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    stand_guard(sys.stdin)
