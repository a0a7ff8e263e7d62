"""Interactions on their way to the database: a local write-ahead segment, shipped in batches.

A record is appended before the last byte of its reply goes out, so a gateway that is killed, or a
database that is away, loses nothing that a client saw complete. Ids make shipping idempotent. Each
segment is held under a file lock by the process that writes it; a segment without a living owner
is shipped by whoever finds it.

Not covered: power loss within the seconds before the kernel writes its pages out (no fsync), and a
full disk, which drops records, counted and logged, and never holds up a reply.
"""

import asyncio
import fcntl
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from server.core.clock import new_id
from server.core.json_codec import decode_object, encode
from server.core.settings import CaptureSettings
from server.db.session import DATABASE_AWAY, Database
from server.services import interactions, privacy

log = structlog.get_logger(__name__)

BATCH = 500
"""Records in one transaction: far below the number of variables a statement may have."""

RETRY_S = 3.0
"""Pause after a round that failed."""

BAD_RECORD = (
    SQLAlchemyError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)
"""What a record raises that no database will ever take."""

Record = Mapping[str, Any]


class Capture:
    """Takes records at once, ships them in the background."""

    def __init__(self, settings: CaptureSettings, folder: Path, database: Database) -> None:
        self._settings = settings
        self._folder = folder
        self._database = database
        self._segment: Segment | None = None
        self._task: asyncio.Task[None] | None = None
        self._ship_lock = asyncio.Lock()
        self._is_closing = asyncio.Event()
        self.dropped = 0
        """Records lost to a disk that could not take them."""

    async def start(self) -> None:
        """Begin to ship, first what an earlier process left behind."""
        if self._settings.is_enabled:
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
            self._task = asyncio.create_task(self._ship_until_closed(), name="capture-shipper")

    async def close(self) -> None:
        """Ship what there is and stop; what cannot be shipped now stays on disk."""
        if self._task is not None:
            self._is_closing.set()
            await self._task
            self._task = None
            try:
                await self.ship()
            except (SQLAlchemyError, OSError) as error:
                log.warning("capture_left_on_disk", error=str(error)[:300])

    def record(self, record: Record) -> None:
        """Append one record (the columns of ``Interaction``) to the segment; never raises.

        One buffered write of a few kilobytes: microseconds, so it runs on the event loop. What the
        client keeps back (``store: false``) never reaches the disk.
        """
        if not self._settings.is_enabled:
            return
        try:
            if self._segment is None:
                self._segment = Segment.create(self._folder)
            if not privacy.may_keep_content(record):
                record = privacy.without_content(record)
            self._segment.append(record)
        except (OSError, ValueError, RecursionError) as error:
            self.dropped += 1
            log.error("interaction_dropped", error=str(error), dropped=self.dropped)

    async def ship(self) -> int:
        """Move every segment without a living writer to the database; how many records were new."""
        async with self._ship_lock:
            self._rotate()
            shipped = 0
            for path in await asyncio.to_thread(_segments, self._folder):
                with suppress(FileNotFoundError, BlockingIOError):
                    shipped += await self._ship_segment(path)
            return shipped

    def _rotate(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    async def _ship_segment(self, path: Path) -> int:
        segment = await asyncio.to_thread(Segment.open, path)
        try:
            records = await asyncio.to_thread(read_records, path)
            shipped = 0
            for start in range(0, len(records), BATCH):
                shipped += await self._store(records[start : start + BATCH])
            await asyncio.to_thread(path.unlink, missing_ok=True)
            return shipped
        finally:
            segment.close()

    async def _store(self, records: Sequence[Record]) -> int:
        try:
            return await asyncio.to_thread(self._record_all, records)
        except (*DATABASE_AWAY, OSError):
            raise  # the segment waits
        except BAD_RECORD as error:
            if len(records) == 1:
                return await self._store_accounting(records[0], error)
        # One record that the database will not have must not hold up the others.
        return sum([await self._store([record]) for record in records])

    def _record_all(self, records: Sequence[Record]) -> int:
        """One transaction, in a thread: hashing a batch of messages is CPU work for a while."""
        with self._database.unit_of_work() as session:
            return interactions.record_all(session, records)

    async def _store_accounting(self, record: Record, reason: Exception) -> int:
        """The row without its words, where these are what the database will not have."""
        log.error("interaction_content_refused", id=record.get("id"), error=str(reason)[:300])
        try:
            bare = [privacy.without_content(record)]
            return await asyncio.to_thread(self._record_all, bare)
        except (*DATABASE_AWAY, OSError):
            raise
        except BAD_RECORD as error:
            log.error("interaction_refused", id=record.get("id"), error=str(error)[:300])
            return 0

    async def _ship_until_closed(self) -> None:
        while not self._is_closing.is_set():
            pause_s = self._settings.ship_s
            try:
                await self.ship()
            except Exception as error:
                # The named boundary for capture: whatever goes wrong, the segment stays and the
                # next round tries again.
                log.warning("capture_not_shipped", error=str(error)[:300])
                pause_s = max(pause_s, RETRY_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), pause_s)


class Segment:
    """One file of JSON lines, locked by its writer or by whoever ships it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def create(cls, folder: Path) -> "Segment":
        """A new, locked, empty segment."""
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
        """An existing segment, locked.

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


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))
