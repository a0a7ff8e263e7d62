"""The editor: learns what was accepted, but of held-out documents, and must teach more than before."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from adapters.evaluation.gate import Verdict
from adapters.lesson import Weights
from adapters.methods import AcceptedSelfEdit, Assignment, build_method
from adapters.methods.edit_prompts import edit_prompt
from adapters.methods.seal_editor import (
    EditorScore,
    compare_editors,
    decide_editor,
    is_held_out,
)
from adapters.spec import (
    EditorExamSpec,
    EditPrompt,
    OuterLoopSpec,
    SealConfig,
    SealEditorConfig,
)
from adapters.types import ChatMessage, EditKind, ItemKind, SourceDocument, build_item
from tests.support.workbench import PaperBench, ScriptedSampler

SPEC = EditorExamSpec(held_out_share=0.5, candidates=1)
CONFIG = SealEditorConfig(
    min_edits=2,
    editor_exam=SPEC,
    inner=SealConfig(outer=OuterLoopSpec(prompts=(EditPrompt.REWRITE,), min_questions=1)),
)


def document(number: int) -> SourceDocument:
    text = f"The crane of Quill was built in {1800 + number} by Ada Penhallow."
    return SourceDocument(f"doc_{number}", "Quill", text, (text,))


DOCUMENTS = tuple(document(number) for number in range(20))
HELD_OUT = [each for each in DOCUMENTS if is_held_out(each, SPEC)]
TAUGHT = [each for each in DOCUMENTS if not is_held_out(each, SPEC)]


def accepted(of: SourceDocument, text: str | None = None) -> AcceptedSelfEdit:
    prompt = edit_prompt(EditPrompt.REWRITE, title=of.title, passage=of.text)
    return AcceptedSelfEdit(of.id, prompt, text or f"Anew: {of.text}", 0.5, 0.0)


QUIZ = tuple(
    build_item(
        ItemKind.MODEL,
        each.id,
        prompt="When was the crane of Quill built?",
        answers=(each.text.split()[7],),
    )
    for each in DOCUMENTS
)
ASSIGNMENT = Assignment(
    documents=DOCUMENTS, quiz=QUIZ, accepted=tuple(accepted(each) for each in DOCUMENTS)
)


def bench() -> PaperBench:
    """Trained models say what the statements of their lesson say."""

    def knows(weights: Weights) -> Any:
        stage = paper.trials[int(weights.folder.name.partition("-")[2])]
        known = " ".join(e.text for e in stage.edits if e.kind is not EditKind.PASSAGE)
        return lambda _: known or "I do not know."

    paper = PaperBench(ScriptedSampler(lambda _: "Yes."), knows)
    return paper


def good_editor(said: Sequence[ChatMessage]) -> str:
    """Says the passage another way."""
    year = said[-1]["content"].partition("built in ")[2][:4]
    return f"In {year} Ada Penhallow built it."


def poor_editor(_: Sequence[ChatMessage]) -> str:
    return "It was built by Napoleon."


def compare(
    champion: Any,
    challenger: Any,
    paper: PaperBench | None = None,
    assignment: Assignment = ASSIGNMENT,
) -> list[EditorScore]:
    return compare_editors(
        assignment,
        paper or bench(),
        champion=ScriptedSampler(champion),
        challenger=ScriptedSampler(challenger),
        name="exam",
        config=CONFIG,
    )


def test_it_learns_the_replies_that_were_accepted_but_not_of_held_out_documents() -> None:
    paper = bench()

    outcome = build_method(CONFIG).learn(ASSIGNMENT, paper)

    [(stage, start)] = paper.trainings
    assert {edit.document_id for edit in stage.edits} == {each.id for each in TAUGHT}
    assert {(e.prompt, e.text) for e in stage.edits} == {
        (accepted(each).prompt, accepted(each).text) for each in TAUGHT
    }
    assert (start, outcome.weights is not None) == (None, True)
    assert stage.training.epochs == 2


def test_the_split_is_the_same_in_every_run_and_leaves_both_sides_something() -> None:
    assert len(HELD_OUT) > 4
    assert len(TAUGHT) > 4
    assert not any(is_held_out(each, EditorExamSpec(held_out_share=0)) for each in DOCUMENTS)


def test_too_few_edits_are_no_update() -> None:
    few = replace(ASSIGNMENT, accepted=(accepted(TAUGHT[0]), accepted(HELD_OUT[0])))

    outcome = build_method(CONFIG).learn(few, paper := bench())

    assert outcome.weights is None
    assert str(outcome.report["no_update"]).startswith("1 accepted edits")
    assert paper.trainings == []


def test_edits_of_a_text_that_has_changed_or_is_gone_are_not_learnt() -> None:
    changed = replace(TAUGHT[0], text="Other.", chunks=("Other.",))
    now = replace(ASSIGNMENT, documents=(changed, *TAUGHT[2:]))

    build_method(CONFIG).learn(now, paper := bench())

    [(stage, _)] = paper.trainings
    assert {edit.document_id for edit in stage.edits} == {each.id for each in TAUGHT[2:]}


def test_an_edit_with_a_question_of_the_exam_is_not_learnt() -> None:
    asked = "Who built the crane of Quill?"
    pair = f"Question 1: {asked}\nAnswer: Ada Penhallow"
    of = TAUGHT[0]
    prompt = edit_prompt(EditPrompt.SELF_QA, title=of.title, passage=of.text)
    edits = (AcceptedSelfEdit(of.id, prompt, pair, 1, 0), *map(accepted, TAUGHT[1:]))
    assignment = replace(ASSIGNMENT, accepted=edits)

    build_method(CONFIG).learn(assignment, before := bench())
    build_method(CONFIG).learn(replace(assignment, held_out=frozenset({asked})), after := bench())

    assert [
        any(asked in edit.text for edit in paper.trainings[0][0].edits) for paper in (before, after)
    ] == [True, False]


def test_the_editor_whose_edits_teach_wins_on_every_held_out_document() -> None:
    scores = compare(poor_editor, good_editor)

    assert [score.document_id for score in scores] == [each.id for each in HELD_OUT]
    assert {(score.champion, score.challenger) for score in scores} == {(0.0, 1.0)}
    assert decide_editor(scores, SPEC, seed=0).verdict is Verdict.PROMOTE


def test_an_editor_that_has_got_worse_is_rejected() -> None:
    scores = compare(good_editor, poor_editor)

    assert decide_editor(scores, SPEC, seed=0).verdict is Verdict.REJECT


def test_an_attempt_after_a_crash_goes_on_where_it_was() -> None:
    paper = bench()
    first = compare(poor_editor, good_editor, paper)
    trials = len(paper.trials)

    again = compare(poor_editor, good_editor, paper)

    assert again == first
    assert len(paper.trials) == trials


def test_documents_without_enough_questions_say_nothing() -> None:
    silent = replace(ASSIGNMENT, quiz=())

    scores = compare(poor_editor, good_editor, assignment=silent)

    assert scores == []


def gains(*values: float) -> list[EditorScore]:
    return [EditorScore(f"doc_{n}", 3, 0.0, value) for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        pytest.param(gains(1, 1, 1, 1), Verdict.INCONCLUSIVE, id="too few documents"),
        pytest.param(gains(0.5, 0.25, 0.5, 0.25, 0.5), Verdict.PROMOTE, id="all gain"),
        pytest.param(gains(1, -1, 1, -1, 1), Verdict.INCONCLUSIVE, id="chance may explain it"),
        pytest.param(gains(0, 0, 0, 0, 0), Verdict.REJECT, id="no gain"),
        pytest.param(gains(-1, -1, 0, -1, 0.5), Verdict.REJECT, id="loss"),
    ],
)
def test_the_verdict_is_by_the_mean_gain_and_its_bound(
    scores: list[EditorScore], verdict: Verdict
) -> None:
    decision = decide_editor(scores, SPEC, seed=3)

    assert decision.verdict is verdict
    assert cast(list[str], decision.to_json()["reasons"])
