"""Time and ids: the only two places where the process asks the world for something new."""

from datetime import UTC, datetime
from time import monotonic as _monotonic

from uuid_utils import uuid7


def utc_now() -> datetime:
    """The present moment, timezone-aware in UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds on a clock that never steps backwards; for durations only."""
    return _monotonic()


def new_id(prefix: str) -> str:
    """A fresh time-ordered id such as ``doc_0193c1…`` (UUIDv7, RFC 9562).

    Time order keeps index inserts local and lets a listing page by id.
    """
    return f"{prefix}_{uuid7().hex}"
