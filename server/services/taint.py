"""What runs and versions have seen of what was deleted since: read only, asked by everybody.

A run has seen a document, a task, a prompt or an interaction when it took it (``run_documents``,
``run_tasks``, ``run_prompts``, ``run_interactions``) and was begun before the deletion. One that is begun later took what was sent
anew under the same id, which is another document.

A version has seen what its run has seen, and what any version has seen that it was trained on from
(``parent_id``).
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from server.db import (
    AdaptationRun,
    AdapterVersion,
    Deletion,
    DeletionKind,
    Document,
    Prompt,
    RunDocument,
    RunInteraction,
    RunPrompt,
    RunTask,
    Task,
)

_BEGUN = func.coalesce(AdaptationRun.started_at, AdaptationRun.created_at)


def runs_that_saw(session: Session, deletion: Deletion) -> Sequence[AdaptationRun]:
    """Every run that has taken what was deleted, made a version that has seen it, or makes such a
    version again; oldest first."""
    versions = _versions(deletion)
    return session.scalars(
        select(AdaptationRun)
        .where(
            or_(
                AdaptationRun.id.in_(_takers(deletion)),
                AdaptationRun.id.in_(
                    select(AdapterVersion.run_id).where(AdapterVersion.id.in_(versions))
                ),
                AdaptationRun.rebuilds.in_(versions),
            )
        )
        .order_by(AdaptationRun.id)
        .execution_options(populate_existing=True)
    ).all()


def versions_that_saw(session: Session, deletion: Deletion) -> Sequence[AdapterVersion]:
    """The versions of the runs that took it and all trained on from them, by line and number."""
    return session.scalars(
        select(AdapterVersion)
        .where(AdapterVersion.id.in_(_versions(deletion)))
        .order_by(AdapterVersion.adapter_id, AdapterVersion.number)
        .execution_options(populate_existing=True)
    ).all()


def deletion_seen_by(session: Session, run_id: str) -> Deletion | None:
    """The first deletion of what the run has taken, or what its version was trained on from has
    seen; None when everything is still there."""
    run_ids = {run_id} | _runs_before(session, run_id)
    return session.scalar(
        select(Deletion)
        .join(AdaptationRun, AdaptationRun.id.in_(run_ids))
        .where(_has_seen())
        .order_by(Deletion.id)
        .limit(1)
    )


def is_tainted(session: Session, version: AdapterVersion | None) -> bool:
    """Whether a version was trained on something that was deleted since."""
    if version is None or version.run_id is None:
        return False
    return deletion_seen_by(session, version.run_id) is not None


def has_seen_what_was_deleted() -> ColumnElement[bool]:
    """The condition on a run that something it has taken was deleted since."""
    return exists(select(Deletion.id).where(_has_seen()).correlate(AdaptationRun))


def _takers(deletion: Deletion) -> Select[str]:
    """Ids of the runs that have taken what was deleted."""
    return (
        select(AdaptationRun.id)
        .join(Deletion, Deletion.id == deletion.id)
        .where(_has_seen())
        .correlate(None)
    )


def _versions(deletion: Deletion) -> Select[str]:
    """Ids of the versions that have seen it, themselves or before they were trained on."""
    tainted = (
        select(AdapterVersion.id)
        .where(AdapterVersion.run_id.in_(_takers(deletion)))
        .cte("tainted", recursive=True)
    )
    child = aliased(AdapterVersion)
    tainted = tainted.union(select(child.id).join(tainted, child.parent_id == tainted.c.id))
    return select(tainted.c.id)


def _runs_before(session: Session, run_id: str) -> set[str]:
    """The runs of the versions that the run's own version was trained on from, if it has one."""
    line = (
        select(AdapterVersion.parent_id)
        .where(AdapterVersion.run_id == run_id, AdapterVersion.parent_id.is_not(None))
        .cte("line", recursive=True)
    )
    above = aliased(AdapterVersion)
    line = line.union(
        select(above.parent_id)
        .join(line, above.id == line.c.parent_id)
        .where(above.parent_id.is_not(None))
    )
    return set(
        session.scalars(
            select(AdapterVersion.run_id).where(
                AdapterVersion.id.in_(select(line.c.parent_id)), AdapterVersion.run_id.is_not(None)
            )
        )
    )


def _has_seen() -> ColumnElement[bool]:
    """The condition on a run and a deletion that the run has taken what was deleted.

    A tenant's data goes batch by batch, so a run that was begun meanwhile may have taken a
    document that was still there: its own tombstone tells.
    """
    is_earlier = Deletion.created_at >= _BEGUN
    took_document = exists().where(
        RunDocument.run_id == AdaptationRun.id, RunDocument.document_id == Deletion.target
    )
    took_interaction = exists().where(
        RunInteraction.run_id == AdaptationRun.id, RunInteraction.interaction_id == Deletion.target
    )
    took_task = exists().where(
        RunTask.run_id == AdaptationRun.id, RunTask.task_id == Deletion.target
    )
    took_task_of_tenant = exists().where(
        RunTask.run_id == AdaptationRun.id,
        Task.id == RunTask.task_id,
        Task.owner == Deletion.target,
        or_(is_earlier, Task.deleted_at >= _BEGUN),
    )
    took_prompt = exists().where(
        RunPrompt.run_id == AdaptationRun.id, RunPrompt.prompt_id == Deletion.target
    )
    took_prompt_of_tenant = exists().where(
        RunPrompt.run_id == AdaptationRun.id,
        Prompt.id == RunPrompt.prompt_id,
        Prompt.owner == Deletion.target,
        or_(is_earlier, Prompt.deleted_at >= _BEGUN),
    )
    took_of_tenant = exists().where(
        RunDocument.run_id == AdaptationRun.id,
        Document.id == RunDocument.document_id,
        Document.owner == Deletion.target,
        or_(is_earlier, Document.deleted_at >= _BEGUN),
    )
    heard_tenant = exists().where(
        RunInteraction.run_id == AdaptationRun.id, RunInteraction.owner == Deletion.target
    )
    return or_(
        and_(Deletion.kind == DeletionKind.DOCUMENT, is_earlier, took_document),
        and_(Deletion.kind == DeletionKind.INTERACTION, is_earlier, took_interaction),
        and_(Deletion.kind == DeletionKind.TASK, is_earlier, took_task),
        and_(Deletion.kind == DeletionKind.PROMPT, is_earlier, took_prompt),
        and_(
            Deletion.kind == DeletionKind.TENANT,
            or_(
                took_of_tenant,
                took_task_of_tenant,
                took_prompt_of_tenant,
                and_(is_earlier, heard_tenant),
            ),
        ),
    )
