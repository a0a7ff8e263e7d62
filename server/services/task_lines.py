"""Where a task is learnt: on a line of its own, so that it never disturbs what others learn.

A line's version is trained on all that the line learns, from the clean base. A task on the line of
the documents would have to learn them with it, or forget them.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.errors import Conflict, TaskDeleted
from server.core.queue import Queue
from server.core.settings import Settings
from server.db import AdaptationRun, Adapter, LineRole, RunTask, Task
from server.services import bootstrap, methods, runs
from server.services.tenants import sees


def line_name(task_id: str) -> str:
    """The line that a task is learnt on unless another is named."""
    return f"task-{task_id.removeprefix('tsk_')[:12]}"


def queue_task_run(
    session: Session,
    settings: Settings,
    task: Task,
    *,
    adapter: str | None,
    requested_by: str,
    queue: Queue,
) -> tuple[AdaptationRun, bool]:
    """Ask for a run that learns the task, on a line that is made where it is not there yet.

    The line's open run is returned instead, where there is one.

    Raises:
        TaskDeleted: it is forgotten.
        Conflict: the line is another's, learns documents, or learns or has learnt another task.
        InvalidRequest: the settings' rank is above the engine's.
    """
    session.refresh(task, with_for_update=True)  # one order at a time: it may make the line
    if task.deleted_at is not None:
        raise TaskDeleted(task.id)
    line = _line(session, settings, task, adapter or line_name(task.id))
    config = settings.learning.few_shot
    methods.check_ranks(config, settings.engine.max_lora_rank)
    run, is_new = runs.queue_run(
        session,
        line,
        method=config.type,
        config=config.model_dump(mode="json"),
        requested_by=requested_by,
        queue=queue,
        task_id=task.id,
    )
    if is_new or (task.id in runs.tasks_of(session, run.id) and run.cancel_requested_at is None):
        return run, is_new
    # Of another task, deleted or ordered at this very moment, or of this one before it was deleted.
    raise Conflict(
        f"The line {line.name!r} still ends another run ({run.id}); try again when that is over, or "
        "name another line as adapter."
    )


def _line(session: Session, settings: Settings, task: Task, name: str) -> Adapter:
    line = session.scalar(select(Adapter).where(Adapter.name == name))
    if line is None:
        return bootstrap.create_line(session, settings, name, owner=task.owner, role=LineRole.TASK)
    if line.owner != task.owner or line.role != LineRole.TASK:
        # To another tenant the line's kind says nothing: its name is taken, and that is all.
        is_visible = line.owner is None or sees(task.owner, line.owner)
        why = "is no line of a task" if is_visible else "is taken"
        raise Conflict(f"The line {name!r} {why}; name another as adapter, or leave it out.")
    other = session.scalar(
        select(RunTask.task_id)
        .join(AdaptationRun, AdaptationRun.id == RunTask.run_id)
        .join(Task, Task.id == RunTask.task_id)
        .where(
            AdaptationRun.adapter_id == line.id,
            RunTask.task_id != task.id,
            Task.deleted_at.is_(None),
        )
        .limit(1)
    )
    if other is not None:
        raise Conflict(
            f"The line {name!r} learns the task {other}; name another as adapter, or leave it out."
        )
    return line
