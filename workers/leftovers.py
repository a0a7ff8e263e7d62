"""What runs leave behind: working files of those that are over, and all that killed workers left.

A worker that is killed unloads no throw-away adapter and removes no folder. Whose they are is in
their names, and whether that attempt is at work still is in the run's row, so any worker may tidy up
after any other. Files that an engine may hold go only after it has let go.
"""

import asyncio
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import select

from server.core.errors import AppError
from server.db import AdaptationRun, AdapterVersion
from server.engine.control import open_control
from server.services import fleet, runs
from server.services.rebuilds import LESSON
from server.services.runs import Claim
from workers.bench import attempt_of, claim_of_try, may_be_held
from workers.context import WorkerContext

log = structlog.get_logger(__name__)

_PENDING = re.compile(r"\.(?P<run>run_[a-z0-9_]+)-(?P<attempt>[0-9]+)")
"""An artifact that was not entered yet."""


_AT_ONCE = 500
"""Runs that are looked up together."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run has come."""

    attempt: int
    is_over: bool
    has_version: bool

    def has_left(self, attempt: int) -> bool:
        """Whether nobody is at work on this attempt any more."""
        return self.is_over or attempt < self.attempt


def tidy(context: WorkerContext) -> None:
    """Remove what nobody needs any more from the folders of runs and of lines."""
    _tidy_runs(context)
    _tidy_lines(context)


def _tidy_runs(context: WorkerContext) -> None:
    """Of a run that is over the lesson stays, where a version came of it; of one at work its files."""
    left: dict[Path, list[Path]] = {}
    folders = [
        folder
        for folder in _folders(context.settings.runs_path)
        if folder.name not in context.tidied
    ]
    standings = _standings(context, [folder.name for folder in folders])
    for folder in folders:
        standing = standings.get(folder.name)
        if standing is None:  # not of this database
            continue
        left[folder] = list(_leftovers(folder, standing))
        if standing.is_over and not left[folder]:
            context.tidied.add(folder.name)
            _remove_if_empty(folder)
    scratches = [path for paths in left.values() for path in paths if may_be_held(path)]
    held = set(scratches) - set(let_go(context, scratches))
    for paths in left.values():
        if any(path in held for path in paths):
            continue  # what it has trained may be held as well
        for path in paths:
            _remove(path)


def let_go(context: WorkerContext, scratches: Sequence[Path]) -> Sequence[Path]:
    """Have every engine forget the throw-away adapters of these attempts, which nobody works at.

    Returns the scratch folders whose files may go: all of them, or none while an engine is silent.
    """
    claims = {Claim(path.parent.name, attempt_of(path) or 0) for path in scratches}
    if not claims:
        return scratches
    with context.database.unit_of_work() as session:
        urls = list(fleet.wanted(session)) or context.settings.engine.urls
    try:
        asyncio.run(_unload(context, claims, urls))
    except AppError as error:
        log.warning("trial_adapters_kept", attempts=len(claims), why=str(error))
        return []
    return scratches


async def _unload(context: WorkerContext, claims: Collection[Claim], urls: Sequence[str]) -> None:
    for url in urls:
        async with open_control(context.settings.engine, url) as control:
            for model in await control.models():
                if claim_of_try(model.name) in claims:
                    await control.unload_adapter(model.name)
                    log.info("trial_adapter_unloaded", engine_name=model.name, url=url)


def _tidy_lines(context: WorkerContext) -> None:
    """Artifacts that an attempt was making when its worker was killed."""
    pending = [
        (folder, match)
        for line in _folders(context.settings.artifacts_path)
        for folder in _folders(line)
        if (match := _PENDING.fullmatch(folder.name)) is not None
    ]
    standings = _standings(context, [match["run"] for _, match in pending])
    for folder, match in pending:
        standing = standings.get(match["run"])
        if standing is not None and standing.has_left(int(match["attempt"])):
            _remove(folder)


def _standings(context: WorkerContext, run_ids: Sequence[str]) -> dict[str, Standing]:
    """By run; nothing of one that this database does not know."""
    found: dict[str, Standing] = {}
    with context.database.look() as session:
        for first in range(0, len(run_ids), _AT_ONCE):
            rows = session.execute(
                select(AdaptationRun.id, AdaptationRun.attempt, AdaptationRun.status)
                .add_columns(AdapterVersion.id)
                .outerjoin(AdapterVersion, AdapterVersion.run_id == AdaptationRun.id)
                .where(AdaptationRun.id.in_(run_ids[first : first + _AT_ONCE]))
            )
            for run_id, attempt, status, version_id in rows:
                is_over = status not in runs.OPEN
                found[run_id] = Standing(attempt, is_over, has_version=version_id is not None)
    return found


def _leftovers(folder: Path, standing: Standing) -> Iterator[Path]:
    for path in _entries(folder):
        attempt = attempt_of(path)
        is_lesson = path.name == LESSON and standing.has_version
        if (
            standing.has_left(attempt)
            if attempt is not None
            else standing.is_over and not is_lesson
        ):
            yield path


def _folders(of: Path) -> list[Path]:
    return [path for path in _entries(of) if path.is_dir()]


def _entries(of: Path) -> list[Path]:
    try:
        return list(of.iterdir())
    except FileNotFoundError:  # another worker tidies up as well
        return []


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("leftover_kept", path=str(path), why=str(error))
    else:
        log.info("leftover_removed", path=str(path))
