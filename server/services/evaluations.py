"""Exams: keep both answers to every question, and the gate's decision."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.types import ItemKind
from server.core.clock import new_id
from server.db import AdapterVersion, Evaluation, EvaluationResult


def record(
    session: Session,
    *,
    run_id: str,
    version: AdapterVersion,
    champion: AdapterVersion | None,
    verdict: str,
    decision: dict[str, Any],
    results: Iterable[dict[str, Any]],
) -> Evaluation:
    """Store an exam; ``results`` carry the columns of EvaluationResult but its evaluation."""
    evaluation = Evaluation(
        id=new_id("eva"),
        run_id=run_id,
        version_id=version.id,
        champion_version_id=champion.id if champion else None,
        verdict=verdict,
        decision=decision,
    )
    session.add(evaluation)
    session.flush()
    session.add_all(EvaluationResult(evaluation_id=evaluation.id, **row) for row in results)
    return evaluation


def of_version(session: Session, version: AdapterVersion) -> Evaluation | None:
    return session.scalar(select(Evaluation).where(Evaluation.version_id == version.id))


def results_of(session: Session, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Every question of an exam with both answers, in the columns of EvaluationResult."""
    rows = session.scalars(
        select(EvaluationResult)
        .where(EvaluationResult.evaluation_id == evaluation.id)
        .order_by(EvaluationResult.item_id)
    )
    columns = (column.name for column in EvaluationResult.__table__.columns)
    names = [name for name in columns if name != "evaluation_id"]
    return [{name: getattr(row, name) for name in names} for row in rows]


def net_loss(session: Session, evaluation: Evaluation, *, kind: ItemKind) -> int:
    """Questions of a kind that the version answered wrongly and its champion rightly, less those
    that went the other way."""
    outcomes = session.execute(
        select(EvaluationResult.champion_is_correct, EvaluationResult.challenger_is_correct).where(
            EvaluationResult.evaluation_id == evaluation.id, EvaluationResult.kind == kind
        )
    )
    return sum(int(champion) - int(challenger) for champion, challenger in outcomes)


def of_run(session: Session, run_id: str) -> Evaluation | None:
    return session.scalar(select(Evaluation).where(Evaluation.run_id == run_id))


def accepted_drift(
    session: Session, version: AdapterVersion, *, most: int = 20
) -> list[tuple[float | None, float | None]]:
    """KL per token, on documents and in general, of the newest exams that the line's gate let pass."""
    rows = session.scalars(
        select(Evaluation.decision)
        .join(AdapterVersion, AdapterVersion.id == Evaluation.version_id)
        .where(AdapterVersion.adapter_id == version.adapter_id, Evaluation.verdict == "promote")
        .order_by(Evaluation.created_at.desc())
        .limit(most)
    )
    found = (row.get("drift") or {} for row in rows)
    return [
        ((drift.get("target") or {}).get("kl"), (drift.get("general") or {}).get("kl"))
        for drift in found
    ]
