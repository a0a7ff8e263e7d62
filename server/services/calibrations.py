"""How far the judge of exams is to be believed: kept once for each judge, and shown."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.clock import new_id
from server.db import JudgeCalibration


def latest(session: Session, judge: str) -> JudgeCalibration | None:
    """The last calibration of a judge, which is named by its digest."""
    return session.scalar(
        select(JudgeCalibration)
        .where(JudgeCalibration.judge == judge)
        .order_by(JudgeCalibration.id.desc())
        .limit(1)
    )


def record(
    session: Session,
    *,
    judge: str,
    cases: int,
    agreed: int,
    false_right: int,
    false_wrong: int,
    is_trusted: bool,
) -> None:
    """Keep what a calibration found."""
    session.add(
        JudgeCalibration(
            id=new_id("cal"),
            judge=judge,
            cases=cases,
            agreed=agreed,
            false_right=false_right,
            false_wrong=false_wrong,
            is_trusted=is_trusted,
        )
    )


def list_all(session: Session) -> Sequence[JudgeCalibration]:
    """Every calibration, newest first; there is one for each base model and change of it."""
    statement = select(JudgeCalibration).order_by(JudgeCalibration.id.desc())
    return session.scalars(statement).all()
