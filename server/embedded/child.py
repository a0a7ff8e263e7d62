"""One child process: how it is started, told apart, stopped and never orphaned.

Each child leads a process group of its own, so that what it starts goes down with it. On Linux the
kernel also kills a child whose supervisor dies, however it dies; :mod:`server.embedded.guard` kills
what such a child has started.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from server.core.queue import READY_FILE_VARIABLE

LOG_BYTES = 16 * 1024 * 1024
"""A log that is longer is set aside as `NAME.log.1`."""

PR_SET_PDEATHSIG = 1

# Loaded before any fork: between fork and exec nothing may be imported.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(slots=True)
class Child:
    """A command to keep running, and the process that runs it now."""

    name: str
    command: Sequence[str]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables on top of the supervisor's own."""
    is_ready: Callable[[], bool] | None = None
    """Asked while it starts; None: ready as soon as it runs."""
    ready_file: Path | None = None
    """Made by the child when it works; the variable `EVERLEARN_READY_FILE` names it there."""
    start_timeout_s: float = 60
    grace_s: float = 10
    """How long it may take to end after SIGTERM, before SIGKILL."""
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    """Deaths in a row; shapes the pause before the next start."""

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process; its output is appended to its log."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.rotate_log()
        env = {**os.environ, **self.env}
        if self.ready_file is not None:
            self.ready_file.unlink(missing_ok=True)
            env[READY_FILE_VARIABLE] = str(self.ready_file)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.command),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.started_at = time.monotonic()

    def rotate_log(self) -> None:
        """Set a long log aside; the child goes on writing into the emptied file."""
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES:
            shutil.copyfile(self.log_path, self.log_path.with_suffix(".log.1"))
            os.truncate(self.log_path, 0)

    def stop(self) -> None:
        """End the whole group: SIGTERM, then SIGKILL after the grace. Stopping twice is fine."""
        if self.process is None:
            return
        if self.is_alive:
            _signal_group(self.process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(self.grace_s)
        self.sweep()
        self.process.wait()

    def sweep(self) -> None:
        """Kill whatever is left of the group, also when its leader is already gone."""
        if self.process is not None:
            _signal_group(self.process.pid, signal.SIGKILL)

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, for an error message."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-count:])


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
