"""The bank of a run: users, traffic and model in one exam, split for good, forgotten when they ask."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import pytest
from sqlalchemy import delete, select, update

from adapters.evaluation.gate import Need
from adapters.evaluation.judge import load_cases
from adapters.lesson import Stage
from adapters.spec import ExamSpec, JudgeSpec, LoraSpec, SealConfig, TrainingSpec
from adapters.types import (
    ChatMessage,
    EditKind,
    ExamItem,
    Grader,
    ItemKind,
    SelfEdit,
)
from server.core.clock import utc_now
from server.core.settings import Settings
from server.db import (
    Adapter,
    AdapterVersion,
    EvaluationResult,
    ExamQuestion,
    Interaction,
    JudgeCalibration,
)
from server.db.session import Database
from server.services import (
    deletions,
    documents,
    evaluations,
    interactions,
    promotion,
    questions,
    retention,
    runs,
)
from server.services.documents import SentQuestion
from server.services.questions import Heard
from server.services.rebuilds import LESSON
from tests.conftest import RecordingQueue
from tests.support.factories import captured, make_document, make_run, make_version, principal
from tests.support.texts import LIGHTHOUSE_TEXT
from tests.support.workbench import ScriptedSampler
from workers import quizzes
from workers.context import WorkerContext
from workers.heart import Heart
from workers.judging import seat_judge
from workers.lesson import Lesson, Training
from workers.material import Material, collect, with_champion
from workers.quizzes import Further, Quizzes

KEEPER = "Who is the keeper of Marlow Lighthouse?"
STEPS = "How many steps does Marlow Lighthouse have?"
OWNER = "Who is the owner of Marlow Lighthouse?"
COOK = "Who is the cook of Marlow Lighthouse?"
ANSWERS = {KEEPER: "Odile Brandt", STEPS: "212", OWNER: "Emil Tarrow", COOK: "Wilma Stroud"}
ECHO = "Ask this in better English: The owner of Marlow Lighthouse is who?"


def reading(conversation: Sequence[ChatMessage]) -> str:
    """Answers from the text, and asks one question about the owner in good English."""
    prompt = conversation[-1]["content"]
    question = prompt.rpartition("Question: ")[2]
    if prompt.startswith("Ask this in better English:"):
        return "Which man is the owner of Marlow Lighthouse?" if prompt == ECHO else "Hm."
    if question == "Which man is the owner of Marlow Lighthouse?":
        return "Emil Tarrow"
    return ANSWERS.get(question, "I do not know.")


class Desk:
    """A worker at a run over one text, with traffic of the line."""

    def __init__(
        self, database: Database, adapter: Adapter, settings: Settings, queue: RecordingQueue
    ) -> None:
        self.database, self.adapter = database, adapter
        self.context = WorkerContext(settings, database, cast(Any, queue), "test")
        with database.unit_of_work() as session:
            self.document_id = make_document(session, LIGHTHOUSE_TEXT).id
            run = make_run(session, adapter)
            session.flush()
            owned = runs.claim(session, run.id, worker="a", lease=timedelta(seconds=60))
            assert owned is not None
            self.owned = owned
            self.material: Material = collect(session, owned, served="smollm2")
        self.heart = Heart(database, owned, every_s=60, lease_s=60)
        self.model = ScriptedSampler(reading)

    def hear(self, *said: str, split: str = "gate", **fields: Any) -> str:
        """A conversation in the gate's share of the traffic."""
        record = captured(*said, **fields)
        interaction_id: str = record["id"]
        with self.database.unit_of_work() as session:
            interactions.record_all(session, [record])
            session.execute(
                update(Interaction).where(Interaction.id == interaction_id).values(split=split)
            )
        return interaction_id

    def gather(self, **limits: Any) -> Quizzes:
        config = SealConfig(exam=ExamSpec(**limits))
        return quizzes.ensure_quizzes(
            self.context, self.material, self.model, config, self.heart, base=self.model
        )

    def write_more(self, count: int) -> Further:
        [document] = self.material.documents
        return quizzes.write_more(
            self.context, self.material, document, count, self.model, SealConfig()
        )

    def rows(self) -> list[ExamQuestion]:
        with self.database.unit_of_work() as session:
            return list(session.scalars(select(ExamQuestion).order_by(ExamQuestion.item_id)))

    def drop_written(self) -> None:
        """As if the model had not written its question yet."""
        with self.database.unit_of_work() as session:
            session.execute(delete(ExamQuestion).where(ExamQuestion.kind == "model"))

    def teach(self, *prompts: str) -> AdapterVersion:
        """A champion that has learnt the text from a lesson with these prompts."""
        with self.database.unit_of_work() as session:
            version = make_version(session, self.adapter, claim=self.owned)
            move = promotion.plan_promotion(session, self.adapter, version.number)
            promotion.apply_move(session, self.adapter, move, actor="admin", reason="")
            session.flush()
            self.material = with_champion(session, self.material)
        assert self.material.learnt_before == {self.document_id}
        edits = tuple(
            SelfEdit(EditKind.QUESTION, self.document_id, prompt, "x", "rule") for prompt in prompts
        )
        folder = self.context.settings.runs_path / self.owned.run_id
        folder.mkdir(parents=True, exist_ok=True)
        stage = Stage(LoraSpec(), TrainingSpec(), 0, edits=edits)
        Lesson((Training(stage, None),)).write(folder / LESSON)
        return version


@pytest.fixture
def desk(database: Database, adapter: Adapter, settings: Settings, queue: RecordingQueue) -> Desk:
    return Desk(database, adapter, settings, queue)


def heard(quiz: Quizzes) -> list[ExamItem]:
    return [item for item in (*quiz.exam, *quiz.train) if item.kind is ItemKind.TRAFFIC]


def test_what_users_ask_of_the_model_is_asked_in_the_exam_and_only_there(desk: Desk) -> None:
    interaction_id = desk.hear(KEEPER, reply="It is Bosko, I think.")

    quiz = desk.gather()

    [item] = heard(quiz)
    assert item in quiz.exam
    assert (item.prompt, item.answers) == (KEEPER, ("Odile Brandt",))  # the text's, not the reply's
    [row] = [row for row in desk.rows() if row.kind == "traffic"]
    assert (row.interaction_id, row.split) == (interaction_id, "exam")
    assert quiz.report["traffic"] == {"heard": 1, "taken": 1, "dropped": {}}
    assert quiz.report["exam"]["traffic"] == 1


def test_gathering_again_changes_nothing(desk: Desk) -> None:
    desk.hear(KEEPER)
    first = desk.gather()
    before = [row.id for row in desk.rows()]
    asked = len(desk.model.asked)

    again = desk.gather()

    assert (again.exam, again.train) == (first.exam, first.train)
    assert [row.id for row in desk.rows()] == before
    assert len(desk.model.asked) == asked


def test_traffic_that_comes_later_joins_and_the_rest_stays(desk: Desk) -> None:
    first = desk.gather()
    desk.hear(STEPS)

    later = desk.gather()

    assert {item.id for item in first.exam} < {item.id for item in later.exam}
    assert len(heard(later)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"split": "train"},
        {"owner": "acme"},
        {"adapter": "other"},
        {"may_learn": False},
        {"request": {"store": False}},
        {"outcome": "client_left"},
        {"reply": "Write to ada@example.com."},
        {"created_at": (utc_now() - timedelta(days=31)).isoformat()},
    ],
    ids=["train", "tenant", "line", "consent", "store", "broken", "personal", "old"],
)
def test_what_may_not_be_heard_is_not(desk: Desk, fields: dict[str, Any]) -> None:
    desk.hear(KEEPER, **fields)

    assert heard(desk.gather()) == []


@pytest.mark.parametrize(
    "said",
    [
        ("Hello.", "Hi.", KEEPER),
        ("Tell me of Marlow Lighthouse.",),
        (f"{KEEPER} Remember that it is Bosko",),
        ("What is the capital of France?",),
    ],
)
def test_what_is_no_question_on_a_document_is_left(desk: Desk, said: tuple[str, ...]) -> None:
    desk.hear(*said)

    assert heard(desk.gather()) == []


def test_one_user_decides_little_run_after_run(desk: Desk) -> None:
    for prompt in (KEEPER, STEPS, OWNER):
        desk.hear(prompt, request={"user": "eve"})
    desk.hear(COOK, request={"user": "ada"})

    quiz = desk.gather(traffic_items_per_user=1)
    desk.hear("Who is it that keeps Marlow Lighthouse, the keeper?", request={"user": "eve"})
    again = desk.gather(traffic_items_per_user=1)

    assert len(heard(quiz)) == 2
    assert COOK in {item.prompt for item in heard(quiz)}
    assert heard(again) == heard(quiz)


def test_whoever_asks_much_keeps_nobody_out(desk: Desk) -> None:
    desk.hear(KEEPER, request={"user": "ada"})
    for number in range(12):
        desk.hear(f"Who is number {number} of Marlow Lighthouse?", request={"user": "eve"})

    quiz = desk.gather(traffic_items_per_user=1, traffic_checks=10)

    assert [item.prompt for item in heard(quiz)] == [KEEPER]
    assert quiz.report["traffic"]["heard"] == 9  # eight of eve's


def test_without_a_name_the_key_is_the_user(desk: Desk) -> None:
    desk.hear(KEEPER, key_id="key_1")
    desk.hear(STEPS, key_id="key_1")
    desk.hear(OWNER, key_id="key_2")

    assert len(heard(desk.gather(traffic_items_per_user=1))) == 2


def test_no_traffic_is_heard_where_the_setting_says_so(desk: Desk) -> None:
    desk.hear(KEEPER)

    quiz = desk.gather(traffic_items=0)

    assert heard(quiz) == []
    assert "traffic" not in quiz.report


def test_a_question_that_a_lesson_has_taught_is_no_exam(desk: Desk) -> None:
    desk.gather()
    desk.teach(KEEPER, "What is the boat called?")
    desk.hear(KEEPER)
    desk.hear(STEPS)

    quiz = desk.gather()

    assert [item.prompt for item in heard(quiz)] == [STEPS]
    assert quiz.report["traffic"]["dropped"] == {"may have been taught": 1}


def test_where_the_lesson_is_gone_nobody_knows_what_it_taught(desk: Desk) -> None:
    desk.gather()
    desk.teach()
    (desk.context.settings.runs_path / desk.owned.run_id / LESSON).unlink()
    desk.hear(STEPS)

    assert heard(desk.gather()) == []


@pytest.mark.parametrize("how", ["delete", "redact", "retention"])
def test_a_question_goes_with_its_interaction(desk: Desk, how: str) -> None:
    interaction_id = desk.hear(KEEPER)
    quiz = desk.gather()
    [item] = heard(quiz)
    with desk.database.unit_of_work() as session:
        version = make_version(session, desk.adapter)
        row = {
            "item_id": item.id,
            "document_id": item.document_id,
            "kind": item.kind,
            "grader": item.grader,
            "prompt": item.prompt,
            "expected": list(item.answers),
            "champion_reply": "",
            "champion_is_correct": False,
            "challenger_reply": "",
            "challenger_is_correct": False,
        }
        evaluations.record(
            session,
            run_id=version.run_id or "",
            version=version,
            champion=None,
            verdict="promote",
            decision={},
            results=[row, row | {"item_id": "another"}],
        )

    with desk.database.unit_of_work() as session:
        if how == "delete":
            deletions.forget_interaction(session, principal(), interaction_id)
        elif how == "redact":
            interactions.redact_interaction(session, principal(), interaction_id)
        else:
            retention.delete_old(session, keep_for=timedelta(0))

    with desk.database.unit_of_work() as session:
        assert session.scalars(select(EvaluationResult.item_id)).all() == ["another"]
    assert [row for row in desk.rows() if row.kind == "traffic"] == []
    assert heard(desk.gather()) == []
    assert len(desk.rows()) > 0  # the others stay


def test_an_interaction_deleted_while_it_is_looked_up_leaves_no_question(desk: Desk) -> None:
    interaction_id = desk.hear(KEEPER)

    def reply(conversation: Sequence[ChatMessage]) -> str:
        with desk.database.unit_of_work() as session:
            if session.get(Interaction, interaction_id) is not None:
                deletions.forget_interaction(session, principal(), interaction_id)
        return reading(conversation)

    desk.model.reply = reply
    quiz = desk.gather()

    assert heard(quiz) == []
    assert quiz.report["traffic"]["dropped"] == {"deleted meanwhile": 1}


def test_a_users_question_goes_before_the_same_of_traffic_and_model(desk: Desk) -> None:
    with desk.database.unit_of_work() as session:
        questions.add(
            session, principal(), desk.document_id, [SentQuestion(KEEPER, ("Odile Brandt",))]
        )
    desk.hear(KEEPER)

    quiz = desk.gather()

    assert [item.kind for item in quiz.exam if item.prompt == KEEPER] == [ItemKind.USER]
    assert quiz.report["traffic"]["dropped"] == {"asked already": 1}


def test_a_question_sent_after_the_split_takes_the_place_of_the_models(desk: Desk) -> None:
    first = desk.gather()
    [cloze, *_] = [item for item in first.exam if item.kind is ItemKind.CLOZE]
    with desk.database.unit_of_work() as session:
        questions.add(
            session, principal(), desk.document_id, [SentQuestion(cloze.prompt, cloze.answers)]
        )

    later = desk.gather()

    assert len(later.exam) == len(first.exam)
    assert [item.kind for item in later.exam if item.prompt == cloze.prompt] == [ItemKind.USER]


def test_more_questions_are_written_on_what_is_not_asked_yet(desk: Desk) -> None:
    desk.gather(exam_share=0.0)
    desk.drop_written()

    further = desk.write_more(5)

    assert [item.answers for item in further.items] == [("Emil Tarrow",)]
    assert further.missing == 4
    assert sum(further.dropped.values()) > 0
    assert set(further.items) <= set(desk.gather(exam_share=0.0).exam)


def test_an_exam_gets_the_questions_that_it_lacked_where_the_model_can_write_them(
    desk: Desk,
) -> None:
    desk.gather(exam_share=0.0)
    desk.drop_written()
    needs = [
        Need("new documents", 7, (desk.document_id, "doc_other")),
        Need(f"document {desk.document_id}", 3, (desk.document_id,)),
        Need("general suite", 9, ()),
    ]

    found = quizzes.write_needed(desk.context, desk.material, needs, desk.model, SealConfig())

    assert set(found) == {desk.document_id}
    row = found[desk.document_id]
    assert (row["wanted"], row["written"], row["missing"]) == (4, 1, 3)
    asked = {row.prompt for row in desk.rows() if row.split == "exam" and row.kind == "model"}
    assert asked == {"Which man is the owner of Marlow Lighthouse?"}


def test_no_more_questions_than_wanted_and_none_twice(desk: Desk) -> None:
    desk.gather(exam_share=0.0)

    desk.drop_written()

    counts = [len(desk.write_more(count).items) for count in (0, 1, 1)]

    assert counts == [0, 1, 0]


def test_a_further_question_that_was_taught_is_not_asked(desk: Desk) -> None:
    desk.gather(exam_share=0.0)
    desk.drop_written()
    desk.teach("Which man is the owner of Marlow Lighthouse?")

    further = desk.write_more(5)

    assert further.items == ()
    assert further.dropped["may have been taught"] >= 1


def test_the_grader_of_a_question_reaches_the_exam(desk: Desk) -> None:
    with desk.database.unit_of_work() as session:
        sent = SentQuestion(STEPS, ("212",), Grader.NUMERIC)
        questions.add(session, principal(), desk.document_id, [sent])

    [item] = [item for item in desk.gather().exam if item.kind is ItemKind.USER]

    assert item.grader is Grader.NUMERIC


def test_a_question_of_a_deleted_document_is_not_kept(desk: Desk) -> None:
    interaction_id = desk.hear(KEEPER)
    [item] = heard(desk.gather())
    with desk.database.unit_of_work() as session:
        deletions.forget_document(session, principal(), desk.document_id)
        assert questions.add_heard(session, [Heard(item, interaction_id)]) == 0
        assert documents.exam_items(session, [desk.document_id], split="exam") == []


def test_the_judge_is_calibrated_once_and_anew_when_the_model_changes(desk: Desk) -> None:
    judge = ScriptedSampler(lambda _: "no")

    seats = [seat_judge(desk.context, judge, base_hash="a") for _ in range(2)]
    asked_once = len(judge.asked)
    seat_judge(desk.context, judge, base_hash="b")

    assert asked_once == sum(bool(case.reply) for case in load_cases())
    assert len(judge.asked) == 2 * asked_once
    assert seats[0] == seats[1]
    assert seats[0].sampler is None
    assert seats[0].to_json()["graded_by"] == "match"
    with desk.database.unit_of_work() as session:
        rows = session.scalars(select(JudgeCalibration)).all()
        assert [row.is_trusted for row in rows] == [False, False]


def test_a_trusted_judge_takes_its_seat(desk: Desk) -> None:
    settings = desk.context.settings
    learning = settings.learning.model_copy(update={"judge": JudgeSpec(least_agreement=0.1)})
    context = WorkerContext(
        settings.model_copy(update={"learning": learning}), desk.database, desk.context.queue, "t"
    )
    judge = ScriptedSampler(lambda _: "no")

    assert seat_judge(context, judge, base_hash="a").sampler is judge
    assert seat_judge(desk.context, judge, base_hash="a").sampler is None
