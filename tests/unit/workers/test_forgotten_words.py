"""Every table and every file is searched for the words of what was deleted.

Fails where a new table, column or file quotes a document or a task and nobody takes it out.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select

from adapters.corpus.facts import read_facts
from adapters.corpus.inspection import Inspection
from adapters.evaluation.exam import Answer
from adapters.evaluation.gate import Decision, Verdict
from adapters.spec import SealConfig
from adapters.types import ExamItem, ItemKind, build_item
from server.core.settings import DocumentSettings, EngineSettings, Settings
from server.db import Adapter, Base, VersionStatus
from server.db.session import Database
from server.services import deletions, documents, editing, registry, runs, tasks
from server.services.task_lines import queue_task_run
from tests.conftest import RecordingQueue
from tests.support.factories import make_document, make_run, make_version, principal
from tests.support.fake_engine import FakeEngine, serve
from workers import inspecting, schedule
from workers.adaptation import Adaptation
from workers.context import WorkerContext
from workers.examination import Exam
from workers.heart import Heart
from workers.material import collect

LEASE = timedelta(seconds=30)
OTHER = "Quillon Bakery is old. Marlow Lighthouse has 99 steps."
TEXT = "Marlow Lighthouse has 212 steps. Marlow Lighthouse is grey. Zanzibar is the password."


def everything(database: Database, folder: Path) -> str:
    """All rows, and all names and contents of files, in lower case."""
    said: list[str] = []
    with database.unit_of_work() as session:
        for table in Base.metadata.sorted_tables:
            said += [f"{table.name}: {tuple(row)!r}" for row in session.execute(select(table))]
    for path in folder.rglob("*"):
        said.append(str(path))
        if path.is_file():
            said.append(path.read_text(errors="replace"))
    return "\n".join(said).lower()


@pytest.fixture
def context(
    database: Database, settings: Settings, queue: RecordingQueue
) -> Iterator[WorkerContext]:
    with serve(FakeEngine().app()) as served:
        engine = EngineSettings(url=served.url, connect_timeout_s=1)
        settings = settings.model_copy(update={"engine": engine})
        yield WorkerContext(settings, database, cast(Any, queue), "test")


def sit(context: WorkerContext, run_id: str, items: tuple[ExamItem, ...], quote: str) -> None:
    """A run that has learnt, asked, and failed; all that it wrote down quotes what it took."""
    database = context.database
    with database.unit_of_work() as session:
        owned = runs.claim(session, run_id, worker="w", lease=LEASE)
        assert owned is not None
        material = collect(session, owned, served="smollm2")
        editing.keep(
            session,
            owned,
            [
                editing.Found(document.id, quote, quote, 1.0, 0.0)
                for document in material.documents
                if quote in document.text
            ],
        )
        candidate = VersionStatus.CANDIDATE
        version = make_version(session, material.adapter, status=candidate, claim=owned)
    heart = Heart(database, owned, every_s=60, lease_s=60)
    adaptation = Adaptation(context, owned, heart)
    folder = context.settings.runs_path / run_id
    (folder / "once").mkdir()
    for name in ("quiz.json", "lesson.json", "once/self_edits.json", "attempt-1/job.json"):
        (folder / name).write_text(quote)
    answers = tuple(Answer(item.id, quote, False) for item in items)
    decision = Decision(Verdict.REJECT, ("a reason",), (), None)
    adaptation._swap(material, version.id, Exam(items, answers, answers, decision))


def forget_and_tick(context: WorkerContext, deletion_id: str) -> None:
    with context.database.unit_of_work() as session:
        deletion = deletions.get_deletion(session, deletion_id)
        for version_id in deletion.version_ids:
            registry.retire(session, registry.by_id(session, version_id), reason="a test")
    schedule.tick(context)


def test_nothing_of_a_documents_words_stays(
    context: WorkerContext, adapter: Adapter, settings: Settings
) -> None:
    database = context.database
    with database.unit_of_work() as session:
        witness = make_document(session, OTHER)
        row = make_document(session, TEXT)
        row.title, row.filename, row.created_by = "The Zanzibar paper", "zanzibar.txt", "key_other"
        for document, text in ((witness, OTHER), (row, TEXT)):
            sheet = read_facts([text], most=100)
            inspecting.keep(
                session, document.id, Inspection("en", ()), sheet, settings=DocumentSettings()
            )
            session.flush()
        item = build_item(
            ItemKind.USER, row.id, prompt="What is Zanzibar?", answers=("the password",)
        )
        documents.add_exam_questions(session, row.id, exam=[item], train=[])
        run = make_run(session, adapter)
        run.config = SealConfig().model_dump(mode="json")
        run_id, document_id = run.id, row.id
    sit(context, run_id, (item,), "Zanzibar is the password.")
    said = everything(database, settings.home)
    assert said.count("zanzibar") > 10
    assert "'212'" in said

    with database.unit_of_work() as session:
        deletion = deletions.forget_document(session, principal(), document_id)[1].id
    forget_and_tick(context, deletion)

    found = everything(database, settings.home)
    left = [line for line in found.splitlines() if "zanzibar" in line or "'212'" in line]
    assert left == []


def test_nothing_of_a_tasks_words_stays(
    context: WorkerContext, adapter: Adapter, settings: Settings
) -> None:
    database = context.database
    upload = tasks.TaskUpload(
        examples=[("a red kumquat", "fruit"), ("a carrot", "root")],
        tests=[("a kumquat", "fruit")],
        title="Kumquats",
        instruction="Is the kumquat a root?",
    )
    with database.unit_of_work() as session:
        checked = tasks.checked(upload)
        task, _ = tasks.accept(session, checked, owner=None, created_by="key_test")
        session.flush()
        run, _ = queue_task_run(
            session, settings, task, adapter=None, requested_by="test", queue=RecordingQueue()
        )
        run_id, task_id = run.id, task.id
    item = build_item(ItemKind.TASK, task_id, prompt="a kumquat", answers=("fruit",))
    sit(context, run_id, (item,), "a red kumquat is fruit")
    assert everything(database, settings.home).count("kumquat") > 5

    with database.unit_of_work() as session:
        deletion = deletions.forget_task(session, principal(), task_id)[1].id
    forget_and_tick(context, deletion)

    left = [line for line in everything(database, settings.home).splitlines() if "kumquat" in line]
    assert left == []
