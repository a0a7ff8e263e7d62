"""Interactions on their way to the database: a local write-ahead segment, shipped in batches.

A record is appended before the last byte of its reply goes out, so a gateway that is killed, or a
database that is away, loses nothing that a client saw complete. Ids make shipping idempotent. Each
segment is held under a file lock by the process that writes it; a segment without a living owner
is shipped by whoever finds it.

Not covered: power loss within the seconds before the kernel writes its pages out (no fsync), and a
full disk, which drops records, counted and logged, and never holds up a reply.
"""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from server.core.settings import CaptureSettings
from server.db.session import Database
from server.gateway.segments import Record, Segment
from server.gateway.shipping import RETRY_S, Shipper
from server.services import privacy

log = structlog.get_logger(__name__)

SHIPPER_MODULE = "server.ship"
GRACE_S = 8.0
"""How long the shipping process may take over what is left when the gateway stops."""


class Capture:
    """Takes records at once; they are shipped in the background.

    Args:
        ships_apart: by a process of its own, so that storing never takes the interpreter from
            serving; else in threads of this process.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        folder: Path,
        database: Database,
        *,
        ships_apart: bool = False,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._shipper = Shipper(folder, database)
        self._ships_apart = ships_apart
        self._process: asyncio.subprocess.Process | None = None
        self._segment: Segment | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closing = asyncio.Event()
        self.dropped = 0
        """Records lost to a disk that could not take them."""

    async def start(self) -> None:
        """Begin to ship, first what an earlier process left behind."""
        if self._settings.is_enabled:
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
            self._task = asyncio.create_task(self._ship_until_closed(), name="capture")

    async def close(self) -> None:
        """Ship what there is and stop; what cannot be shipped now stays on disk."""
        if self._task is None:
            return
        self._is_closing.set()
        await self._task
        self._task = None
        self._rotate()
        try:
            if self._process is not None:
                await self._end_process(self._process)
            else:
                await self._shipper.ship()
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

    def backlog(self) -> tuple[int, int]:
        """Files that wait for the database, the one being written among them; records lost."""
        return sum(1 for _ in self._folder.glob("*.jsonl")), self.dropped

    async def ship(self) -> int:
        """Move everything to the database from here, now; how many records were new."""
        self._rotate()
        return await self._shipper.ship()

    def _rotate(self) -> None:
        """Let go of the segment, so that it can be shipped."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    async def _ship_until_closed(self) -> None:
        while not self._is_closing.is_set():
            self._rotate()
            work = self._keep_process if self._ships_apart else self._shipper.ship_on
            pause_s = self._settings.ship_s if await work() else RETRY_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), pause_s)

    async def _keep_process(self) -> bool:
        """Start the shipping process when there is none; False when one has died."""
        has_died = self._process is not None and self._process.returncode is not None
        if self._process is None or has_died:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", SHIPPER_MODULE, stdin=asyncio.subprocess.PIPE
                )
            except OSError as error:
                log.error("shipper_not_started", error=str(error))
                return False
        if has_died:
            log.error("shipper_died")
        return not has_died

    async def _end_process(self, process: asyncio.subprocess.Process) -> None:
        """Closing its input tells it to ship what is left, and end."""
        assert process.stdin is not None, "it was started with a pipe"
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), GRACE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            log.warning("capture_left_on_disk", error="the database takes too long")
