"""Waiting for an engine that is being restarted: long enough for a start, and no longer."""

import time

from server.core.clock import monotonic
from server.core.errors import EngineUnavailable

PAUSE_S = 2.0


class Patience:
    """Counts from the first failure; one success does not lengthen it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    def must_end(self) -> bool:
        """Whether the engine has been away for too long."""
        if self._until is None:
            self._until = monotonic() + self._seconds
        return monotonic() > self._until

    def wait_or_raise(self, error: EngineUnavailable) -> None:
        """Sleep a little, or give up with the engine's own error."""
        if self.must_end():
            raise error
        time.sleep(PAUSE_S)
