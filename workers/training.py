"""Runs the trainer as a child process of its own: a cancel kills it, and its memory goes with it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.heart import Heart

JOB_MODULE = "adapters.training.job"

_POLL_S = 0.3
_TERM_GRACE_S = 5.0
_LOG_TAIL_CHARS = 2000


class TrainingFailed(RuntimeError):
    """The trainer ended without an adapter; the message is its own."""


def train(job: dict[str, Any], *, folder: Path, heart: Heart) -> dict[str, Any]:
    """Train in a child process and return its closing report.

    ``job`` is the document described in :mod:`adapters.training.job`. Progress goes to the heart;
    when the heart stops the work, the child is terminated, and killed if it does not go.

    Raises:
        TrainingFailed: the child reported an error or died.
    """
    job_file, log_file = folder / "job.json", folder / "trainer.log"
    job_file.write_text(json.dumps(job))
    with log_file.open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", JOB_MODULE, str(job_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # a signal to the worker's group is the worker's to handle
        )
        try:
            report = _follow(child, heart)
        finally:
            _end(child)
    if report is None:
        tail = log_file.read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip()
        raise TrainingFailed(f"the trainer died with status {child.returncode}: {tail}")
    return report


def _follow(child: subprocess.Popen[str], heart: Heart) -> dict[str, Any] | None:
    for event in _events(child, heart):
        match event.get("event"):
            case "step":
                heart.progress(event["step"], event["total"])
            case "error":
                raise TrainingFailed(event["message"])
            case "done":
                return event
    return None


def _events(child: subprocess.Popen[str], heart: Heart) -> Iterator[dict[str, Any]]:
    """The child's events; a cancel is noticed also while the child says nothing."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(child, lines), daemon=True).start()
    while True:
        heart.check()
        try:
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if line is None:
            return
        if line.startswith("{"):
            yield json.loads(line)


def _read(child: subprocess.Popen[str], lines: "queue.SimpleQueue[str | None]") -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            lines.put(line)
    lines.put(None)


def _end(child: subprocess.Popen[str]) -> None:
    try:
        child.wait(timeout=0.5 if child.poll() is None else 0)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(timeout=_TERM_GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
