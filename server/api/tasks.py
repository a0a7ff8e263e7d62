"""/api/v1/tasks: tasks given by examples; send them, see them, have one learnt, forget it."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from adapters.spec import FewShotConfig
from adapters.task_prompts import fitting_prompt, longest_output, room_of, task_prompt
from adapters.types import Task as PlainTask
from server.api.deletions import go_on
from server.api.deps import Admin, Ingest, ReadOrIngest, RequestId, RuntimeDep
from server.api.schemas.base import Page, Text
from server.api.schemas.deletions import DeletedTaskView
from server.api.schemas.runs import RunView
from server.api.schemas.tasks import LearnTaskBody, PairBody, TaskBody, TaskDetail, TaskView
from server.api.views import run_view, task_view
from server.core.errors import TaskInvalid
from server.db import Task, TaskState
from server.services import audit, deletions, runs, task_lines, tasks
from server.services.tasks import Pair, TaskUpload

router = APIRouter(prefix="/tasks", tags=["tasks"])

_INPUT = "{input}"


@router.post("", status_code=201, responses={200: {"model": TaskDetail}, 400: {}, 413: {}})
async def create_task(
    body: TaskBody, response: Response, runtime: RuntimeDep, actor: Ingest
) -> TaskDetail:
    """Send a task. The same again answers 200 with the same id. Nothing is learnt until it is asked for."""
    task = tasks.checked(_upload(body))
    config = runtime.settings.learning.few_shot

    def accept(session: Session) -> tuple[TaskDetail, bool]:
        row, is_new = tasks.accept(session, task, owner=actor.owner, created_by=actor.id)
        session.flush()
        return _detail(session, row, config), is_new

    view, is_new = await runtime.database.run(accept)
    response.status_code = 201 if is_new else 200
    return view


@router.get("", responses={400: {}})
async def list_tasks(
    runtime: RuntimeDep,
    actor: ReadOrIngest,
    state: TaskState | None = None,
    after: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page:
    """Newest first, without the deleted; ``after`` takes the ``next`` of the page before."""

    def read(session: Session) -> Page:
        page = tasks.list_tasks(session, tenant=actor.owner, state=state, after=after, limit=limit)
        return Page(data=[task_view(session, row) for row in page.rows], next=page.next)

    return await runtime.database.read(read)


@router.get("/{task_id}", responses={404: {}})
async def get_task(task_id: Text, runtime: RuntimeDep, actor: ReadOrIngest) -> TaskDetail:
    """One task with its examples and tests, its line, and the prompt to ask it with."""
    config = runtime.settings.learning.few_shot

    def read(session: Session) -> TaskDetail:
        return _detail(session, tasks.get_task(session, task_id, tenant=actor.owner), config)

    return await runtime.database.read(read)


@router.post(
    "/{task_id}/learn",
    status_code=202,
    responses={200: {"model": RunView}, 400: {}, 404: {}, 409: {}},
)
async def learn_task(
    task_id: Text,
    body: LearnTaskBody,
    response: Response,
    runtime: RuntimeDep,
    actor: Admin,
    request_id: RequestId,
) -> RunView:
    """Learn the task now, on a line of its own. A run of that line that is open is returned with 200."""

    def start(session: Session) -> tuple[RunView, bool]:
        task = tasks.get_task(session, task_id, tenant=actor.owner)
        run, is_new = task_lines.queue_task_run(
            session,
            runtime.settings,
            task,
            adapter=body.adapter,
            requested_by=actor.label,
            queue=runtime.queue,
        )
        if is_new:
            line = runs.line_of(session, run)
            detail = {"adapter": line.name, "task": task.id}
            audit.record(session, actor, "run.start", run.id, detail, request_id, owner=line.owner)
        session.flush()
        return run_view(session, run), is_new

    view, is_new = await runtime.database.run(start)
    response.status_code = 202 if is_new else 200
    await runtime.refresh()  # the line may be new
    return view


@router.delete("/{task_id}", responses={404: {}})
async def delete_task(
    task_id: Text,
    runtime: RuntimeDep,
    actor: Admin,
    request_id: RequestId,
    rebuild: bool = False,
) -> DeletedTaskView:
    """Forget its examples. The answer names every version that was trained on it.

    With ``rebuild``, the base serves again on its line, and those versions are retired.
    """

    def forget(session: Session) -> tuple[TaskView, str]:
        row, deletion = deletions.forget_task(
            session, actor, task_id, rebuild=rebuild, request_id=request_id
        )
        return task_view(session, row), deletion.id

    view, deletion_id = await runtime.database.run(forget)
    deletion = await go_on(runtime, deletion_id)
    return DeletedTaskView(**view.model_dump(), deletion=deletion)


def _upload(body: TaskBody) -> TaskUpload:
    """The task of either form: ours, or ARC's ``train`` and ``test``."""
    is_arc = body.train is not None or body.test is not None
    if is_arc and (body.examples is not None or body.tests is not None):
        raise TaskInvalid(
            "Send examples and tests, or ARC's train and test, and not both.", "train"
        )
    examples, given_tests = (body.train, body.test) if is_arc else (body.examples, body.tests)
    return TaskUpload(
        examples=_pairs(examples),
        tests=_pairs(given_tests),
        title=body.title or body.name,
        instruction=body.instruction,
        form=body.form or ("grid" if is_arc else None),
        fields=("train", "test") if is_arc else ("examples", "tests"),
    )


def _pairs(given: list[PairBody] | None) -> list[Pair]:
    return [(pair.input, pair.output) for pair in given or ()]


def _detail(session: Session, row: Task, config: FewShotConfig) -> TaskDetail:
    task = tasks.plain(row)
    return TaskDetail(
        **task_view(session, row).model_dump(),
        instruction=row.instruction,
        examples=row.examples,
        tests=row.tests,
        prompt="" if row.deleted_at else _template(task, config),
    )


def _template(task: PlainTask, config: FewShotConfig) -> str:
    """The prompt of the exam, with a placeholder for the input."""
    room = room_of(task, config.training.max_tokens) - 2 * longest_output(task)
    shown = task.examples[: config.shown]
    return fitting_prompt(task, shown, _INPUT, room=room) or task_prompt(task, (), _INPUT)
