"""Reads one file in a process that can harm nobody: ``python -m adapters.corpus.parse_job``.

Standard input: one line of JSON (the fields of :class:`Job`), then the file's bytes. Standard
output: one JSON object, ``{"text", "title"}`` or ``{"unreadable"}``. Memory, processor time, open
files and written files are limited before the first byte of the file is looked at.
"""

import json
import math
import os
import resource
import sys
from dataclasses import dataclass

from adapters.corpus.parsing import Limits, Unreadable, parse

MIB = 1024 * 1024

_OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Job:
    """What to read, and what it may cost."""

    media_type: str
    charset: str | None
    memory_mib: int
    """Of address space."""
    seconds: float
    """Of processor time; whoever started this counts the wall clock."""
    pages: int
    bytes: int


def main() -> None:
    job = Job(**json.loads(sys.stdin.buffer.readline()))
    _limit(job)
    content = sys.stdin.buffer.read()
    try:
        limits = Limits(pages=job.pages, bytes=job.bytes)
        parsed = parse(content, job.media_type, limits=limits, charset=job.charset)
        answer = {"text": parsed.text, "title": parsed.title}
    except Unreadable as error:
        answer = {"unreadable": str(error)}
    except MemoryError:
        answer = {
            "unreadable": f"Reading it takes more than {job.memory_mib} MiB. Send it in a simpler "
            "form, or raise EVERLEARN_DOCUMENTS__PARSE_MEMORY_MIB."
        }
    sys.stdout.write(json.dumps(answer))


def _limit(job: Job) -> None:
    seconds = math.ceil(job.seconds)
    for what, most in (
        (resource.RLIMIT_AS, job.memory_mib * MIB),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, hard if what == resource.RLIMIT_CPU else most))
    os.nice(10)


if __name__ == "__main__":
    main()
