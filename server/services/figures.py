"""What metrics tell of the database: counts of runs, verdicts, trials, deletions and documents."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.core.metrics import Figures
from server.db import AdaptationRun, Adapter, Deletion, Document, RunKind, Trial


def read(session: Session) -> Figures:
    """Five counts over tables that grow by runs and documents, not by requests."""
    verdicts = session.execute(
        select(Adapter.name, AdaptationRun.verdict, func.count())
        .join(Adapter, Adapter.id == AdaptationRun.adapter_id)
        .where(AdaptationRun.kind == RunKind.LEARN, AdaptationRun.verdict.is_not(None))
        .group_by(Adapter.name, AdaptationRun.verdict)
    )
    trials = session.execute(
        select(Adapter.name, Trial.mode, Trial.state, func.count())
        .join(Adapter, Adapter.id == Trial.adapter_id)
        .group_by(Adapter.name, Trial.mode, Trial.state)
    )
    runs = session.execute(
        select(AdaptationRun.status, func.count()).group_by(AdaptationRun.status)
    )
    deletions = session.execute(select(Deletion.state, func.count()).group_by(Deletion.state))
    documents = session.execute(
        select(Document.state, func.count())
        .where(Document.deleted_at.is_(None))
        .group_by(Document.state)
    )
    return Figures(
        verdicts={(line, verdict or ""): count for line, verdict, count in verdicts},
        trials={(line, mode, state): count for line, mode, state, count in trials},
        runs=dict(runs.all()),  # a result has keys(), and dict() would take it for a mapping
        deletions=dict(deletions.all()),
        documents=dict(documents.all()),
    )
