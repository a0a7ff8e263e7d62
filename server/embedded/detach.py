"""Going to the background once the server is ready: a fork whose first half waits for the second."""

import os
import signal
import sys
from pathlib import Path


class Handover:
    """The background half's side of the fork; until :meth:`complete` it shares the terminal."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def complete(self, log_path: Path) -> None:
        """Let the terminal go: output goes to the log from now on, and the first half exits 0."""
        sys.stdout.flush()
        sys.stderr.flush()
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.close(nothing)
        os.write(self._writer, b"1")
        os.close(self._writer)


def fork_detached() -> Handover:
    """Go on in a new session; call before any thread is started.

    Returns in the background half only. The first half ends here: with status 0 when the other has
    handed over, else with the other's status. Ctrl-C there stops the start.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.setsid()
        return Handover(writer)
    os.close(writer)
    raise SystemExit(_await_handover(pid, reader))


def _await_handover(pid: int, reader: int) -> int:
    try:
        if os.read(reader, 1):
            return 0
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status > 0 else 1
