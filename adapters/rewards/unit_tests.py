"""Does the code in a reply pass the prompt's tests? Both run locked down, each in a world of its own.

The code's process knows nothing of the tests; the tests' process, which says how they went, calls
the code over a pipe. A verdict so cannot be printed, exited into, read off the stack or patched by
the code: it is whatever the tests' side makes of plain values. See `adapters/rewards/locked`.

Not covered: tests that pass functions into the code, catch its own error classes, or compare its
objects; code that starts threads or processes.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from adapters.rewards.locked.job import READY
from adapters.rewards.locked.tests_of_code import (
    NEVER_CALLED,
    PASSED,
    TESTS_DO_NOT_RUN,
)
from adapters.spec import UnitTestsVerifier
from adapters.types import Attempt, Verdict

NO_CODE = "the reply has no fenced code"
NO_TESTS = "the prompt has no tests"
NO_LOCK = "code can not be locked down on this machine"
TESTS_TOO_LONG = "the tests gave no verdict"
TOO_LARGE = "the code is too large"

_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE
)
_PYTHON = frozenset({"python", "py", "python3"})
_UNTOLD = frozenset({PASSED, TESTS_DO_NOT_RUN, NEVER_CALLED, NO_LOCK, TESTS_TOO_LONG})
_MOST_CODE = 256 * 1024
_MOST_REPORT = 4096
_GRACE_S = 1.0
_AT_ONCE = 4
_ROOT = str(Path(__file__).parents[2])
_START = (
    f"import sys; sys.path.append({_ROOT!r}); from adapters.rewards.locked.job import main; main()"
)


class UnitTests:
    """Verdicts by the prompts' unit tests; a few run side by side."""

    def __init__(self, spec: UnitTestsVerifier) -> None:
        self._spec = spec

    def verify(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See `Verifier.verify`."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._verify, attempts))

    def _verify(self, attempt: Attempt) -> Verdict:
        if not (attempt.prompt.tests or "").strip():
            return Verdict(None, NO_TESTS)
        code = code_in(attempt.reply)
        if code is None:
            return Verdict(False, NO_CODE)
        if len(code) > _MOST_CODE:
            return Verdict(False, TOO_LARGE)
        found = run_tests(code, attempt.prompt.tests or "", self._spec)
        if found == PASSED:
            return Verdict(True)
        return Verdict(None if found in _UNTOLD else False, found)


def code_in(reply: str) -> str | None:
    """The last closed fence marked as Python; where none is marked so, the last unmarked one."""
    fences = [(mark.lower(), code) for mark, code in _FENCE.findall(reply)]
    marked = [code for mark, code in fences if mark in _PYTHON]
    plain = [code for mark, code in fences if not mark]
    return next(iter([*marked[-1:], *plain[-1:]]), None)


def run_tests(code: str, tests: str, spec: UnitTestsVerifier) -> str:
    """How the tests went: `PASSED`, or why not, as a closed phrase."""
    asking, asked = os.pipe(), os.pipe()
    ends = [*asking, *asked]
    runs: list[subprocess.Popen[bytes]] = []
    try:
        runs.append(_start("code", code, asking[0], asked[1], spec))
        runs.append(_start("tests", tests, asked[0], asking[1], spec))
        while ends:
            os.close(ends.pop())
        deadline = time.monotonic() + spec.timeout_s + _GRACE_S
        reports = [
            _report_of(run, deadline, lines) for run, lines in zip(runs, (1, 2), strict=True)
        ]
    finally:
        for end in ends:
            os.close(end)
        for run in runs:
            _kill(run)
    (code_began, _), (tests_began, verdict) = reports
    if not (code_began and tests_began):
        return NO_LOCK
    return verdict or TESTS_TOO_LONG


def _start(
    role: Literal["code", "tests"], text: str, reads: int, writes: int, spec: UnitTestsVerifier
) -> subprocess.Popen[bytes]:
    job = {
        "role": role,
        "text": text,
        "reads": reads,
        "writes": writes,
        "seconds": spec.timeout_s,
        "memory_mib": spec.memory_mib,
    }
    run = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        pass_fds=(reads, writes),
        start_new_session=True,
    )
    assert run.stdin is not None
    try:
        run.stdin.write(json.dumps(job).encode() + b"\n")
        run.stdin.close()
    except BrokenPipeError:  # it ended at once, and its report will be missed
        pass
    return run


def _report_of(
    run: subprocess.Popen[bytes], deadline: float, lines: int
) -> tuple[bool, str | None]:
    """Whether the process was locked down and began, and what it said last."""
    assert run.stdout is not None
    said = b""
    while said.count(b"\n") < lines and len(said) < _MOST_REPORT:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([run.stdout], [], [], left)[0]:
            break
        more = os.read(run.stdout.fileno(), _MOST_REPORT)
        if not more:
            break
        said += more
    first, _, rest = said.decode(errors="replace").partition("\n")
    return first == READY, rest.strip() or None


def _kill(run: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started: the first of its world dies with its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    if run.stdout is not None:
        run.stdout.close()
