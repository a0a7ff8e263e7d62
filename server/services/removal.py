"""Files of retired versions: which may go, and what is written down when they have gone."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

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


def runs_of_idle_lessons(session: Session, version_id: str) -> list[str]:
    """Runs whose lessons are of no use once a version's files are gone: its own, and its ancestors'.

    A version without files is never rebuilt; but what it was taught is asked for as long as one
    that was trained on from it has files.
    """
    idle: list[str] = []
    for version in registry.ancestry(session, session.get_one(AdapterVersion, version_id)):
        if version is None or _has_files_below(session, version):
            break
        if version.run_id is not None:
            idle.append(version.run_id)
    return idle


def _has_files_below(session: Session, version: AdapterVersion) -> bool:
    """Whether the version, or any that was trained on from it, has its files."""
    below = select(AdapterVersion.id).where(AdapterVersion.id == version.id)
    line = below.cte("below", recursive=True)
    child = aliased(AdapterVersion)
    line = line.union(select(child.id).join(line, child.parent_id == line.c.id))
    statement = select(AdapterVersion.id).where(
        AdapterVersion.id.in_(select(line.c.id)), AdapterVersion.files_removed_at.is_(None)
    )
    return session.scalar(statement.limit(1)) is not None
