"""The end of a run: verdict, alias and status together, or nothing of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.evaluation.exam import Answer
from adapters.evaluation.gate import Decision, Verdict
from adapters.evaluation.general import load_general_suite
from adapters.lesson import Weights
from adapters.spec import SealConfig
from adapters.types import ItemKind, SourceDocument, build_item
from server.core.clock import utc_now
from server.core.errors import AliasMoved, LeaseLost
from server.core.settings import RolloutSettings, Settings
from server.db import Adapter, RunDocument, RunStatus, VersionStatus
from server.db.session import Database
from server.services import (
    deletions,
    documents,
    evaluations,
    interactions,
    promotion,
    questions,
    registry,
    runs,
    trials,
)
from tests.conftest import RecordingQueue
from tests.support.factories import captured, make_document, make_run, make_version, principal
from workers.adaptation import Adaptation
from workers.context import WorkerContext
from workers.examination import Exam
from workers.heart import Heart, RunCancelled
from workers.material import Material, assignment_of, collect, with_champion

LEASE = timedelta(seconds=30)


class Ending:
    """A run that has sat its exam."""

    def __init__(
        self, database: Database, adapter: Adapter, settings: Settings, queue: RecordingQueue
    ) -> None:
        self.database, self.adapter = database, adapter
        with database.unit_of_work() as session:
            make_document(session)
            run = make_run(session, adapter)
            run.config = SealConfig().model_dump(mode="json")
            session.flush()
            owned = runs.claim(session, run.id, worker="a", lease=LEASE)
            assert owned is not None
            self.owned = owned
            self.material: Material = collect(session, owned, served="smollm2")
            self.version_id = make_version(
                session, adapter, status=VersionStatus.CANDIDATE, claim=owned
            ).id
        context = WorkerContext(settings, database, cast(Any, queue), "test")
        self.heart = Heart(database, owned, every_s=60, lease_s=60)
        self.adaptation = Adaptation(context, owned, self.heart)

    def swap(self, verdict: Verdict = Verdict.PROMOTE) -> None:
        exam = Exam((), (), (), Decision(verdict, ("a reason",), (), None))
        self.adaptation._swap(self.material, self.version_id, exam)

    def state(self) -> tuple[str, str, int | None]:
        """Status of the run, status of its version, number of the champion."""
        with self.database.unit_of_work() as session:
            champion = promotion.champion(session, self.adapter)
            return (
                runs.get_run(session, self.owned.run_id).status,
                registry.by_id(session, self.version_id).status,
                champion.number if champion else None,
            )


@pytest.fixture
def ending(
    database: Database, adapter: Adapter, settings: Settings, queue: RecordingQueue
) -> Ending:
    return Ending(database, adapter, settings, queue)


NOTHING_CHANGED = (RunStatus.RUNNING, VersionStatus.CANDIDATE, None)


def test_a_promotion_serves(ending: Ending) -> None:
    ending.swap()

    assert ending.state() == (RunStatus.SUCCEEDED, VersionStatus.SERVABLE, 1)


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.INCONCLUSIVE])
def test_anything_else_does_not(ending: Ending, verdict: Verdict) -> None:
    ending.swap(verdict)

    assert ending.state() == (RunStatus.SUCCEEDED, VersionStatus.REJECTED, None)


@pytest.mark.parametrize("how", ["swap", "close"])
def test_a_run_that_is_over_keeps_no_copy_of_its_questions(ending: Ending, how: str) -> None:
    folder = ending.adaptation._context.settings.runs_path / ending.owned.run_id
    quiz, lesson = folder / "quiz.json", folder / "lesson.json"
    for path in (quiz, lesson):
        path.write_text("{}")

    if how == "swap":
        ending.swap()
    else:
        ending.adaptation.close(RunStatus.FAILED, error="x")

    assert (quiz.exists(), lesson.exists()) == (False, True)


def test_a_cancel_after_the_last_beat_still_counts(ending: Ending) -> None:
    with ending.database.unit_of_work() as session:
        runs.request_cancel(session, ending.owned.run_id)

    with pytest.raises(RunCancelled):
        ending.swap()

    assert ending.state() == NOTHING_CHANGED


def test_a_lost_lease_changes_nothing(ending: Ending) -> None:
    with ending.database.unit_of_work() as session:
        later = utc_now() + 2 * LEASE
        runs.claim(session, ending.owned.run_id, worker="b", lease=LEASE, now=later)

    with pytest.raises(LeaseLost):
        ending.swap()

    assert ending.state() == NOTHING_CHANGED


@pytest.mark.parametrize("verdict", [Verdict.PROMOTE, Verdict.REJECT])
def test_an_exam_against_yesterdays_champion_decides_nothing(
    ending: Ending, verdict: Verdict
) -> None:
    with ending.database.unit_of_work() as session:
        other = make_version(session, ending.adapter)
        move = promotion.plan_promotion(session, ending.adapter, other.number)
        promotion.apply_move(session, ending.adapter, move, actor="admin", reason="")

    with pytest.raises(AliasMoved):
        ending.swap(verdict)

    assert ending.state() == (RunStatus.RUNNING, VersionStatus.CANDIDATE, 2)


def test_a_version_of_what_was_deleted_meanwhile_never_serves(ending: Ending) -> None:
    document_id = ending.material.documents[0].id
    with ending.database.unit_of_work() as session:  # and no cancel has reached the worker
        deletions.forget_document(session, principal(), document_id)

    with pytest.raises(RunCancelled, match="was deleted meanwhile") as cancelled:
        ending.swap()

    assert ending.state() == NOTHING_CHANGED
    ending.adaptation.close(RunStatus.CANCELLED, error=str(cancelled.value))
    assert ending.state() == (RunStatus.CANCELLED, VersionStatus.RETIRED, None)


@pytest.mark.parametrize("is_deleted", [True, False])
def test_an_exam_keeps_no_question_of_an_interaction_that_was_deleted_meanwhile(
    ending: Ending, is_deleted: bool
) -> None:
    """The run has not learnt from it, so nothing cancels the run."""
    document_id = ending.material.documents[0].id
    heard, sent = (
        build_item(kind, document_id, prompt=prompt, answers=("Odile Brandt",))
        for kind, prompt in (
            (ItemKind.TRAFFIC, "My mother asks who keeps it"),
            (ItemKind.USER, "Who keeps it?"),
        )
    )
    record = captured("My mother asks who keeps it")
    with ending.database.unit_of_work() as session:
        interactions.record_all(session, [record])
        session.flush()
        assert questions.add_heard(session, [questions.Heard(heard, record["id"])]) == 1
        documents.add_exam_questions(session, document_id, exam=[sent], train=[])
    answers = tuple(Answer(item.id, "Odile Brandt", True) for item in (heard, sent))
    decision = Decision(Verdict.PROMOTE, ("a reason",), (), None)
    exam = Exam((heard, sent), answers, answers, decision)

    if is_deleted:
        with ending.database.unit_of_work() as session:
            interactions.delete_interaction(session, principal(), record["id"])
    ending.adaptation._swap(ending.material, ending.version_id, exam)

    with ending.database.unit_of_work() as session:
        kept = evaluations.of_run(session, ending.owned.run_id)
        assert kept is not None
        asked = {row["prompt"] for row in evaluations.results_of(session, kept)}
    assert asked == ({sent.prompt} if is_deleted else {heard.prompt, sent.prompt})


def test_a_version_that_was_trained_on_from_one_that_saw_it_never_serves(ending: Ending) -> None:
    """Its own run has not taken the document."""
    with ending.database.unit_of_work() as session:
        document_id = make_document(session, "The code is 4711.").id
        parent = make_version(session, session.merge(ending.adapter))
        session.add(RunDocument(run_id=parent.run_id, document_id=document_id))
        registry.by_id(session, ending.version_id).parent_id = parent.id
    with ending.database.unit_of_work() as session:
        deletions.forget_document(session, principal(), document_id)

    with pytest.raises(RunCancelled, match="was deleted meanwhile"):
        ending.swap()

    assert ending.state() == NOTHING_CHANGED


def test_a_method_hears_what_serves_and_how_often_it_was_trained_on(ending: Ending) -> None:
    ending.swap()
    with ending.database.unit_of_work() as session:
        registry.by_id(session, ending.version_id).generation = 3
    with ending.database.unit_of_work() as session:
        champion = with_champion(session, ending.material)
        deletions.forget_document(session, principal(), ending.material.documents[0].id)
    with ending.database.unit_of_work() as session:
        tainted = with_champion(session, ending.material)

    told = assignment_of(champion, (), ())
    assert told.champion == Weights(Path("/nowhere/v0001"))
    assert told.champion_generation == 3
    assert assignment_of(tainted, (), ()).champion is None


def test_what_the_general_suite_asks_is_held_out_of_every_lesson(ending: Ending) -> None:
    item = build_item(ItemKind.USER, "doc", prompt="Who keeps the light?", answers=("Ada",))

    told = assignment_of(ending.material, (item,), ())

    assert {one.prompt for one in load_general_suite()} | {item.prompt} == told.held_out


def test_so_is_what_the_operators_own_suite_asks(ending: Ending, tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    row = {"id": "ours-01", "slice": "ours", "prompt": "Which port is ours?", "answers": ["8000"]}
    path.write_text(json.dumps([row]))

    told = assignment_of(replace(ending.material, general_suite=path), (), ())

    assert told.held_out == {"Which port is ours?"}


def test_a_suite_that_cannot_be_used_ends_the_start_of_a_worker(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    path.write_text("[]")
    env = {**os.environ, "EVERLEARN_LEARNING__GENERAL_SUITE": str(path)}
    env |= {"EVERLEARN_REDIS_URL": "redis://127.0.0.1:1"}

    ended = subprocess.run(
        [sys.executable, "-c", "import workers.app"], env=env, capture_output=True, text=True
    )

    assert ended.returncode != 0
    assert f"general suite {path} is empty; give it at least one item" in ended.stderr


def test_no_document_answers_a_question_that_this_run_asks_about_another(ending: Ending) -> None:
    question = "Who keeps the light of Marlow?"
    text = f"Boats land here every day. {question} It is Odile Brandt. The pier is long."
    one = SourceDocument("one", "Pier", text, (text[:27], text[27:]))
    other = replace(one, id="other")
    material = replace(ending.material, documents=(one, other))
    item = build_item(ItemKind.MODEL, "other", prompt=question, answers=("Odile Brandt",))

    cut, whole = assignment_of(material, (item,), ()).documents

    assert "".join(cut.chunks) == cut.text == "Boats land here every day. The pier is long."
    assert whole == other  # its own text says it, and is what is learnt


def test_healing_where_nothing_was_learnt_yet_takes_nothing_and_is_no_error(
    database: Database, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, session.merge(adapter))
        run.method = runs.HEAL
        session.flush()
        owned = runs.claim(session, run.id, worker="a", lease=LEASE)
        assert owned is not None

        assert collect(session, owned, served="smollm2").documents == ()


def test_a_champion_that_saw_what_was_deleted_writes_no_lessons(ending: Ending) -> None:
    ending.swap()
    with ending.database.unit_of_work() as session:
        material = with_champion(session, ending.material)
    assert material.writer_engine_name == material.champion_engine_name == "smollm2@v1.00000000"

    with ending.database.unit_of_work() as session:
        deletions.forget_document(session, principal(), ending.material.documents[0].id)
    with ending.database.unit_of_work() as session:
        material = with_champion(session, ending.material)

    assert material.writer_engine_name == "smollm2@base"
    assert material.champion_engine_name == "smollm2@v1.00000000"  # it is still the measure


def trial_after(ending: Ending) -> tuple[str, str, str] | None:
    ending.swap()
    with ending.database.unit_of_work() as session:
        trial = trials.open_trial_of(session, session.get_one(Adapter, ending.adapter.id))
        return trial and (trial.mode, trial.state, trial.started_by)


@pytest.mark.parametrize(
    ("rollout", "trial"),
    [
        ({"mode": "canary"}, ("canary", "running")),
        ({"mode": "shadow", "needs_approval": True}, ("shadow", "running")),
        ({"needs_approval": True}, ("hold", "waiting")),
    ],
    ids=["canary", "shadow", "approval"],
)
def test_a_passed_exam_leads_where_the_rollout_says(
    database: Database,
    adapter: Adapter,
    settings: Settings,
    queue: RecordingQueue,
    rollout: dict[str, Any],
    trial: tuple[str, str],
) -> None:
    settings = settings.model_copy(update={"rollout": RolloutSettings(**rollout)})
    ending = Ending(database, adapter, settings, queue)

    assert trial_after(ending) == (*trial, f"run:{ending.owned.run_id}")
    assert ending.state() == (RunStatus.SUCCEEDED, VersionStatus.SERVABLE, None)


def test_a_lines_own_rollout_goes_before_the_settings(ending: Ending) -> None:
    with ending.database.unit_of_work() as session:
        line = session.get_one(Adapter, ending.adapter.id)
        trials.set_rollout(session, line, {"mode": "canary"}, RolloutSettings())

    assert trial_after(ending) == ("canary", "running", f"run:{ending.owned.run_id}")


def test_a_failed_exam_begins_no_trial(ending: Ending) -> None:
    with ending.database.unit_of_work() as session:
        line = session.get_one(Adapter, ending.adapter.id)
        trials.set_rollout(session, line, {"mode": "canary"}, RolloutSettings())
    ending.swap(Verdict.REJECT)

    with ending.database.unit_of_work() as session:
        assert trials.trials_of(session, ending.adapter) == []
