"""Tasks given by examples: check, accept once, list, forget."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from adapters.grids import format_grid, grid_of, parse_grid
from adapters.task_prompts import input_key
from adapters.types import Example
from adapters.types import Task as PlainTask
from server.core.clock import utc_now
from server.core.errors import RowNotFound, TaskInvalid
from server.db import AdapterVersion, EvaluationResult, RunTask, Task, TaskState
from server.services.documents import DELETED_TITLE
from server.services.paging import Page, page_of
from server.services.tenants import only, sees

MOST_EXAMPLES = 500
"""Examples, and as many tests."""
MOST_CHARS = 20_000
"""Of one input or output."""
MOST_INSTRUCTION_CHARS = 4000
MOST_TOTAL_CHARS = 400_000

_TEST_PART = 3
"""One in so many examples becomes a test where none are given."""
_DERIVED_TITLE_CHARS = 80

Pair = tuple[object, object]
"""Input and output as they were sent: texts, or grids as nested lists."""


@dataclass(frozen=True, slots=True)
class TaskUpload:
    """A task as it arrives."""

    examples: Sequence[Pair]
    tests: Sequence[Pair] = ()
    title: str | None = None
    instruction: str = ""
    form: str | None = None
    """``text`` or ``grid``; None: grid where everything is a list."""
    fields: tuple[str, str] = ("examples", "tests")
    """What the sender called the two lists; errors name them."""


@dataclass(frozen=True, slots=True)
class CheckedTask:
    """A task that can be learnt: no pair twice, none on both sides."""

    title: str
    instruction: str
    form: str
    examples: tuple[Example, ...]
    tests: tuple[Example, ...]

    @property
    def content(self) -> str:
        """What makes it this task and no other; the title does not."""
        return _canonical(self.instruction, self.form, self.examples, self.tests)


def checked(upload: TaskUpload) -> CheckedTask:
    """The task in the form in which it is kept.

    Where no tests are given, one example in three, at least one, becomes a test, drawn by the hash of
    its input.

    Raises:
        TaskInvalid: what is wrong, of which field, and what helps.
    """
    first, second = upload.fields
    form = upload.form or ("grid" if _all_lists(upload) else "text")
    if not upload.examples:
        raise TaskInvalid(f"{first} is empty. Send pairs of input and output.", first)
    if len(upload.instruction) > MOST_INSTRUCTION_CHARS:
        raise TaskInvalid(
            f"The instruction has more than {MOST_INSTRUCTION_CHARS} characters; shorten it.",
            "instruction",
        )
    _check_storable(upload.instruction, "instruction")
    examples = _pairs(upload.examples, form, first)
    tests = _pairs(upload.tests, form, second)
    _check_total((*examples, *tests), first)
    examples = _consistent(examples, first)
    tests = _consistent(tests, second)
    taught = {input_key(example.input, form) for example in examples}
    for number, test in enumerate(tests):
        if input_key(test.input, form) in taught:
            raise TaskInvalid(
                f"{second}.{number}.input stands among {first} too. A test that is taught tests "
                "nothing: leave it out on one side.",
                f"{second}.{number}.input",
            )
    if not tests:
        examples, tests = _split(examples, form, first, second)
    title = (upload.title or upload.instruction.strip().partition("\n")[0])[:_DERIVED_TITLE_CHARS]
    return CheckedTask(
        upload.title or title or "Untitled", upload.instruction, form, examples, tests
    )


def accept(
    session: Session, task: CheckedTask, *, owner: str | None, created_by: str
) -> tuple[Task, bool]:
    """Store a task, unless its owner has sent it already; True when it is new.

    The id follows from owner and content. One that was deleted begins anew.
    """
    digest = hashlib.blake2b(f"{owner or ''}\0{task.content}".encode(), digest_size=16)
    task_id = f"tsk_{digest.hexdigest()}"
    same = select(Task).where(Task.id == task_id)
    row = session.scalar(same)
    is_new = row is None or row.deleted_at is not None
    if row is None:
        row = Task(id=task_id, owner=owner)
        _fill(row, task, created_by)
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:  # the same came by another request at the same moment
            return session.scalars(same).one(), False
    elif is_new:
        _fill(row, task, created_by)
    return row, is_new


def get_task(session: Session, task_id: str, *, tenant: str | None = None) -> Task:
    """A task that ``tenant`` may see; None is the operator, who sees all.

    Raises:
        RowNotFound: no such task, or another tenant's.
    """
    task = session.get(Task, task_id)
    if task is None or not sees(tenant, task.owner):
        raise RowNotFound("task", task_id, "List them: `everlearn tasks list`.")
    return task


def list_tasks(
    session: Session,
    *,
    tenant: str | None = None,
    state: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Page[Task]:
    """Those that ``tenant`` may see and that are not deleted, newest first.

    Raises:
        InvalidRequest: ``after`` is no cursor.
    """
    statement = select(Task).where(only(Task.owner, tenant), Task.deleted_at.is_(None))
    if state is not None:
        statement = statement.where(Task.state == state)
    return page_of(session, statement, Task, after=after, limit=limit)


def delete_task(session: Session, task_id: str, *, tenant: str | None) -> Task:
    """Forget what a task says; its row stays, to name the versions that saw it.

    Examples and tests go, and what exams quoted of them. Doing it twice changes nothing.

    Raises:
        RowNotFound: no such task, or another tenant's.
    """
    task = get_task(session, task_id, tenant=tenant)
    session.refresh(task, with_for_update=True)  # a run that takes it now is waited for
    session.execute(delete(EvaluationResult).where(EvaluationResult.document_id == task_id))
    task.title = DELETED_TITLE
    task.instruction = ""
    task.examples = []
    task.tests = []
    task.deleted_at = task.deleted_at or utc_now()
    return task


def set_states(session: Session, task_ids: Iterable[str], state: TaskState) -> None:
    """Note what a run makes of its tasks, but for those deleted, or sent anew, meanwhile."""
    chosen = update(Task).where(Task.id.in_(list(task_ids)), Task.deleted_at.is_(None))
    if state is not TaskState.LEARNING:  # what no run is at work on has nothing to come of it
        chosen = chosen.where(Task.state == TaskState.LEARNING)
    session.execute(chosen.values(state=state))


def versions_that_saw(session: Session, task_id: str) -> Sequence[AdapterVersion]:
    """The lineage of a task forward: every version trained on it."""
    return session.scalars(
        select(AdapterVersion)
        .join(RunTask, RunTask.run_id == AdapterVersion.run_id)
        .where(RunTask.task_id == task_id)
        .order_by(AdapterVersion.adapter_id, AdapterVersion.number)
    ).all()


def plain(row: Task) -> PlainTask:
    """The task as `adapters` knows it."""
    return PlainTask(
        id=row.id,
        title=row.title,
        instruction=row.instruction,
        examples=tuple(Example(each["input"], each["output"]) for each in row.examples),
        tests=tuple(Example(each["input"], each["output"]) for each in row.tests),
        form="grid" if row.form == "grid" else "text",
    )


def content_hash(row: Task) -> str:
    """sha256 of what the task says."""
    task = plain(row)
    content = _canonical(task.instruction, task.form, task.examples, task.tests)
    return hashlib.sha256(content.encode()).hexdigest()


def _fill(row: Task, task: CheckedTask, created_by: str) -> None:
    """Make the row say what was sent; a deleted one is a new task under its old id."""
    row.title = task.title
    row.instruction = task.instruction
    row.form = task.form
    row.examples = [{"input": each.input, "output": each.output} for each in task.examples]
    row.tests = [{"input": each.input, "output": each.output} for each in task.tests]
    row.state = TaskState.READY
    row.created_by = created_by
    row.created_at = utc_now()
    row.deleted_at = None


def _pairs(given: Sequence[Pair], form: str, field: str) -> tuple[Example, ...]:
    if len(given) > MOST_EXAMPLES:
        raise TaskInvalid(
            f"{field} holds {len(given)} pairs, and {MOST_EXAMPLES} are taken. Send fewer.", field
        )
    return tuple(
        Example(
            _value(said, form, f"{field}.{number}.input"),
            _value(wanted, form, f"{field}.{number}.output"),
        )
        for number, (said, wanted) in enumerate(given)
    )


def _value(value: Any, form: str, field: str) -> str:
    """An input or output as text: grids in their one form, texts as they are."""
    if form == "grid":
        try:
            return format_grid(parse_grid(value) if isinstance(value, str) else grid_of(value))
        except ValueError as error:
            raise TaskInvalid(
                f"{field} is no grid: {error}. Send rows of equal length, cells 0 to 9, such as "
                "[[1, 0], [0, 1]].",
                field,
            ) from error
    if not isinstance(value, str):
        raise TaskInvalid(
            f'{field} is no text. Send text, or set form to "grid" and send grids only.', field
        )
    if not value.strip():
        raise TaskInvalid(f"{field} is empty. Leave the pair out, or say what it is.", field)
    if len(value) > MOST_CHARS:
        raise TaskInvalid(
            f"{field} has {len(value)} characters, and {MOST_CHARS} are taken. Shorten it.", field
        )
    _check_storable(value, field)
    return value


def _check_storable(text: str, field: str) -> None:
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise TaskInvalid(f"{field} holds NUL or half a character. Send UTF-8 text.", field)


def _check_total(pairs: Sequence[Example], field: str) -> None:
    total = sum(len(pair.input) + len(pair.output) for pair in pairs)
    if total > MOST_TOTAL_CHARS:
        raise TaskInvalid(
            f"The task has {total} characters, and {MOST_TOTAL_CHARS} are taken. Send fewer pairs.",
            field,
        )


def _consistent(pairs: Sequence[Example], field: str) -> tuple[Example, ...]:
    """Every pair once.

    Raises:
        TaskInvalid: one input has two outputs.
    """
    known: dict[str, tuple[int, Example]] = {}
    for number, pair in enumerate(pairs):
        earlier, same = known.setdefault(pair.input, (number, pair))
        if same.output != pair.output:
            raise TaskInvalid(
                f"{field}.{number}.output differs from {field}.{earlier}.output, and the inputs are "
                "equal. Leave one of them out, or put what tells them apart into the input.",
                f"{field}.{number}.output",
            )
    return tuple(pair for _, pair in known.values())


def _split(
    examples: tuple[Example, ...], form: str, first: str, second: str
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    keys = [input_key(each.input, form) for each in examples]
    if len(set(keys)) < 2:
        raise TaskInvalid(
            f"{first} holds one input and {second} none. Send at least 2 examples, so that one can be "
            f"kept as a test, or send {second}. White space and case tell no two texts apart.",
            first,
        )
    first_of = dict(zip(reversed(keys), (each.input for each in reversed(examples)), strict=True))
    by_hash = sorted(first_of, key=lambda key: hashlib.sha256(first_of[key].encode()).digest())
    held = frozenset(by_hash[: max(1, len(by_hash) // _TEST_PART)])
    by_key = list(zip(keys, examples, strict=True))
    return (
        tuple(each for key, each in by_key if key not in held),
        tuple(each for key, each in by_key if key in held),
    )


def _all_lists(upload: TaskUpload) -> bool:
    values = [value for pair in (*upload.examples, *upload.tests) for value in pair]
    return bool(values) and all(isinstance(value, list) for value in values)


def _canonical(
    instruction: str, form: str, examples: Sequence[Example], tests: Sequence[Example]
) -> str:
    sides = [[[each.input, each.output] for each in side] for side in (examples, tests)]
    return json.dumps([instruction, form, *sides], ensure_ascii=False, separators=(",", ":"))
