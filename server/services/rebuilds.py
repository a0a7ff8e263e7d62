"""Train an old version again from what its manifest records, to see that it comes out the same.

A rebuild is a run of its own kind: it registers nothing, moves nothing and teaches nothing.
"""

import hashlib
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.manifest import Manifest
from adapters.redaction import redact_secrets
from server.core.clock import new_id
from server.core.errors import NotRebuildable
from server.core.queue import RUN_ADAPTATION, Queue
from server.db import (
    AdaptationRun,
    Adapter,
    AdapterVersion,
    Document,
    Interaction,
    Prompt,
    RunKind,
    RunStatus,
    Task,
    VersionOrigin,
)
from server.db.session import after_commit
from server.services import registry, tasks
from server.services.runs import OPEN

LESSON = "lesson.json"
"""What a run trained, training by training, in the run's folder."""

_MOST_NAMED = 5


def queue_rebuild(
    session: Session,
    adapter: Adapter,
    version: AdapterVersion,
    *,
    requested_by: str,
    queue: Queue,
) -> tuple[AdaptationRun, bool]:
    """Ask for a rebuild; one that is open for this version is returned instead.

    Whether the lesson is there the worker finds out, which has the folder of runs.

    Raises:
        NotRebuildable: something that it takes is not there; see :func:`check_material`.
    """
    session.get_one(Adapter, adapter.id, with_for_update=True)  # one order at a time per line
    if open_run := session.scalar(
        select(AdaptationRun).where(
            AdaptationRun.rebuilds == version.id, AdaptationRun.status.in_(OPEN)
        )
    ):
        return open_run, False
    manifest = check_material(session, adapter, version)
    run = AdaptationRun(
        id=new_id("run"),
        adapter_id=adapter.id,
        kind=RunKind.REBUILD,
        rebuilds=version.id,
        method=manifest.method,
        config=manifest.config,
        requested_by=requested_by,
        status=RunStatus.QUEUED,
    )
    session.add(run)
    session.flush()
    run_id = run.id
    after_commit(session, lambda: queue.send(RUN_ADAPTATION, run_id))
    return run, True


def check_material(session: Session, adapter: Adapter, version: AdapterVersion) -> Manifest:
    """The version's manifest, when everything in the database that a rebuild takes is there.

    Raises:
        NotRebuildable: it was imported, is of another base model, its manifest records too little,
            or it learnt from what was deleted or changed since: that is never learnt from again.
    """
    name = registry.version_name(adapter.name, version.number)
    if version.origin == VersionOrigin.IMPORT:
        raise NotRebuildable(name, "it was imported, and only its maker knows how it was trained.")
    manifest = _manifest_of(version, name)
    if manifest.run_id is None or manifest.lesson_sha256 is None:
        raise NotRebuildable(name, "its manifest is of an older server, and names no lesson.")
    if manifest.base_hash != adapter.base_hash:
        raise NotRebuildable(name, "the base model of its line is another one now.")
    if missing := _missing(session, adapter, version):
        named = ", ".join(missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise NotRebuildable(
            name,
            f"{named}{more} were deleted or changed since, and what was forgotten is not learnt "
            "from again. Learn what is left: `everlearn learn`.",
        )
    return manifest


def lesson_of(
    adapter: Adapter, version: AdapterVersion, manifest: Manifest, *, runs_path: Path
) -> Path:
    """The file of self-edits that the version was trained on.

    Raises:
        NotRebuildable: it is gone, or not the one that was recorded.
    """
    name = registry.version_name(adapter.name, version.number)
    path = runs_path / str(manifest.run_id) / LESSON
    try:
        found = lesson_hash(path)
    except OSError as error:
        raise NotRebuildable(name, f"its lesson {path} cannot be read ({error}).") from error
    if found != manifest.lesson_sha256:
        raise NotRebuildable(name, f"its lesson {path} is not the one that it was trained on.")
    return path


def lesson_hash(path: Path) -> str:
    """sha256 of a lesson's file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_of(version: AdapterVersion, name: str) -> Manifest:
    try:
        return Manifest.model_validate(version.manifest)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise NotRebuildable(name, f"its manifest lacks {field}.") from error


def _missing(session: Session, adapter: Adapter, version: AdapterVersion) -> list[str]:
    """Ids of documents, tasks, prompts and interactions that are not what they were when the version, or
    one that it was trained on from, learnt them."""
    missing: dict[str, None] = {}
    for ancestor in registry.ancestry(session, version):
        if ancestor is None:
            continue
        name = registry.version_name(adapter.name, ancestor.number)
        manifest = _manifest_of(ancestor, name)
        for ref in manifest.documents:
            row = session.get(Document, ref.id)
            if row is None or row.deleted_at is not None or text_hash(row) != ref.sha256:
                missing[ref.id] = None
        for ref in manifest.tasks:
            task = session.get(Task, ref.id)
            if (
                task is None
                or task.deleted_at is not None
                or tasks.content_hash(task) != ref.sha256
            ):
                missing[ref.id] = None
        for prompt_id in manifest.prompts:
            prompt = session.get(Prompt, prompt_id)
            if prompt is None or prompt.deleted_at is not None:
                missing[prompt_id] = None
        for interaction_id in manifest.interactions:
            interaction = session.get(Interaction, interaction_id)
            if interaction is None or interaction.redacted_at is not None:
                missing[interaction_id] = None
    return list(missing)


def text_hash(document: Document) -> str:
    """sha256 of a document's text without secrets, by which a manifest names it."""
    return hashlib.sha256(redact_secrets(document.text).encode()).hexdigest()
