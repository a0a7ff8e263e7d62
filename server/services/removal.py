"""Files of retired versions: which may go, and what is written down when they have gone."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.db import (
    Adapter,
    AdapterVersion,
    VersionStatus,
)
from server.services import (
    audit,
    registry,
    taint,
)


def removable_versions(
    session: Session, *, after_s: float, now: datetime | None = None
) -> Sequence[AdapterVersion]:
    """Versions that were retired this long ago and still have files."""
    return session.scalars(
        select(AdapterVersion)
        .where(
            AdapterVersion.status == VersionStatus.RETIRED,
            AdapterVersion.files_removed_at.is_(None),
            AdapterVersion.retired_at <= (now or utc_now()) - timedelta(seconds=after_s),
        )
        .order_by(AdapterVersion.retired_at, AdapterVersion.id)
    ).all()


def note_removal(session: Session, version_id: str) -> None:
    """Write down that a retired version's files are gone."""
    version = session.get_one(AdapterVersion, version_id, with_for_update=True)
    if version.files_removed_at is not None:
        return
    version.files_removed_at = utc_now()
    adapter = session.get_one(Adapter, version.adapter_id)
    deletion = taint.deletion_seen_by(session, version.run_id) if version.run_id else None
    name = registry.version_name(adapter.name, version.number)
    detail = {} if deletion is None else {"deletion": deletion.id}
    audit.record(session, audit.SERVER, "version.files_removed", name, detail, owner=adapter.owner)
