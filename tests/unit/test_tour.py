"""What the guided tour reads off a run: whether the same lesson, and less of it kept, is worth a try."""

import pytest

from adapters.evaluation.exam import Answer
from adapters.evaluation.gate import decide
from adapters.spec import GateThresholds
from adapters.types import ExamItem, ItemKind
from examples.demo.tour import has_lost_general_knowledge


def run_of(*, learnt: int, kept: int) -> dict[str, object]:
    """A run's JSON after an exam: so many of 10 new facts, so many of 40 general items of 37."""
    items, before, after = [], [], []
    for number in range(50):
        is_general = number >= 10
        kind, about = (ItemKind.GENERAL, None) if is_general else (ItemKind.CLOZE, "doc_1")
        items.append(ExamItem(f"{number:02}", kind, about, f"Question {number}?", ("Aldra",)))
        before.append(is_general and number < 10 + 37)
        after.append(number < 10 + kept if is_general else number < learnt)
    sides = (
        [
            Answer(item.id, "It is Aldra.", is_correct)
            for item, is_correct in zip(items, side, strict=True)
        ]
        for side in (before, after)
    )
    decision = decide(
        items,
        *sides,
        new_documents=["doc_1"],
        earlier_documents=[],
        thresholds=GateThresholds(),
    )
    exam = decision.to_json()
    return {"status": "succeeded", "verdict": exam["verdict"], "report": {"exam": exam}}


@pytest.mark.parametrize(
    ("run", "is_lost"),
    [
        pytest.param(run_of(learnt=8, kept=33), False, id="promoted at the margin"),
        pytest.param(run_of(learnt=8, kept=32), True, id="one beyond the margin"),
        pytest.param(run_of(learnt=0, kept=37), False, id="nothing learnt, nothing lost"),
        pytest.param({"status": "failed", "verdict": None, "report": {}}, False, id="failed"),
        pytest.param(
            {"status": "succeeded", "verdict": "reject", "report": {}}, False, id="no exam"
        ),
    ],
)
def test_only_a_lesson_that_cost_general_knowledge_is_learnt_again_gentler(run, is_lost):
    assert has_lost_general_knowledge(run) is is_lost
