"""What a run's report says, gathered from its rows: exam, lesson and lineage. Reads only."""

from typing import Any

from sqlalchemy.orm import Session

from server.db import AdaptationRun
from server.services import evaluations


def exam_of(session: Session, run: AdaptationRun) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The gate's decision and both answers to every question; empty where there was no exam.

    What the model lost comes first, then what it gained, then the rest.
    """
    evaluation = evaluations.of_run(session, run.id)
    if evaluation is None:
        return {}, []
    rows = sorted(evaluations.results_of(session, evaluation), key=_interest)
    return evaluation.decision, rows


def _interest(row: dict[str, Any]) -> tuple[bool, bool, bool]:
    before, after = row["champion_is_correct"], row["challenger_is_correct"]
    return before == after, not before, not after
