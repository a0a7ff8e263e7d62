"""The life of a run: queued → running → succeeded, failed or cancelled.

Every change is a compare-and-set on status and attempt, so two workers with the same message, or a
worker that was thought dead, cannot both own a run (design 2.5).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from adapters.spec import METHODS, PromptSettings
from server.core.clock import new_id, utc_now
from server.core.errors import (
    InvalidRequest,
    LeaseLost,
    NothingToLearn,
    RowNotFound,
    RunNotCancellable,
)
from server.core.queue import RUN_ADAPTATION, Queue
from server.db import (
    AdaptationRun,
    Adapter,
    Document,
    DocumentState,
    Interaction,
    LineRole,
    Prompt,
    RunDocument,
    RunEvent,
    RunInteraction,
    RunKind,
    RunPrompt,
    RunStatus,
    RunTask,
    Task,
    TaskState,
    VersionStatus,
)
from server.db.session import after_commit
from server.services import documents, promotion, registry, taint, tasks
from server.services.tenants import only, sees

OPEN = (RunStatus.QUEUED, RunStatus.RUNNING)

NO_UPDATE = "no_update"
"""Verdict of a run that found nothing worth teaching; it makes no version."""

HEAL = "heal"
"""The method that teaches nothing new: its runs take what the champion knows, and no more."""
PROMPT_METHODS = frozenset(
    name for name, config in METHODS.items() if issubclass(config, PromptSettings)
)
"""The methods that learn from prompts and from what users said of replies."""
TASK_METHOD = "seal-fewshot"
"""The only method of lines that learn a task."""

EDITOR_METHOD = "seal-editor"
"""The only method of lines that write self-edits."""

MATERIAL_DELETED = "material_deleted"
"""Event of a run that ended early because what it had taken was deleted; its other documents still
wait to be learnt."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Proof that a worker owns a run; the attempt is the fencing token."""

    run_id: str
    attempt: int


def queue_run(
    session: Session,
    adapter: Adapter,
    *,
    method: str,
    config: dict[str, Any],
    requested_by: str,
    queue: Queue,
    policy_id: str | None = None,
    task_id: str | None = None,
    material: dict[str, Any] | None = None,
    reason: dict[str, Any] | None = None,
) -> tuple[AdaptationRun, bool]:
    """Ask for a run over all live documents of the line's owner; its open run is returned instead.

    Args:
        task_id: what it learns instead of documents.
        material: what it learns from, as a ``MaterialSpec``; prompts or feedback are looked for by
            whoever asks.
        reason: why this method.

    Raises:
        NothingToLearn: there is no document.
        InvalidRequest: the line is an editor, and the method not an editor's; or line or method
            are a task's, and no task is named.
    """
    if adapter.role == LineRole.EDITOR and method != EDITOR_METHOD:
        raise InvalidRequest(
            f"{adapter.name} writes self-edits and learns no documents; name the line that it "
            f"writes for, with the method {EDITOR_METHOD}.",
            "adapter",
        )
    session.get_one(Adapter, adapter.id, with_for_update=True)  # one order at a time per line
    if open_run := session.scalar(
        select(AdaptationRun).where(
            AdaptationRun.adapter_id == adapter.id,
            AdaptationRun.kind == RunKind.LEARN,
            AdaptationRun.status.in_(OPEN),
        )
    ):
        return open_run, False
    if task_id is None:
        _assert_learns(session, adapter, method, needs_documents=is_of_documents(material))
    run = AdaptationRun(
        id=new_id("run"),
        adapter_id=adapter.id,
        policy_id=policy_id,
        method=method,
        config=config,
        requested_by=requested_by,
        status=RunStatus.QUEUED,
        material=material or {},
        reason=reason,
    )
    session.add(run)
    session.flush()
    if task_id is not None:
        session.add(RunTask(run_id=run.id, task_id=task_id))
    run_id = run.id
    after_commit(session, lambda: queue.send(RUN_ADAPTATION, run_id))
    return run, True


def claim(
    session: Session, run_id: str, *, worker: str, lease: timedelta, now: datetime | None = None
) -> Claim | None:
    """Take a queued run, or one whose worker has fallen silent; None when it is not to be had."""
    now = now or utc_now()
    claimed = session.execute(
        update(AdaptationRun)
        .where(AdaptationRun.id == run_id, _is_claimable(now - lease))
        .values(
            status=RunStatus.RUNNING,
            worker=worker,
            attempt=AdaptationRun.attempt + 1,
            heartbeat_at=now,
            started_at=func.coalesce(AdaptationRun.started_at, now),
            stage=None,
            done=0,
            total=0,
        )
        .execution_options(synchronize_session=False)
        .returning(AdaptationRun.attempt)
    ).one_or_none()
    if claimed is None:
        return None
    attempt: int = claimed[0]
    add_event(session, run_id, attempt, "claimed", worker=worker)
    return Claim(run_id, attempt)


def take_documents(session: Session, owned: Claim) -> list[str]:
    """Fix what the run learns: all live documents of its line's owner, the first time it is asked.

    No other owner's document ever gets into a run. One that heals takes only those that the
    champion has learnt: of the others its version would know nothing. So does one that learns from
    prompts: they are what its exam asks, so that nothing is lost. What an editor's run makes
    of them is not what users ask for, so it leaves their states alone.
    """
    taken = documents_of(session, owned.run_id)
    run = get_run(session, owned.run_id)
    line = line_of(session, run)
    if not taken:
        live = documents.live_documents(session, owner=line.owner, lock=True)
        taken = [document.id for document in live]
        if learns_no_documents(run.method):
            known = registry.documents_of(session, promotion.champion(session, line))
            taken = [document_id for document_id in taken if document_id in known]
        session.add_all(
            RunDocument(run_id=owned.run_id, document_id=document_id) for document_id in taken
        )
    if line.role == LineRole.SERVE:
        documents.set_states(session, taken, DocumentState.LEARNING)
    return taken


def learns_no_documents(method: str) -> bool:
    """Whether runs of a method take documents only to keep them."""
    return method == HEAL or method in PROMPT_METHODS


def take_tasks(session: Session, owned: Claim) -> Sequence[Task]:
    """The tasks that the run was queued for, which are being learnt now; without deleted ones."""
    taken = session.scalars(
        select(Task)
        .where(Task.id.in_(tasks_of(session, owned.run_id)), Task.deleted_at.is_(None))
        .order_by(Task.id)
        .with_for_update()  # none of them can be deleted before this transaction ends
    ).all()
    tasks.set_states(session, [task.id for task in taken], TaskState.LEARNING)
    return taken


def is_of_documents(material: Mapping[str, Any] | None) -> bool:
    """Whether a run with this material learns documents, or a task: no prompts and no feedback."""
    kind: str = (material or {}).get("kind", "documents")
    return kind == "documents"


def lock_prompts(session: Session, prompt_ids: Collection[str]) -> set[str]:
    """Those that are still there; none of them can be deleted before this transaction ends."""
    chosen = select(Prompt.id).where(Prompt.id.in_(prompt_ids), Prompt.deleted_at.is_(None))
    return set(session.scalars(chosen.order_by(Prompt.id).with_for_update()))


def lock_interactions(session: Session, interaction_ids: Collection[str]) -> set[str]:
    """Those that are still there; none of them can be deleted before this transaction ends."""
    chosen = select(Interaction.id).where(Interaction.id.in_(interaction_ids))
    ordered = chosen.order_by(Interaction.id)
    return set(session.scalars(ordered.with_for_update(read=True, key_share=True)))


def lock_material(session: Session, run_id: str) -> None:
    """Nothing that the run has taken can be deleted before this transaction ends."""
    taken = select(RunDocument.document_id).where(RunDocument.run_id == run_id)
    lock = select(Document.id).where(Document.id.in_(taken)).order_by(Document.id)
    session.execute(lock.with_for_update())
    tasks_taken = select(RunTask.task_id).where(RunTask.run_id == run_id)
    session.execute(
        select(Task.id).where(Task.id.in_(tasks_taken)).order_by(Task.id).with_for_update()
    )
    sent = select(RunPrompt.prompt_id).where(RunPrompt.run_id == run_id)
    lock_prompts(session, session.scalars(sent).all())
    lock_interactions(session, interactions_of(session, run_id))


def heartbeat(
    session: Session,
    owned: Claim,
    *,
    stage: str | None,
    done: int = 0,
    total: int = 0,
    now: datetime | None = None,
) -> bool:
    """Say that the run is alive and where it is. True when somebody asked to cancel it.

    Raises:
        LeaseLost: the run belongs to another worker by now.
    """
    row = session.execute(
        _owned_update(owned)
        .values(heartbeat_at=now or utc_now(), stage=stage, done=done, total=total)
        .returning(AdaptationRun.cancel_requested_at)
    ).one_or_none()
    if row is None:
        raise LeaseLost(owned.run_id, owned.attempt)
    return row[0] is not None


def assert_owned(session: Session, owned: Claim) -> None:
    """Go on only as the run's owner; nobody can take it before this transaction ends.

    Raises:
        LeaseLost: the run belongs to another worker by now.
    """
    row = session.execute(
        _owned_update(owned).values(heartbeat_at=utc_now()).returning(AdaptationRun.id)
    ).one_or_none()
    if row is None:
        raise LeaseLost(owned.run_id, owned.attempt)


def finish(
    session: Session,
    owned: Claim,
    *,
    status: RunStatus,
    verdict: str | None = None,
    report: dict[str, Any] | None = None,
    error: str | None = None,
) -> None:
    """Close a run and say of its documents and tasks whether they were learnt.

    Raises:
        LeaseLost: the run belongs to another worker by now; nothing is changed.
    """
    row = session.execute(
        _owned_update(owned)
        .values(
            status=status,
            verdict=verdict,
            report=report or {},
            error=func.coalesce(error, AdaptationRun.error),
            finished_at=utc_now(),
        )
        .returning(AdaptationRun.id)
    ).one_or_none()
    if row is None:
        raise LeaseLost(owned.run_id, owned.attempt)
    _close_material(session, owned.run_id, is_learnt=verdict == "promote")
    deletion = taint.deletion_seen_by(session, owned.run_id)
    if deletion is not None and status != RunStatus.SUCCEEDED:
        add_event(session, owned.run_id, owned.attempt, MATERIAL_DELETED, deletion=deletion.id)
    version = registry.version_of_run(session, owned.run_id)
    if version is not None and version.status == VersionStatus.CANDIDATE:
        if deletion is None:
            registry.set_status(session, version, VersionStatus.REJECTED)
        else:
            reason = f"What it had learnt was deleted before it could serve ({deletion.id})."
            registry.retire(session, version, reason=reason)
    add_event(session, owned.run_id, owned.attempt, status, verdict=verdict, error=error)


def request_cancel(
    session: Session, run_id: str, *, tenant: str | None = None, reason: str | None = None
) -> AdaptationRun:
    """Stop a run: a queued one at once, a running one at its worker's next heartbeat.

    Args:
        reason: what the run says of its end; nothing when left out.

    Raises:
        RowNotFound: no such run, or not of the tenant's line.
        RunNotCancellable: it is over.
    """
    now = utc_now()
    run = get_run(session, run_id, tenant=tenant)
    ended = session.execute(
        _open_update(run_id, RunStatus.QUEUED)
        .values(status=RunStatus.CANCELLED, cancel_requested_at=now, finished_at=now, error=reason)
        .returning(AdaptationRun.attempt)
    ).one_or_none()
    if ended is not None:
        if run.kind == RunKind.LEARN:
            # What it would have learnt counts as seen, or the policy would start the same run again.
            if is_of_documents(run.material) and not tasks_of(session, run_id):
                take_documents(session, Claim(run_id, ended[0]))
            _close_material(session, run_id, is_learnt=False)
        add_event(session, run_id, ended[0], RunStatus.CANCELLED)
    elif not session.execute(
        _open_update(run_id, RunStatus.RUNNING)
        .values(
            cancel_requested_at=func.coalesce(AdaptationRun.cancel_requested_at, now),
            error=func.coalesce(AdaptationRun.error, reason),
        )
        .returning(AdaptationRun.id)
    ).one_or_none():
        raise RunNotCancellable(run_id, run.status)
    session.refresh(run)
    return run


def sweep(
    session: Session,
    *,
    lease: timedelta,
    max_attempts: int,
    queue: Queue,
    now: datetime | None = None,
) -> list[str]:
    """Send the message of every claimable run again; fail those that killed too many workers."""
    statement = (
        select(AdaptationRun)
        .where(_is_claimable((now or utc_now()) - lease))
        .order_by(AdaptationRun.id)
        .with_for_update(skip_locked=True)  # one that beats at this moment is not silent
    )
    sent = []
    for run in session.scalars(statement).all():
        if run.attempt >= max_attempts:
            finish(
                session,
                Claim(run.id, run.attempt),
                status=RunStatus.FAILED,
                error=f"{run.attempt} workers died or fell silent at it; see the worker's log.",
            )
            continue
        run_id = run.id
        after_commit(session, lambda run_id=run_id: queue.send(RUN_ADAPTATION, run_id))  # type: ignore[misc]
        sent.append(run_id)
    return sent


def add_event(session: Session, run_id: str, attempt: int, kind: str, **data: Any) -> None:
    """Append a line to the run's history."""
    session.add(RunEvent(id=new_id("rev"), run_id=run_id, attempt=attempt, kind=kind, data=data))


def get_run(session: Session, run_id: str, *, tenant: str | None = None) -> AdaptationRun:
    """A run of a line that is ``tenant``'s; None is the operator, who sees all.

    Raises:
        RowNotFound: no such run, or one of a line that is not the tenant's.
    """
    run = session.get(AdaptationRun, run_id)
    if run is None or not sees(tenant, line_of(session, run).owner):
        raise RowNotFound("run", run_id, "List them: `everlearn runs`.")
    return run


def line_of(session: Session, run: AdaptationRun) -> Adapter:
    """The line that a run teaches."""
    return session.get_one(Adapter, run.adapter_id)


def list_runs(
    session: Session,
    *,
    document_id: str | None = None,
    tenant: str | None = None,
    limit: int = 50,
) -> Sequence[AdaptationRun]:
    """Those of ``tenant``'s lines, newest first; optionally those that saw one document."""
    statement = select(AdaptationRun).join(Adapter).where(only(Adapter.owner, tenant))
    statement = statement.order_by(AdaptationRun.id.desc()).limit(limit)
    if document_id is not None:
        statement = statement.join(RunDocument, RunDocument.run_id == AdaptationRun.id).where(
            RunDocument.document_id == document_id
        )
    return session.scalars(statement).all()


def open_run_of(session: Session, adapter: Adapter) -> AdaptationRun | None:
    """The one run of the line that is queued or at work."""
    return session.scalar(
        select(AdaptationRun)
        .where(AdaptationRun.adapter_id == adapter.id, AdaptationRun.status.in_(OPEN))
        .order_by(AdaptationRun.id)
        .limit(1)
        .execution_options(populate_existing=True)
    )


def documents_of(session: Session, run_id: str) -> list[str]:
    return list(
        session.scalars(
            select(RunDocument.document_id)
            .where(RunDocument.run_id == run_id)
            .order_by(RunDocument.document_id)
        )
    )


def tasks_of(session: Session, run_id: str) -> list[str]:
    """Ids of the tasks that a run learns; a run that has any learns no documents."""
    return list(
        session.scalars(
            select(RunTask.task_id).where(RunTask.run_id == run_id).order_by(RunTask.task_id)
        )
    )


def has_material(session: Session, adapter: Adapter) -> bool:
    """Whether a run over documents would have anything to learn, now or in a moment.

    A task's line learns none: its task is learnt when somebody asks for it.
    """
    if adapter.role == LineRole.TASK:
        return False
    return documents.has_material(session, owner=adapter.owner)


def interactions_of(session: Session, run_id: str) -> list[str]:
    """Ids of the interactions that a run saw, for learning or for its exam."""
    return list(
        session.scalars(
            select(RunInteraction.interaction_id)
            .where(RunInteraction.run_id == run_id)
            .order_by(RunInteraction.interaction_id)
        )
    )


def prompts_of(session: Session, run_id: str) -> list[str]:
    """Ids of the prompts, sent for learning, that a run saw; texts are `prompt_material`'s matter."""
    return list(
        session.scalars(
            select(RunPrompt.prompt_id)
            .where(RunPrompt.run_id == run_id)
            .order_by(RunPrompt.prompt_id)
        )
    )


def _is_claimable(silent_since: datetime) -> Any:
    return or_(
        AdaptationRun.status == RunStatus.QUEUED,
        and_(
            AdaptationRun.status == RunStatus.RUNNING,
            AdaptationRun.heartbeat_at < silent_since,
        ),
    )


def _open_update(run_id: str, status: RunStatus) -> Any:
    """An update that happens only while the run is in this state."""
    return (
        update(AdaptationRun)
        .where(AdaptationRun.id == run_id, AdaptationRun.status == status)
        .execution_options(synchronize_session=False)
    )


def _owned_update(owned: Claim) -> Any:
    return (
        update(AdaptationRun)
        .where(
            AdaptationRun.id == owned.run_id,
            AdaptationRun.status == RunStatus.RUNNING,
            AdaptationRun.attempt == owned.attempt,
        )
        .execution_options(synchronize_session=False)
    )


def _assert_learns(
    session: Session, adapter: Adapter, method: str, *, needs_documents: bool
) -> None:
    if method == TASK_METHOD:
        raise InvalidRequest(
            f"{method} learns a task given by examples: POST /api/v1/tasks, then "
            "POST /api/v1/tasks/ID/learn.",
            "method",
        )
    if adapter.role == LineRole.TASK:
        raise InvalidRequest(
            f"{adapter.name} is the line of a task and learns nothing else; learn the task again: "
            "POST /api/v1/tasks/ID/learn, or name another line.",
            "adapter",
        )
    if needs_documents and not documents.has_documents(session, owner=adapter.owner):
        raise NothingToLearn(adapter.name)


def _close_material(session: Session, run_id: str, *, is_learnt: bool) -> None:
    run = get_run(session, run_id)
    line = line_of(session, run)
    if line.role == LineRole.EDITOR:
        return
    serving = promotion.champion(session, line)
    known = registry.documents_of(session, serving)
    for document_id in documents_of(session, run_id):
        state = (
            DocumentState.LEARNT if is_learnt or document_id in known else DocumentState.NOT_LEARNT
        )
        documents.set_states(session, [document_id], state)
    known_tasks = registry.tasks_of(session, serving)
    for task_id in tasks_of(session, run_id):
        is_known = is_learnt or task_id in known_tasks
        tasks.set_states(session, [task_id], TaskState.LEARNT if is_known else TaskState.NOT_LEARNT)
