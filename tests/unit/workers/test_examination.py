"""The exam of a run: each question by its grader, and by the judge only when it is believed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select

from adapters.evaluation.judge import load_cases
from adapters.lesson import Stage
from adapters.spec import LoraSpec, SealConfig, TrainingSpec
from adapters.types import ChatMessage, EditKind, Grader, SelfEdit
from server.core.settings import Settings
from server.db import Adapter, EvaluationResult, VersionStatus
from server.db.session import Database
from server.services import documents, evaluations, questions, registry, runs
from server.services.documents import SentQuestion
from server.services.rebuilds import LESSON
from tests.conftest import RecordingQueue
from tests.support.factories import make_document, make_run, make_version, principal
from tests.support.workbench import ScriptedSampler
from workers import examination
from workers.context import WorkerContext
from workers.examination import Exam
from workers.heart import Heart
from workers.lesson import CHAMPION, Lesson, Training
from workers.material import collect

WHY = "Why was the lighthouse closed?"
STEPS = "How many steps has the lighthouse?"
SAID = {WHY: "Its light has come to run by itself.", STEPS: "two hundred and twelve"}


def answering(conversation: Sequence[ChatMessage]) -> str:
    return SAID.get(conversation[-1]["content"], "I do not know.")


def honest(conversation: Sequence[ChatMessage]) -> str:
    """Knows every case, and finds the replies of these tests right."""
    prompt = conversation[-1]["content"]
    for case in load_cases():
        if f'"{case.question}"' in prompt and f'Reply: "{case.reply}"' in prompt:
            return "Yes" if case.verdict == "right" else "No"
    return "Yes" if SAID[WHY] in prompt else "No"


class Hall:
    """A run at its exam, with two questions of a user."""

    def __init__(
        self, database: Database, adapter: Adapter, settings: Settings, queue: RecordingQueue
    ) -> None:
        self.database = database
        self.context = WorkerContext(settings, database, cast(Any, queue), "test")
        with database.unit_of_work() as session:
            document_id = make_document(session).id
            sent = [
                SentQuestion(WHY, ("The lamp was automated",), Grader.JUDGE),
                SentQuestion(STEPS, ("212",), Grader.NUMERIC),
            ]
            questions.add(session, principal(), document_id, sent)
            run = make_run(session, adapter)
            session.flush()
            owned = runs.claim(session, run.id, worker="a", lease=timedelta(seconds=60))
            assert owned is not None
            self.material = collect(session, owned, served="smollm2")
            version = make_version(session, adapter, status=VersionStatus.CANDIDATE, claim=owned)
            self.version_id = version.id
            self.asked = [
                item.id for item in documents.exam_items(session, [document_id], split="exam")
            ]
        self.run_id = owned.run_id
        self.heart = Heart(database, owned, every_s=60, lease_s=60)

    def sit(self) -> Exam:
        return examination.examine(
            self.context, self.material, self.version_id, self.asked, SealConfig(), self.heart
        )

    def begin_from_one_that_learnt(self, *prompts: str, is_on_record: bool = True) -> None:
        """As if the challenger had been trained on from a version with such a lesson."""
        with self.database.unit_of_work() as session:
            earlier = make_version(session, session.get_one(Adapter, self.material.adapter.id))
            earlier_id, earlier_run = earlier.id, earlier.run_id
        edits = tuple(SelfEdit(EditKind.QUESTION, None, one, "x", "rule") for one in prompts)
        stage = Stage(LoraSpec(), TrainingSpec(), 0, edits=edits)
        lessons = {self.run_id: Lesson((Training(stage, CHAMPION),), earlier_id)}
        if is_on_record:
            lessons[str(earlier_run)] = Lesson((Training(stage, None),))
        for run_id, lesson in lessons.items():
            folder = self.context.settings.runs_path / run_id
            folder.mkdir(parents=True)
            lesson.write(folder / LESSON)

    def stored(self, exam: Exam) -> dict[str, EvaluationResult]:
        with self.database.unit_of_work() as session:
            evaluations.record(
                session,
                run_id=self.run_id,
                version=registry.by_id(session, self.version_id),
                champion=None,
                verdict=exam.decision.verdict,
                decision=exam.to_json(),
                results=exam.rows(),
            )
        with self.database.look() as session:
            return {row.prompt: row for row in session.scalars(select(EvaluationResult))}


@pytest.fixture
def hall(
    database: Database,
    adapter: Adapter,
    settings: Settings,
    queue: RecordingQueue,
    paper_artifacts: None,
) -> Hall:
    return Hall(database, adapter, settings, queue)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Scripted weights by their engine names; the base judges."""

    def install(judge: Callable[[Sequence[ChatMessage]], str]) -> None:
        def base(conversation: Sequence[ChatMessage]) -> str:
            is_judging = conversation[-1]["content"].startswith("You mark an exam.")
            return judge(conversation) if is_judging else "I do not know."

        def sampler(_: Settings, name: str, urls: Sequence[str] = ()) -> ScriptedSampler:
            return ScriptedSampler(base if name == "smollm2@base" else answering)

        monkeypatch.setattr(examination, "EngineSampler", sampler)

    return install


def test_a_trusted_judge_grades_its_questions(hall: Hall, engines: Callable[..., None]) -> None:
    engines(honest)

    exam = hall.sit()
    rows = hall.stored(exam)

    assert exam.to_json()["judge"] == {
        "cases": len(load_cases()),
        "agreed": len(load_cases()),
        "false_right": 0,
        "false_wrong": 0,
        "least_agreement": pytest.approx(0.9347),
        "is_trusted": True,
        "graded_by": "judge",
    }
    assert (rows[WHY].grader, rows[STEPS].grader) == ("judge", "numeric")
    assert (rows[WHY].champion_is_correct, rows[WHY].challenger_is_correct) == (False, True)
    assert (rows[STEPS].champion_is_correct, rows[STEPS].challenger_is_correct) == (False, True)


@pytest.mark.parametrize("said", ["yes", "no", "perhaps"])
def test_a_judge_that_is_not_trusted_decides_nothing(
    hall: Hall, engines: Callable[..., None], said: str
) -> None:
    engines(lambda _: said)

    exam = hall.sit()
    rows = hall.stored(exam)

    judge = exam.to_json()["judge"]
    assert isinstance(judge, dict)
    assert (judge["is_trusted"], judge["graded_by"]) == (False, "match")
    assert rows[WHY].grader == "match"
    assert not rows[WHY].challenger_is_correct  # said in other words
    assert rows[STEPS].challenger_is_correct


def test_no_judge_is_asked_where_no_question_wants_one(
    hall: Hall, engines: Callable[..., None]
) -> None:
    def never(_: Sequence[ChatMessage]) -> str:
        raise AssertionError("nobody asked for a judge")

    engines(never)
    with hall.database.look() as session:
        items = documents.exam_items(session, [hall.material.documents[0].id], split="exam")
    hall.asked = [item.id for item in items if item.grader is not Grader.JUDGE]

    exam = hall.sit()

    assert exam.judge is None
    assert exam.to_json()["judge"] is None


def test_the_general_suite_is_the_operators_file_where_there_is_one(
    hall: Hall, engines: Callable[..., None], tmp_path: Path
) -> None:
    engines(honest)
    path = tmp_path / "suite.json"
    row = {"id": "ours-01", "slice": "ours", "prompt": "Which port is ours?", "answers": ["8000"]}
    path.write_text(json.dumps([row]))
    settings = hall.context.settings
    learning = settings.learning.model_copy(update={"general_suite": path})
    hall.context = replace(
        hall.context, settings=settings.model_copy(update={"learning": learning})
    )

    exam = hall.sit()

    assert [item.prompt for item in exam.items if item.is_general] == ["Which port is ours?"]


def test_what_a_version_was_taught_is_not_asked_of_one_trained_on_from_it(
    hall: Hall, engines: Callable[..., None]
) -> None:
    engines(honest)
    hall.begin_from_one_that_learnt(f"About Marlow Lighthouse: {STEPS}", "What is the goat called?")

    exam = hall.sit()

    asked = {item.prompt for item in exam.items}
    assert WHY in asked
    assert STEPS not in asked  # sent by a user after the earlier lesson had been taught
    assert exam.to_json()["taught_before"] == 1


def test_where_no_record_tells_what_was_taught_before_all_is_asked(
    hall: Hall, engines: Callable[..., None]
) -> None:
    engines(honest)
    hall.begin_from_one_that_learnt(STEPS, is_on_record=False)

    exam = hall.sit()

    assert {WHY, STEPS} <= {item.prompt for item in exam.items}
    assert exam.to_json()["taught_before"] == 0
