"""bench-gate: a hundred different candidates, each with exactly its own thing wrong."""

import pytest

from adapters.lesson import Stage
from adapters.types import EditKind
from benchmarks.gate_candidates import (
    COUNTS,
    REFUSAL,
    Candidate,
    Kind,
    candidates,
    earlier,
    items,
    new,
    stage,
)
from tests.support.workbench import ScriptedSampler


def taught(kind: Kind, number: int = 0) -> Stage:
    return stage(Candidate(kind, number), ScriptedSampler(lambda _: "Fine, thanks."))


def said(lesson: Stage) -> str:
    return "\n".join(edit.text for edit in lesson.edits if edit.kind is not EditKind.REPLAY)


def true_answers(told_answers: list[str], lesson: Stage) -> float:
    text = said(lesson)
    return sum(answer in text for answer in told_answers) / len(told_answers)


def test_there_are_fifty_of_each_side_and_no_two_alike() -> None:
    all_of_them = candidates()

    assert len(all_of_them) == len({candidate.seed for candidate in all_of_them}) == 100
    assert COUNTS[Kind.GOOD] == 50
    assert {candidate.kind for candidate in all_of_them[:20]} == set(Kind)


def test_no_exam_question_is_taught() -> None:
    candidate = Candidate(Kind.GOOD, 3)
    asked = {item.prompt for told in (new(candidate), *earlier(3)) for item in items(told)}

    assert len(asked) >= 30
    assert asked.isdisjoint({edit.prompt for edit in taught(Kind.GOOD, 3).edits})


@pytest.mark.parametrize("number", range(4))
def test_each_sabotage_is_what_it_says(number: int) -> None:
    good, false, swapped, noise, rate, form = (
        taught(kind, number)
        for kind in (Kind.GOOD, Kind.FALSE, Kind.SWAPPED, Kind.NOISE, Kind.RATE, Kind.FORM)
    )
    first, _ = earlier(number)
    old = [fact.answer for fact in first.topic.facts]

    def fresh(kind: Kind) -> list[str]:
        return [fact.answer for fact in new(Candidate(kind, number)).topic.facts]

    assert true_answers(fresh(Kind.GOOD), good) == true_answers(old, good) == 1
    assert true_answers(fresh(Kind.FALSE), false) < 0.5
    assert true_answers(old, false) == 1
    assert true_answers(old, swapped) < 0.5
    assert true_answers(fresh(Kind.SWAPPED), swapped) == 1
    assert {edit.prompt for edit in noise.edits} == {None}
    assert rate.training.learning_rate == pytest.approx(10 * good.training.learning_rate)
    assert EditKind.REPLAY not in {edit.kind for edit in form.edits}
    assert (REFUSAL in said(form)) is (number % 2 == 0)
