"""One locked-down process: started by `adapters.rewards.unit_tests`, its job one line of JSON on
standard input, its report one on standard output.
"""

import json
import math
import os
import sys
import time
import unittest  # noqa: F401  what tests use is looked up before the files are out of sight
from typing import Any

from adapters.rewards.locked.jail import NotLockable, run_locked
from adapters.rewards.locked.solution import serve
from adapters.rewards.locked.tests_of_code import judge
from adapters.rewards.locked.wire import Line

READY = "ready"
NOT_LOCKED = "not locked"


def main() -> None:
    """Lock this process down and do its job in it; never returns to what called it."""
    os.nice(10)
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    sys.path.pop()  # where this package lies, which will not be seen
    report = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for known in (0, 1, 2):
        os.dup2(nowhere, known)
    os.close(nowhere)

    def payload() -> None:
        _tell(report, READY)
        _close_all_but((job["reads"], job["writes"], report))
        # Integers cross as text, however long; what that may cost the lock's own limits say.
        sys.set_int_max_str_digits(0)
        deadline = time.monotonic() + job["seconds"]
        if job["role"] == "tests":
            line = Line(job["reads"], job["writes"], deadline=deadline)
            _tell(report, judge(job["text"], line))
        else:
            os.close(report)
            serve(job["text"], Line(job["reads"], job["writes"]))

    try:
        run_locked(payload, memory_mib=job["memory_mib"], cpu_s=math.ceil(job["seconds"]) + 1)
    except (NotLockable, OSError) as error:
        _tell(report, f"{NOT_LOCKED}: {error}")
        os._exit(1)


def _tell(report: int, text: str) -> None:
    os.write(report, text.encode()[:400] + b"\n")


def _close_all_but(wanted: tuple[int, ...]) -> None:
    last = 2
    for one in sorted(wanted):
        os.closerange(last + 1, one)
        last = one
    os.closerange(last + 1, 4096)
