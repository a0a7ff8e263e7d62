"""What was deleted leaves the disk: lessons that quote it, and the files of retired versions.

Every step looks at rows, engines and folders as they are, so it may be broken off anywhere and is
gone through again by the next tick.
"""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from server.core.clock import utc_now
from server.core.errors import AppError
from server.db import Adapter
from server.engine.control import open_control
from server.services import deletions, fleet, registry, removal
from server.services.rebuilds import LESSON
from server.services.relearning import Orders
from workers import leftovers
from workers.bench import may_be_held
from workers.context import WorkerContext

log = structlog.get_logger(__name__)

ERASE_BATCHES = 4
"""Bounded transactions for one tenant in one tick."""


@dataclass(frozen=True, slots=True)
class Removable:
    """A retired version whose files may go once nobody holds it."""

    id: str
    engine_name: str
    path: Path


def forget(context: WorkerContext) -> None:
    """Move every deletion on as far as it goes now."""
    with context.database.unit_of_work() as session:
        waiting = deletions.unfinished(session)
    for deletion_id in waiting:
        _erase(context, deletion_id)
        with context.database.unit_of_work() as session:
            orders = Orders(context.queue, context.settings.learning)
            deletions.advance(session, deletion_id, orders)


def remove_files(context: WorkerContext) -> None:
    """Remove what retired versions and forgotten lessons have left, and close what is done."""
    for version in _let_go(context, _removable(context)):
        if _remove(context, version):
            with context.database.unit_of_work() as session:
                removal.note_removal(session, version.id)
                session.flush()
                idle = removal.runs_of_idle_lessons(session, version.id)
            for run_id in idle:
                (context.settings.runs_path / run_id / LESSON).unlink(missing_ok=True)
            log.info("version_files_removed", engine_name=version.engine_name)
    with context.database.unit_of_work() as session:
        waiting = deletions.unfinished(session)
    for deletion_id in waiting:
        _remove_lessons(context, deletion_id)


def _erase(context: WorkerContext, deletion_id: str) -> None:
    """Go on with a tenant whose deletion was broken off, or whose last rows came late."""
    for _ in range(ERASE_BATCHES):
        with context.database.unit_of_work() as session:
            if not deletions.erase_late(session, deletion_id):
                return


def _removable(context: WorkerContext) -> list[Removable]:
    with context.database.unit_of_work() as session:
        versions = removal.removable_versions(session, after_s=context.settings.swap.remove_after_s)
        return [
            Removable(
                id=version.id,
                engine_name=registry.engine_name(
                    session.get_one(Adapter, version.adapter_id).name, version
                ),
                path=Path(version.path),
            )
            for version in versions
        ]


def _let_go(context: WorkerContext, versions: Sequence[Removable]) -> list[Removable]:
    """Those that no gateway uses and no engine holds; an engine that does is asked to let go."""
    with context.database.unit_of_work() as session:
        now, revision = utc_now(), registry.snapshot_revision(session)
        unused = [
            version
            for version in versions
            if fleet.is_let_go(session, version.engine_name, revision, now=now)
        ]
        urls = list(fleet.wanted(session)) or context.settings.engine.urls  # one that drains, too
    if not unused:
        return []
    try:
        asyncio.run(_unload(context, unused, urls))
    except AppError as error:  # an engine that does not answer may hold any, and may come back
        log.warning("version_files_kept", versions=len(unused), why=str(error))
        return []
    return unused


async def _unload(
    context: WorkerContext, versions: Sequence[Removable], urls: Sequence[str]
) -> None:
    """Have every engine hold none of them.

    Raises:
        EngineError: one of them does not answer, or will not let go.
    """
    names = {version.engine_name for version in versions}
    for url in urls:
        async with open_control(context.settings.engine, url) as control:
            for held in names & {model.name for model in await control.models()}:
                await control.unload_adapter(held)


def _remove(context: WorkerContext, version: Removable) -> bool:
    """Take the folder's name first, so that nothing ever loads half of it."""
    root, folder = context.settings.artifacts_path, version.path
    if not folder.is_relative_to(root) or ".." in folder.parts:
        if not folder.exists():
            return True
        log.warning("version_files_kept", path=str(folder), why="outside the adapters' folder")
        return False
    hidden = folder.with_name(f".{folder.name}-removed")
    try:
        if folder.exists():
            folder.rename(hidden)
        if hidden.exists():
            shutil.rmtree(hidden)
    except OSError as error:
        log.warning("version_files_kept", path=str(folder), why=str(error))
        return False
    return True


def _remove_lessons(context: WorkerContext, deletion_id: str) -> None:
    with context.database.unit_of_work() as session:
        over = deletions.runs_with_lessons(session, deletions.get_deletion(session, deletion_id))
    gone = set()
    for run_id in over:
        folder = context.settings.runs_path / run_id
        held = [scratch for scratch in folder.glob("attempt-*") if may_be_held(scratch)]
        if held and not leftovers.let_go(context, held):
            continue
        try:
            if folder.exists():
                shutil.rmtree(folder)
        except OSError as error:
            log.warning("lesson_kept", path=str(folder), why=str(error))
        else:
            gone.add(run_id)
    with context.database.unit_of_work() as session:
        deletions.settle(session, deletion_id, without_lessons=gone)
