"""The write-ahead segment: one file of JSON lines, locked by its writer or by whoever ships it."""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from server.core.clock import new_id
from server.core.json_codec import decode_object, encode

log = structlog.get_logger(__name__)

Record = Mapping[str, Any]


class Segment:
    """An open, locked segment; the lock goes with the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def create(cls, folder: Path) -> "Segment":
        """A new, empty one."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{new_id('seg')}.jsonl"
        unlocked = path.with_suffix(".new")  # shippers do not see it until it is locked
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        segment = cls(path, os.open(unlocked, flags, 0o600))
        fcntl.flock(segment._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(path)
        return segment

    @classmethod
    def open(cls, path: Path) -> "Segment":
        """An existing one.

        Raises:
            BlockingIOError: a living process holds it.
            FileNotFoundError: somebody shipped it meanwhile.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    def append(self, record: Record) -> None:
        """Write one line, whole or not at all as far as the disk allows."""
        line = encode(record) + b"\n"
        start = os.fstat(self._descriptor).st_size
        if os.write(self._descriptor, line) != len(line):
            os.ftruncate(self._descriptor, start)
            raise OSError("the disk took only a part of the record")

    def close(self) -> None:
        os.close(self._descriptor)


def segments_in(folder: Path) -> list[Path]:
    """Every segment, the oldest first."""
    return sorted(folder.glob("*.jsonl"))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a segment; a torn line (a writer killed at it) is logged and passed over."""
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        record = decode_object(line)
        if record is not None and isinstance(record.get("id"), str):
            records.append(record)
        else:
            log.warning("capture_line_torn", segment=path.name, line=number)
    return records
