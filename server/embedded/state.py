"""What runs in a home folder: `state.json`, and the lock that keeps it to one server."""

import fcntl
import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Self

from server.core.errors import SetupError

STATE_FILE = "state.json"
LOCK_FILE = "everlearn.lock"


@dataclass(frozen=True, slots=True)
class State:
    """A running server, as its supervisor wrote it down."""

    pid: int
    """The supervisor's."""
    pid_started: str
    """The kernel's start time of that process: a reused pid is not taken for it."""
    url: str
    is_ready: bool = False
    engine_url: str | None = None
    children: dict[str, int] = field(default_factory=dict)
    """Name to pid; empty once a server is stopping."""

    @classmethod
    def of_this_process(cls, url: str) -> Self:
        return cls(pid=os.getpid(), pid_started=process_start_time(os.getpid()) or "", url=url)

    def with_child(self, name: str, pid: int) -> "State":
        return replace(self, children={**self.children, name: pid})

    def write(self, home: Path) -> None:
        """Replace the file in one step, so that a reader never sees half of it."""
        draft = home / f"{STATE_FILE}.new"
        draft.write_text(json.dumps(asdict(self), indent=2) + "\n")
        draft.replace(home / STATE_FILE)


def read_state(home: Path) -> State | None:
    """The server that runs in this home; None when there is none (a stale file counts as none)."""
    try:
        state = State(**json.loads((home / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return state if process_start_time(state.pid) == state.pid_started else None


def remove_state(home: Path) -> None:
    (home / STATE_FILE).unlink(missing_ok=True)


def hold_home(home: Path) -> IO[str]:
    """Lock the home for this process; the lock goes with the returned file, or with the process.

    Raises:
        SetupError: another server is up, or starting, in the same folder.
    """
    lock = (home / LOCK_FILE).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        state = read_state(home)
        where = f"at {state.url}" if state else "and is just starting or stopping"
        raise SetupError(
            f"A server already runs in {home} {where}. Stop it with `everlearn down`, "
            "or give this one another folder: EVERLEARN_HOME=… (and EVERLEARN_GATEWAY__PORT=…)."
        ) from None
    return lock


def stop_server(state: State, timeout_s: float = 90) -> bool:
    """Ask a supervisor to stop and wait for it; False when it is still there after the timeout."""
    with suppress(ProcessLookupError):
        os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while process_start_time(state.pid) == state.pid_started:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def process_start_time(pid: int) -> str | None:
    """Clock ticks between boot and the start of a process; None when it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return None if fields[0] == "Z" else fields[19]
