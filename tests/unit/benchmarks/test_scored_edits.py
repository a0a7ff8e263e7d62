"""Scoring self-edits both ways: the same edits, the same questions, the same scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.lesson import Stage, Weights
from adapters.types import ChatMessage, ExamItem, ItemKind, SourceDocument, build_item
from benchmarks import scored_edits
from tests.support.workbench import PaperBench, ScriptedSampler

TEXT = "Ada keeps the light. The lamp is green. The door is red. The cat is old."
DOCUMENT = SourceDocument("d", "The Light", TEXT, (TEXT,))
QUESTIONS: list[ExamItem] = [
    build_item(ItemKind.CLOZE, "d", prompt=f"Who is {n}?", answers=(str(n),)) for n in range(4)
]


def bench() -> PaperBench:
    def knows(weights: Weights) -> Any:
        most = int(weights.folder.name.rpartition("-")[2])

        def reply(conversation: Sequence[ChatMessage]) -> str:
            asked = int(conversation[-1]["content"].removeprefix("Who is ").rstrip("?"))
            return str(asked) if asked <= most else "-"

        return reply

    return PaperBench(ScriptedSampler(lambda _: ""), knows)


def test_edits_differ_and_hold_the_passage() -> None:
    stages = scored_edits.candidates(DOCUMENT, 3)

    assert len({tuple(edit.text for edit in stage.edits) for stage in stages}) == 3
    assert all(TEXT in stage.edits[0].text for stage in stages)
    assert len({stage.lora for stage in stages}) == 1


@pytest.mark.parametrize("way", [scored_edits.score_in_turn, scored_edits.score_at_once])
def test_both_ways_score_every_edit_in_its_order(way: Any) -> None:
    stages: list[Stage] = scored_edits.candidates(DOCUMENT, 3)

    scores = way(cast(Any, bench()), stages, QUESTIONS)

    assert scores == [0.25, 0.5, 0.75]


def test_its_document_is_there() -> None:
    assert Path(scored_edits._TEXT).is_file()
    assert "Ilse Brandvold" in scored_edits._document().text
