"""From the segments into the database, in batches; ids make shipping twice harmless."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from server.db.session import DATABASE_AWAY, Database
from server.gateway.segments import Record, Segment, read_records, segments_in
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


class Shipper:
    """Ships every segment that no living process writes to, whoever wrote it."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder = folder
        self._database = database
        self._lock = asyncio.Lock()

    async def ship(self) -> int:
        """One round; how many records were new."""
        async with self._lock:
            shipped = 0
            for path in await asyncio.to_thread(segments_in, self._folder):
                with suppress(FileNotFoundError, BlockingIOError):
                    shipped += await self._ship_segment(path)
            return shipped

    async def ship_on(self) -> bool:
        """One round that never raises; False when it failed, and the segments wait."""
        try:
            await self.ship()
        except Exception as error:
            # The named boundary for capture: whatever goes wrong, the segment stays and the next
            # round tries again.
            log.warning("capture_not_shipped", error=str(error)[:300])
            return False
        return True

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
