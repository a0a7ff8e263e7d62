"""Exams taken: one row for the comparison, one per question for both answers."""

from typing import Any

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Base, Row


class Evaluation(Row):
    """Champion and challenger on the same questions, and the gate's decision."""

    __tablename__ = "evaluations"

    run_id: Mapped[str] = mapped_column(ForeignKey("adaptation_runs.id"), unique=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("adapter_versions.id"))
    champion_version_id: Mapped[str | None] = mapped_column(ForeignKey("adapter_versions.id"))
    verdict: Mapped[str] = mapped_column(String(20))
    decision: Mapped[dict[str, Any]]


class EvaluationResult(Base):
    """Both answers to one question."""

    __tablename__ = "evaluation_results"

    evaluation_id: Mapped[str] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    item_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    document_id: Mapped[str | None] = mapped_column(String(48))
    kind: Mapped[str] = mapped_column(String(20))
    grader: Mapped[str] = mapped_column(String(20), default="match")
    prompt: Mapped[str] = mapped_column(Text)
    expected: Mapped[list[str]]
    champion_reply: Mapped[str] = mapped_column(Text)
    champion_is_correct: Mapped[bool]
    challenger_reply: Mapped[str] = mapped_column(Text)
    challenger_is_correct: Mapped[bool]


class JudgeCalibration(Row):
    """How far a judging model agrees with answers whose verdict is known."""

    __tablename__ = "judge_calibrations"

    judge: Mapped[str] = mapped_column(String(200), index=True)
    """Hash of the base model and of the prompt that it judges by."""
    cases: Mapped[int]
    agreed: Mapped[int]
    false_right: Mapped[int]
    """Wrong answers that it called right."""
    false_wrong: Mapped[int]
    is_trusted: Mapped[bool]
