"""A run that learns a task: what it takes, how it is examined, what becomes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.evaluation.exam import Answer
from adapters.evaluation.gate import Verdict, decide
from adapters.lesson import Weights
from adapters.manifest import DocumentRef, Manifest
from adapters.spec import SealConfig
from adapters.types import ExamItem, Grader, ItemKind
from server.core.errors import NothingToLearn, NotRebuildable
from server.core.settings import Settings
from server.db import AdaptationRun, Adapter, RunStatus, TaskState, VersionStatus
from server.db.session import Database
from server.services import (
    deletions,
    evaluations,
    promotion,
    rebuilds,
    registry,
    runs,
    task_lines,
    tasks,
)
from server.services.tasks import TaskUpload
from tests.conftest import RecordingQueue
from tests.support.factories import make_document, make_version, principal
from tests.support.workbench import PaperBench, ScriptedSampler
from workers import adaptation, examination, versions
from workers.adaptation import Adaptation
from workers.context import WorkerContext
from workers.heart import Heart
from workers.material import assignment_of, collect
from workers.task_exam import longest_answer, task_items

LEASE = timedelta(seconds=30)
WORDS = ("one", "three", "five", "seven", "nine", "eleven", "fifteen", "seventeen")
SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789abcdef"


def backwards(words: Sequence[str]) -> list[tuple[object, object]]:
    return [(word, word[::-1]) for word in words]


@dataclass
class Learner:
    """A task, its line, and a run of it at work."""

    database: Database
    settings: Settings
    tests: int = 5
    instruction: str = "Write it backwards."
    task_id: str = field(init=False)
    owned: runs.Claim = field(init=False)

    def __post_init__(self) -> None:
        upload = TaskUpload(
            examples=backwards(WORDS[:3]),
            tests=backwards(WORDS[3 : 3 + self.tests]),
            instruction=self.instruction,
        )
        with self.database.unit_of_work() as session:
            make_document(session)  # which is none of the task's line's
            row, _ = tasks.accept(session, tasks.checked(upload), owner=None, created_by="k")
            session.flush()
            self.task_id = row.id
        self.owned = self.begin()

    def begin(self) -> runs.Claim:
        with self.database.unit_of_work() as session:
            run, is_new = task_lines.queue_task_run(
                session,
                self.settings,
                tasks.get_task(session, self.task_id),
                adapter=None,
                requested_by="test",
                queue=RecordingQueue(),
            )
            assert is_new
            owned = runs.claim(session, run.id, worker="a", lease=LEASE)
            assert owned is not None
            return owned

    def material(self) -> Any:
        with self.database.unit_of_work() as session:
            return collect(session, self.owned, served="smollm2")

    def state(self) -> str:
        with self.database.unit_of_work() as session:
            return tasks.get_task(session, self.task_id).state

    def run(self) -> AdaptationRun:
        with self.database.unit_of_work() as session:
            return runs.get_run(session, self.owned.run_id)


@pytest.fixture
def learner(database: Database, adapter: Adapter, settings: Settings) -> Learner:
    return Learner(database, settings)


def test_a_run_takes_its_task_and_no_document(learner: Learner) -> None:
    material = learner.material()

    assert material.documents == ()
    assert [task.id for task in material.tasks] == [learner.task_id]
    assert material.new_documents == {learner.task_id}
    assignment = assignment_of(material, (), ())
    assert assignment.tasks == material.tasks
    assert assignment.new_documents == {learner.task_id}
    assert learner.state() == TaskState.LEARNING


def test_what_the_champion_has_learnt_is_to_be_kept(learner: Learner) -> None:
    with learner.database.unit_of_work() as session:
        line = runs.line_of(session, runs.get_run(session, learner.owned.run_id))
        version = make_version(session, line, claim=learner.owned)
        move = promotion.plan_promotion(session, line, version.number)
        promotion.apply_move(session, line, move, actor="run", reason="")
        runs.finish(session, learner.owned, status=RunStatus.SUCCEEDED, verdict="promote")
    learner.owned = learner.begin()

    material = learner.material()

    assert material.earlier_documents == {learner.task_id}
    assert material.new_documents == frozenset()


def test_secrets_are_taken_out_of_a_task(
    database: Database, adapter: Adapter, settings: Settings
) -> None:
    learner = Learner(database, settings, instruction=f"Use {SECRET}.")

    [task] = learner.material().tasks

    assert SECRET not in task.instruction
    assert SECRET not in task_items(learner.material(), settings.learning.few_shot)[0].prompt


def test_a_task_that_was_deleted_meanwhile_is_not_learnt(learner: Learner) -> None:
    with learner.database.unit_of_work() as session:
        deletions.forget_task(session, principal(), learner.task_id)

    with pytest.raises(NothingToLearn):
        learner.material()


def test_every_test_is_one_item_to_be_answered_exactly(learner: Learner) -> None:
    config = learner.settings.learning.few_shot
    material = learner.material()

    items = task_items(material, config)

    assert items == task_items(material, config)
    assert [item.answers for item in items] == [(word[::-1],) for word in WORDS[3:]]
    assert {(item.kind, item.grader) for item in items} == {(ItemKind.TASK, Grader.EXACT)}
    assert {item.document_id for item in items} == {learner.task_id}
    assert longest_answer(material, config) >= max(map(len, WORDS))
    with pytest.raises(ValueError, match="seal learns no tasks"):
        task_items(material, SealConfig())


GENERAL = [
    ExamItem(f"general-{number}", ItemKind.GENERAL, None, "2 + 2?", ("4",)) for number in range(40)
]


@pytest.mark.parametrize(
    ("tests", "verdict", "further"), [(2, Verdict.INCONCLUSIVE, 3), (5, Verdict.PROMOTE, None)]
)
def test_too_few_tests_decide_nothing_and_say_how_many_would(
    database: Database,
    adapter: Adapter,
    settings: Settings,
    tests: int,
    verdict: Verdict,
    further: int | None,
) -> None:
    learner = Learner(database, settings, tests=tests)
    items = task_items(learner.material(), settings.learning.few_shot)
    general = [Answer(item.id, "4", True) for item in GENERAL]

    decision = decide(
        [*items, *GENERAL],
        [*(Answer(item.id, "no idea", False) for item in items), *general],
        [*(Answer(item.id, item.answers[0], True) for item in items), *general],
        new_documents={learner.task_id},
        earlier_documents=set(),
    )

    assert (decision.verdict, decision.further_items) == (verdict, further)


class EngineOnPaper(ScriptedSampler):
    """The base knows nothing; every other name knows the task."""

    def __init__(self, settings: Settings, engine_name: str, urls: Sequence[str] = ()) -> None:
        super().__init__(lambda said: self._answer(said[-1]["content"]))
        self._is_base = engine_name.endswith("@base")

    def _answer(self, prompt: str) -> str:
        if not prompt.endswith("Output:"):
            return "x"
        return "no idea" if self._is_base else answer_to(prompt)


def answer_to(prompt: str) -> str:
    return prompt.removesuffix("\nOutput:").rpartition("\n")[2][::-1]


class RunOnPaper(PaperBench):
    """A paper bench as a run has it."""

    closings: list[dict[str, Any]]

    def settle(self, weights: Weights) -> Path:
        assert self.is_closed  # the trainer's memory is the exam's by then
        lesson = Path(self.folder) / rebuilds.LESSON
        lesson.write_text("{}")
        return lesson


@dataclass
class WholeRun:
    """A run that goes through with nothing but its trainings and its engine on paper."""

    learner: Learner
    adaptation: Adaptation
    bench: RunOnPaper
    heart: Heart


@pytest.fixture
def whole(learner: Learner, queue: RecordingQueue, monkeypatch: pytest.MonkeyPatch) -> WholeRun:
    context = WorkerContext(learner.settings, learner.database, cast(Any, queue), "test")
    heart = Heart(learner.database, learner.owned, every_s=60, lease_s=60)
    adapting = Adaptation(context, learner.owned, heart)
    bench = RunOnPaper(
        ScriptedSampler(lambda _: "I know no JSON."),
        lambda weights: lambda said: answer_to(said[-1]["content"]),
    )
    bench.folder = adapting._folder  # type: ignore[attr-defined]
    bench.closings = [{"seconds": 1.0, "tokens": 2, "environment": {}}]

    def register(
        context: WorkerContext, owned: runs.Claim, material: Any, trained: Any, *, config: Any
    ) -> str:
        with context.database.unit_of_work() as session:
            line = registry.get_adapter(session, material.adapter.name)
            candidate = VersionStatus.CANDIDATE
            return make_version(session, line, status=candidate, claim=owned).id

    monkeypatch.setattr(Adaptation, "_bench", lambda *_: bench)
    monkeypatch.setattr(versions, "register", register)
    monkeypatch.setattr(versions, "load_and_prove", lambda *_: {})
    monkeypatch.setattr(versions, "check_held", lambda *_: None)
    monkeypatch.setattr(examination, "EngineSampler", EngineOnPaper)
    monkeypatch.setattr(adaptation, "EngineSampler", EngineOnPaper)
    general = [ExamItem(f"g{n}", ItemKind.GENERAL, None, "?", ("x",)) for n in range(40)]
    monkeypatch.setattr(examination, "load_general_suite", lambda _: general)
    return WholeRun(learner, adapting, bench, heart)


def test_a_task_is_learnt_examined_and_promoted(whole: WholeRun) -> None:
    whole.adaptation.go_through()

    run = whole.learner.run()
    assert (run.status, run.verdict, run.error) == (RunStatus.SUCCEEDED, "promote", None)
    assert run.report["fewshot"]["is_default"]
    assert run.report["fewshot"]["base_right"] == 0
    assert whole.learner.state() == TaskState.LEARNT
    with whole.learner.database.unit_of_work() as session:
        version = registry.version_of_run(session, run.id)
        assert version is not None
        exam = evaluations.of_version(session, version)
        assert exam is not None
        asked = evaluations.results_of(session, exam)
    about = [row for row in asked if row["document_id"] == whole.learner.task_id]
    assert len(about) == 5
    assert {row["grader"] for row in about} == {"exact"}
    assert all(row["challenger_is_correct"] and not row["champion_is_correct"] for row in about)


def test_no_update_ends_the_run_and_the_task_is_not_learnt(
    whole: WholeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.bench.trained_reply = lambda weights: lambda said: "nothing learnt"

    whole.adaptation.go_through()

    run = whole.learner.run()
    assert (run.status, run.verdict) == (RunStatus.SUCCEEDED, runs.NO_UPDATE)
    assert "left-out" in run.report["no_update"]
    assert whole.learner.state() == TaskState.NOT_LEARNT


def test_a_version_is_not_rebuilt_from_a_task_that_was_forgotten(learner: Learner) -> None:
    with learner.database.unit_of_work() as session:
        row = tasks.get_task(session, learner.task_id)
        ref = DocumentRef(id=row.id, sha256=tasks.content_hash(row))
        line = runs.line_of(session, runs.get_run(session, learner.owned.run_id))
        version = make_version(session, line, claim=learner.owned)
        version.manifest = manifest(line, learner.owned.run_id, ref)
        session.flush()
        assert rebuilds.check_material(session, line, version).tasks == (ref,)

        tasks.delete_task(session, learner.task_id, tenant=None)
        session.flush()
        with pytest.raises(NotRebuildable, match=learner.task_id):
            rebuilds.check_material(session, line, version)


def manifest(line: Adapter, run_id: str, ref: DocumentRef) -> dict[str, Any]:
    return Manifest(
        adapter=line.name,
        version=1,
        base_model=line.base_model,
        base_hash=line.base_hash,
        run_id=run_id,
        method="seal-fewshot",
        config={},
        documents=(),
        tasks=(ref,),
        lesson_sha256="d" * 64,
        seed=0,
        created_at="2026-11-21T10:00:00Z",
        libraries={},
        config_hash="d" * 64,
        files={},
    ).model_dump(mode="json")
