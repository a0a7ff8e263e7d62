"""Reads a file from a stranger in a child process with limits, so that it can harm nothing."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict

from adapters.corpus.parse_job import Job
from adapters.corpus.parsing import Parsed, Unreadable
from server.core.settings import DocumentSettings

JOB_MODULE = "adapters.corpus.parse_job"

_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "SYSTEMROOT", "VIRTUAL_ENV")
"""All the child gets to know of the environment: no key, no address of a database."""


def read_file(
    content: bytes, media_type: str, *, charset: str | None, settings: DocumentSettings
) -> Parsed:
    """The text of an HTML, PDF or DOCX file.

    Raises:
        Unreadable: broken, locked, without text, or beyond a limit; the message says which.
    """
    job = Job(
        media_type=media_type,
        charset=charset,
        memory_mib=settings.parse_memory_mib,
        seconds=settings.parse_timeout_s,
        pages=settings.max_pages,
        bytes=settings.max_bytes,
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", JOB_MODULE],
            input=json.dumps(asdict(job)).encode() + b"\n" + content,
            capture_output=True,
            timeout=settings.parse_timeout_s,
            check=False,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,  # a signal to the worker's group is the worker's to handle
        )
    except subprocess.TimeoutExpired:
        raise _too_slow(settings) from None
    if done.returncode == -signal.SIGXCPU:
        raise _too_slow(settings)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise Unreadable(
            f"Reading it ended the reader (status {done.returncode}). Save it anew, or send its text."
        ) from None
    if "unreadable" in answer:
        raise Unreadable(answer["unreadable"])
    return Parsed(answer["text"], answer["title"])


def _too_slow(settings: DocumentSettings) -> Unreadable:
    return Unreadable(
        f"Reading it takes longer than {settings.parse_timeout_s:g} s. Send it in a simpler form, "
        "or raise EVERLEARN_DOCUMENTS__PARSE_TIMEOUT_S."
    )
