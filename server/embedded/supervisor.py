"""Keeps children running: start in order, restart what dies, stop in reverse. Knows no command."""

import time
from collections.abc import Callable

from server.core.errors import SetupError
from server.embedded.child import Child
from server.embedded.guard import Guard

BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0
"""A child that lived this long starts again without a pause."""


class Supervisor:
    """The children that should run, in the order in which they were started.

    Args:
        on_change: called with each child that was started or restarted.
        backoff_s: pauses before the first, second, … restart in a row; the last one repeats.
    """

    def __init__(
        self, on_change: Callable[[Child], None], *, backoff_s: tuple[float, ...] = BACKOFF_S
    ) -> None:
        self.children: list[Child] = []
        self._on_change = on_change
        self._backoff_s = backoff_s
        self._due: dict[str, float] = {}
        self._guard = Guard()

    def start(self, child: Child) -> None:
        """Start a child and take it into care; :meth:`wait_ready` says when it works."""
        self.children.append(child)
        self._run(child)

    def wait_ready(self, *children: Child) -> None:
        """Block until all are ready. One that dies or is late while starting is a SetupError."""
        for child in children:
            deadline = child.started_at + child.start_timeout_s
            while not self._is_up(child):
                if time.monotonic() > deadline:
                    raise SetupError(_failure(child, f"not ready in {child.start_timeout_s:.0f} s"))
                time.sleep(0.1)

    def poll(self) -> None:
        """Look once: set long logs aside, and start the dead again when their pause is over."""
        for child in self.children:
            child.rotate_log()
            if child.is_alive:
                continue
            now = time.monotonic()
            if child.name not in self._due:
                self._clear(child)
                is_steady = now - child.started_at > STEADY_S
                child.failures = 0 if is_steady else child.failures + 1
                pause = 0.0 if is_steady else self._pause(child.failures)
                self._due[child.name] = now + pause
            if now >= self._due[child.name]:
                del self._due[child.name]
                self._run(child)

    def stop(self) -> None:
        """Stop all, last started first, so that nothing loses what it stands on."""
        for child in reversed(self.children):
            child.stop()
            self._clear(child)
        self._guard.close()

    def _run(self, child: Child) -> None:
        child.start()
        self._guard.watch(child.pid or 0)
        self._on_change(child)

    def _clear(self, child: Child) -> None:
        """Kill what a dead child left behind."""
        child.sweep()
        if child.pid is not None:
            self._guard.forget(child.pid)

    def _is_up(self, child: Child) -> bool:
        if child.process is not None and not child.is_alive:
            status = child.process.returncode
            raise SetupError(_failure(child, f"ended with status {status} while starting"))
        return child.is_ready is None or child.is_ready()

    def _pause(self, failures: int) -> float:
        return self._backoff_s[min(failures, len(self._backoff_s)) - 1]


def _failure(child: Child, what: str) -> str:
    return f"{child.name}: {what}. The end of {child.log_path}:\n{child.last_lines()}"
