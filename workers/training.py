"""Runs the trainer as a child process of its own: a cancel kills it, and its memory goes with it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

JOB_MODULE = "adapters.training.job"

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
"""Variables of the trainer's process, unless the operator sets them otherwise. glibc would hand the
large tensors of each step back to the kernel, to be given pages anew in the next; other C libraries
do not look at them."""

_POLL_S = 0.3
_TERM_GRACE_S = 5.0
_LOG_TAIL_CHARS = 2000


class TrainingFailed(RuntimeError):
    """The trainer ended without an adapter; the message is its own."""


class Watch(Protocol):
    """Who follows a training and may stop it; :class:`workers.heart.Heart` in a run."""

    def check(self) -> None:
        """Raise what stops the training."""
        ...

    def progress(self, done: int, total: int) -> None:
        """Hear how far it is; may raise as well."""
        ...


@dataclass
class Trainer:
    """Trains job after job in one child process, which keeps the base model in memory.

    The process starts with the first job and stays until :meth:`close`; it ends with this process,
    too. A job that fails or is stopped ends it, and the next job starts another.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the child beside those of this process."""
    folder: Path | None = None
    """Where the child runs; None: where this process does."""
    _process: "_Process | None" = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def train(self, job: dict[str, Any], *, folder: Path, heart: Watch) -> dict[str, Any]:
        """Train in the child and return its closing report.

        ``job`` is the document described in :mod:`adapters.training.job`; it and the child's log
        are written to ``folder``. Progress goes to the heart; when the heart stops the work, the
        child is terminated, and killed if it does not go.

        Raises:
            TrainingFailed: the child reported an error or died.
        """
        job_file = folder / "job.json"
        job_file.write_text(json.dumps(job))
        process = self._take() or self._start(folder)
        try:
            report = process.carry_out(job_file.resolve(), heart)
        except BaseException:
            process.end()
            raise
        if report is None:
            status = process.status
            process.end()
            raise TrainingFailed(f"the trainer died with status {status}: {process.tail()}")
        self._process = process
        return report

    def close(self) -> None:
        """End the child, whose memory others need; a later job starts another."""
        if (process := self._take()) is not None:
            process.end()

    def _take(self) -> "_Process | None":
        """The child, if it lives; who takes it puts it back or ends it."""
        process, self._process = self._process, None
        if process is None or process.status is None:
            return process
        process.end()  # killed while it waited, by the system perhaps
        return None

    def _start(self, folder: Path) -> "_Process":
        log_file = folder / "trainer.log"
        with log_file.open("w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", JOB_MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env={**ALLOCATOR, **os.environ, **self.environment},
                start_new_session=True,  # a signal to the worker's group is the worker's to handle
            )
        return _Process(child, log_file)


class _Process:
    """A child that waits for jobs."""

    def __init__(self, child: subprocess.Popen[str], log_file: Path) -> None:
        self._child = child
        self._log_file = log_file
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="trainer-events", daemon=True).start()

    @property
    def status(self) -> int | None:
        """How it ended; None while it lives."""
        return self._child.poll()

    def tail(self) -> str:
        """The end of what the child has written to its log."""
        return self._log_file.read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip()

    def carry_out(self, job_file: Path, heart: Watch) -> dict[str, Any] | None:
        """The closing report of a job; None if the child died of it."""
        assert self._child.stdin is not None
        with suppress(OSError):  # it died; its events end, then
            self._child.stdin.write(json.dumps(str(job_file)) + "\n")
            self._child.stdin.flush()
        while (event := self._next_event(heart)) is not None:
            match event.get("event"):
                case "step":
                    heart.progress(event["step"], event["total"])
                case "error":
                    raise TrainingFailed(event["message"])
                case "done":
                    return event
        return None

    def end(self) -> None:
        """Have the child go, by force if need be."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGTERM)
            try:
                self._child.wait(timeout=_TERM_GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
        assert self._child.stdin is not None
        with suppress(OSError):  # what it did not read any more
            self._child.stdin.close()

    def _next_event(self, heart: Watch) -> dict[str, Any] | None:
        """A cancel is noticed also while the child says nothing; None when it has gone."""
        while True:
            heart.check()
            try:
                line = self._lines.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if line is None:
                with suppress(subprocess.TimeoutExpired):
                    self._child.wait(timeout=_TERM_GRACE_S)
                return None
            if line.startswith("{"):
                event: dict[str, Any] = json.loads(line)
                return event

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout:
            for line in self._child.stdout:
                self._lines.put(line)
        self._lines.put(None)
