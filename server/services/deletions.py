"""Forgetting: a tombstone at once, and then, step by step, every version that has seen it.

A deletion is a row that says what was deleted and how far forgetting it has come. The act itself
(:func:`forget_document` and its like) is one transaction; what follows from it is done by
:func:`advance`, as far as it goes at that moment, as often as it is called, and by the worker,
which removes files. Nothing is remembered but the row, so a restart loses nothing.

Steps of one transaction each: whoever deletes a document holds its lock, and whoever ends a run
holds the run's and then wants its documents'.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import groupby

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from server.core.clock import new_id, utc_now
from server.core.errors import RowNotFound, RunNotCancellable
from server.db import (
    AdaptationRun,
    Adapter,
    AdapterVersion,
    ApiKey,
    Deletion,
    DeletionKind,
    DeletionState,
    Document,
    Feedback,
    Interaction,
    Prompt,
    Task,
)
from server.services import (
    audit,
    documents,
    interactions,
    messages,
    prompts,
    registry,
    runs,
    taint,
    tasks,
)
from server.services.keys import Principal
from server.services.paging import Page, page_of
from server.services.relearning import LineWithout, Orders, is_broken_off, record
from server.services.tenants import only, owner_for, sees

DOCUMENTS_AT_ONCE = 100
INTERACTIONS_AT_ONCE = 500
"""Rows of a tenant in one transaction, so that nobody waits for long."""

AT_ONCE = 50
"""Deletions of a state that one tick looks at."""

LATE_ARRIVALS = timedelta(seconds=10)
"""A tenant's deletion is open for at least this long: what its gateways had not shipped yet."""


def forget_document(
    session: Session,
    principal: Principal,
    document_id: str,
    *,
    rebuild: bool = False,
    request_id: str | None = None,
) -> tuple[Document, Deletion]:
    """Take a document from all that is learnt from now on; doing it twice is one deletion.

    Raises:
        RowNotFound: no such document, or another tenant's.
    """
    document = documents.get_document(session, document_id, tenant=principal.owner)
    documents.lock_for_deleting(session, [document_id], owner=document.owner)
    session.refresh(document)
    was_deleted = document.deleted_at is not None
    documents.delete_document(session, document_id, tenant=principal.owner)
    session.flush()
    known = _latest(session, DeletionKind.DOCUMENT, document_id) if was_deleted else None
    deletion = known or _open(
        session, principal, DeletionKind.DOCUMENT, document_id, document.owner, rebuild=rebuild
    )
    _tell(session, principal, deletion, request_id, is_new=known is None, rebuild=rebuild)
    return document, deletion


def _tell(
    session: Session,
    principal: Principal,
    deletion: Deletion,
    request_id: str | None,
    *,
    is_new: bool,
    rebuild: bool,
) -> None:
    """Record a deletion that was opened now; one of before may get the rebuild that it lacked."""
    if is_new:
        _record_opening(session, principal, deletion, request_id)
    elif rebuild:
        order_rebuild(session, principal, deletion, request_id=request_id)


def forget_task(
    session: Session,
    principal: Principal,
    task_id: str,
    *,
    rebuild: bool = False,
    request_id: str | None = None,
) -> tuple[Task, Deletion]:
    """Take a task's examples from all that is learnt from now on; twice is one deletion.

    Raises:
        RowNotFound: no such task, or another tenant's.
    """
    task = tasks.get_task(session, task_id, tenant=principal.owner)
    session.refresh(task, with_for_update=True)
    was_deleted = task.deleted_at is not None
    tasks.delete_task(session, task_id, tenant=principal.owner)
    session.flush()
    known = _latest(session, DeletionKind.TASK, task_id) if was_deleted else None
    deletion = known or _open(
        session, principal, DeletionKind.TASK, task_id, task.owner, rebuild=rebuild
    )
    _tell(session, principal, deletion, request_id, is_new=known is None, rebuild=rebuild)
    return task, deletion


def forget_prompt(
    session: Session,
    principal: Principal,
    prompt_id: str,
    *,
    rebuild: bool = False,
    request_id: str | None = None,
) -> tuple[Prompt, Deletion]:
    """Take a prompt from all that is learnt from now on; twice is one deletion.

    Raises:
        RowNotFound: no such prompt, or another tenant's.
    """
    prompt = prompts.get_prompt(session, prompt_id, tenant=principal.owner)
    session.refresh(prompt, with_for_update=True)
    was_deleted = prompt.deleted_at is not None
    prompts.delete_prompt(session, prompt_id, tenant=principal.owner)
    session.flush()
    known = _latest(session, DeletionKind.PROMPT, prompt_id) if was_deleted else None
    deletion = known or _open(
        session, principal, DeletionKind.PROMPT, prompt_id, prompt.owner, rebuild=rebuild
    )
    _tell(session, principal, deletion, request_id, is_new=known is None, rebuild=rebuild)
    return prompt, deletion


def forget_interaction(
    session: Session,
    principal: Principal,
    interaction_id: str,
    *,
    rebuild: bool = False,
    request_id: str | None = None,
) -> Deletion:
    """Delete an interaction with its feedback, its copies, and the messages nothing else reaches.

    Raises:
        RowNotFound: no such interaction, or another tenant's.
    """
    row = interactions.delete_interaction(session, principal, interaction_id)
    deletion = _open(
        session, principal, DeletionKind.INTERACTION, row.id, row.owner, rebuild=rebuild
    )
    _record_opening(session, principal, deletion, request_id)
    return deletion


def forget_tenant(
    session: Session,
    principal: Principal,
    owner: str,
    *,
    rebuild: bool = False,
    request_id: str | None = None,
) -> Deletion:
    """Open the deletion of all that a tenant has sent; :func:`erase_batch` does it bit by bit.

    Keys and lines stay.

    Raises:
        ForeignTenant: an admin of one tenant names another.
        RowNotFound: nothing here is this tenant's.
    """
    owner_for(principal.owner, owner)
    if not _is_known(session, owner):
        raise RowNotFound("tenant", owner, "Tenants are the owners of keys: GET /api/v1/keys.")
    deletion = _open(session, principal, DeletionKind.TENANT, owner, owner, rebuild=rebuild)
    _record_opening(session, principal, deletion, request_id)
    return deletion


def erase_batch(session: Session, deletion: Deletion) -> int:
    """Delete some of a tenant's rows from before its deletion; 0 when none is left."""
    owner, until = deletion.target, deletion.created_at
    live = (
        select(Document.id)
        .where(
            Document.owner == owner,
            Document.deleted_at.is_(None),
            Document.created_at <= until,
        )
        .order_by(Document.id)
        .limit(DOCUMENTS_AT_ONCE)
    )
    document_ids = session.scalars(live).all()
    if document_ids:
        documents.lock_for_deleting(session, document_ids, owner=owner)
    for document_id in document_ids:
        documents.delete_document(session, document_id, tenant=None)
    if document_ids:
        return len(document_ids)
    task_ids = session.scalars(
        select(Task.id)
        .where(Task.owner == owner, Task.deleted_at.is_(None), Task.created_at <= until)
        .order_by(Task.id)
        .limit(DOCUMENTS_AT_ONCE)
    ).all()
    for task_id in task_ids:
        tasks.delete_task(session, task_id, tenant=None)
    if task_ids:
        return len(task_ids)
    prompt_ids = session.scalars(
        select(Prompt.id)
        .where(Prompt.owner == owner, Prompt.deleted_at.is_(None), Prompt.created_at <= until)
        .order_by(Prompt.id)
        .limit(DOCUMENTS_AT_ONCE)
    ).all()
    for prompt_id in prompt_ids:
        prompts.delete_prompt(session, prompt_id, tenant=None)
    if prompt_ids:
        return len(prompt_ids)
    messages.lock_for_deleting(session)
    kept = (
        select(Interaction)
        .where(Interaction.owner == owner, Interaction.created_at <= until)
        .order_by(Interaction.created_at, Interaction.id)
        .limit(INTERACTIONS_AT_ONCE)
    )
    rows = session.scalars(kept).all()
    interactions.delete_rows(session, rows)
    waiting = delete(Feedback).where(
        Feedback.owner == owner, Feedback.interaction_id.is_(None), Feedback.created_at <= until
    )
    session.execute(waiting)
    return len(rows)


def erase_late(session: Session, deletion_id: str) -> int:
    """:func:`erase_batch` where the deletion is a tenant's; 0 when there is nothing to do."""
    deletion = session.get_one(Deletion, deletion_id)
    return erase_batch(session, deletion) if deletion.kind == DeletionKind.TENANT else 0


def order_rebuild(
    session: Session, principal: Principal, deletion: Deletion, *, request_id: str | None = None
) -> None:
    """Ask for versions without what was deleted; changes nothing where that is under way or done."""
    session.refresh(deletion, with_for_update=True)
    if deletion.state != DeletionState.OPEN:
        return
    deletion.is_rebuild = True
    deletion.state = DeletionState.REBUILDING
    deletion.run_ids = []
    deletion.reason = ""
    record(session, principal, "deletion.rebuild", deletion.id, deletion, request_id=request_id)


def get_deletion(session: Session, deletion_id: str, *, tenant: str | None = None) -> Deletion:
    """A deletion that ``tenant`` may see.

    Raises:
        RowNotFound: no such deletion, or another tenant's.
    """
    deletion = session.get(Deletion, deletion_id)
    if deletion is None or not sees(tenant, deletion.owner):
        raise RowNotFound("deletion", deletion_id, "List them: `everlearn deletions`.")
    return deletion


def list_deletions(
    session: Session,
    *,
    tenant: str | None = None,
    state: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Page[Deletion]:
    """Those that ``tenant`` may see, newest first.

    Raises:
        InvalidRequest: ``after`` is no cursor.
    """
    statement: Select[Deletion] = select(Deletion).where(only(Deletion.owner, tenant))
    if state is not None:
        statement = statement.where(Deletion.state == state)
    return page_of(session, statement, Deletion, after=after, limit=limit)


def unfinished(session: Session) -> list[str]:
    """Ids of deletions that may move on: those that are rebuilt, and some of those that wait.

    Of the latter there may be any number, for as long as nobody asks for a rebuild; so they are
    drawn by chance, and each of them has its turn.
    """
    rebuilding = (
        select(Deletion.id)
        .where(Deletion.state == DeletionState.REBUILDING)
        .order_by(Deletion.id)
        .limit(AT_ONCE)
    )
    waiting = (
        select(Deletion.id)
        .where(Deletion.state == DeletionState.OPEN)
        .order_by(func.random())
        .limit(AT_ONCE)
    )
    return [*session.scalars(rebuilding), *session.scalars(waiting)]


def advance(session: Session, deletion_id: str, orders: Orders) -> Deletion:
    """Do what is due: stop runs that have taken it, queue runs without it, retire what saw it.

    Doing it again changes nothing. Where a rebuild was asked for and what serves has not seen it,
    every version that has is retired; one that serves never is.
    """
    deletion = session.get_one(Deletion, deletion_id, with_for_update=True)
    if deletion.state == DeletionState.DONE:
        return deletion
    seen_by = taint.runs_that_saw(session, deletion)
    _stop(session, deletion, seen_by)
    deletion.version_ids = [version.id for version in taint.versions_that_saw(session, deletion)]
    if deletion.is_rebuild:
        _rebuild(session, deletion, seen_by, orders)
    if not seen_by and deletion.kind != DeletionKind.TENANT:
        _finish(session, deletion)
    return deletion


def runs_with_lessons(session: Session, deletion: Deletion) -> list[str]:
    """Runs whose files quote what was deleted, and that nobody works at any more."""
    seen_by = taint.runs_that_saw(session, deletion)
    return [run.id for run in seen_by if run.status not in runs.OPEN]


def settle(
    session: Session,
    deletion_id: str,
    *,
    without_lessons: Collection[str],
    now: datetime | None = None,
) -> bool:
    """Close a deletion when nothing is left of it; True when that is so.

    Args:
        without_lessons: ids of runs whose files are gone.
    """
    deletion = session.get_one(Deletion, deletion_id, with_for_update=True)
    if deletion.state == DeletionState.DONE:
        return True
    is_tenant = deletion.kind == DeletionKind.TENANT
    if is_tenant and (now or utc_now()) < deletion.created_at + LATE_ARRIVALS:
        return False
    if any(run.id not in without_lessons for run in taint.runs_that_saw(session, deletion)):
        return False
    versions = taint.versions_that_saw(session, deletion)
    if any(version.files_removed_at is None for version in versions):
        return False
    _finish(session, deletion)
    return True


def version_names(session: Session, deletion: Deletion) -> list[str]:
    """Public names of the versions that saw what was deleted."""
    versions = [session.get_one(AdapterVersion, one) for one in deletion.version_ids]
    return [
        registry.version_name(session.get_one(Adapter, one.adapter_id).name, one.number)
        for one in versions
    ]


def _open(
    session: Session,
    principal: Principal,
    kind: DeletionKind,
    target: str,
    owner: str | None,
    *,
    rebuild: bool,
) -> Deletion:
    deletion = Deletion(
        id=new_id("del"),
        created_at=utc_now(),  # after the tombstone: every run that has it was begun before
        kind=kind,
        target=target,
        owner=owner,
        state=DeletionState.REBUILDING if rebuild else DeletionState.OPEN,
        version_ids=[],
        run_ids=[],
        is_rebuild=rebuild,
        actor=principal.label,
    )
    session.add(deletion)
    session.flush()
    deletion.version_ids = [version.id for version in taint.versions_that_saw(session, deletion)]
    return deletion


def _record_opening(
    session: Session, principal: Principal, deletion: Deletion, request_id: str | None
) -> None:
    detail = {"versions": version_names(session, deletion), "rebuild": deletion.is_rebuild}
    for action, target in (
        (f"{deletion.kind}.delete", deletion.target),
        ("deletion.open", deletion.id),
    ):
        record(session, principal, action, target, deletion, detail, request_id)


def _latest(session: Session, kind: DeletionKind, target: str) -> Deletion | None:
    return session.scalar(
        select(Deletion)
        .where(Deletion.kind == kind, Deletion.target == target)
        .order_by(Deletion.id.desc())
        .limit(1)
    )


def _is_known(session: Session, owner: str) -> bool:
    return any(
        session.scalar(select(table.id).where(table.owner == owner).limit(1)) is not None
        for table in (ApiKey, Document, Task, Prompt, Adapter, Interaction)
    )


def _stop(session: Session, deletion: Deletion, seen_by: Iterable[AdaptationRun]) -> None:
    """Cancel the open runs among those that have taken it: no version is to come of them."""
    for run in seen_by:
        if run.status not in runs.OPEN or run.cancel_requested_at is not None:
            continue
        try:
            runs.request_cancel(
                session,
                run.id,
                reason=f"What it had learnt was deleted meanwhile ({deletion.id}).",
            )
        except RunNotCancellable:  # it ended by itself just now
            continue
        record(session, audit.SERVER, "run.cancel", run.id, deletion)


def _rebuild(
    session: Session, deletion: Deletion, seen_by: Sequence[AdaptationRun], orders: Orders
) -> None:
    """Line by line, always in the same order; the whole is stuck only when nothing moves."""
    tainted = taint.versions_that_saw(session, deletion)
    by_line = {key: list(rows) for key, rows in groupby(tainted, lambda row: row.adapter_id)}
    broken_off = {run.adapter_id for run in seen_by if is_broken_off(run, deletion)}
    stuck: list[str] = []
    is_moving = False
    for adapter_id in sorted(by_line.keys() | broken_off):
        adapter = session.get_one(Adapter, adapter_id)
        line = LineWithout(
            session,
            deletion,
            adapter,
            tainted=by_line.get(adapter_id, []),
            is_broken_off=adapter_id in broken_off,
            orders=orders,
        )
        outcome = line.advance()
        is_moving |= outcome is None
        if outcome:
            stuck.append(outcome)
    if deletion.state == DeletionState.REBUILDING and stuck and not is_moving:
        deletion.state = DeletionState.OPEN
        deletion.reason = " ".join(stuck)
        record(
            session, audit.SERVER, "deletion.stuck", deletion.id, deletion, {"why": deletion.reason}
        )


def _finish(session: Session, deletion: Deletion) -> None:
    deletion.state = DeletionState.DONE
    deletion.finished_at = utc_now()
    deletion.reason = ""
    record(session, audit.SERVER, "deletion.done", deletion.id, deletion)
