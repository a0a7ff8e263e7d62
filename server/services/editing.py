"""Accepted edits: what the outer loop found to teach most, kept for later runs of the line."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from server.core.clock import new_id
from server.db import AcceptedEdit, Document
from server.services import runs, taint
from server.services.runs import Claim


@dataclass(frozen=True, slots=True)
class Found:
    """An edit of one passage of a document, with the columns of AcceptedEdit."""

    document_id: str
    prompt: str
    text: str
    score: float
    base_score: float


def keep(session: Session, owned: Claim, found: Iterable[Found]) -> list[AcceptedEdit]:
    """Store what a run has found, in place of what an earlier attempt of it stored.

    Nothing is kept of a document that was deleted meanwhile, nor of a run that saw a deletion: the
    same text sent anew is a new document, which asked for nothing to be remembered.

    Raises:
        LeaseLost: the run belongs to another worker by now.
    """
    runs.assert_owned(session, owned)
    session.execute(delete(AcceptedEdit).where(AcceptedEdit.run_id == owned.run_id))
    found = list(found)
    if not found or taint.deletion_seen_by(session, owned.run_id):
        return []
    live = select(Document.id).where(
        Document.id.in_({each.document_id for each in found}), Document.deleted_at.is_(None)
    )
    # In the order of ids, as everybody locks them: a deletion waits, and then finds the rows.
    known = set(session.scalars(live.order_by(Document.id).with_for_update()))
    line = runs.get_run(session, owned.run_id).adapter_id
    rows = [
        AcceptedEdit(id=new_id("edt"), adapter_id=line, run_id=owned.run_id, **asdict(each))
        for each in found
        if each.document_id in known
    ]
    session.add_all(rows)
    return rows


def accepted_edits(
    session: Session, adapter_id: str, document_ids: Iterable[str]
) -> list[AcceptedEdit]:
    """Of each of these documents what the line's latest run that kept any has kept, in order."""
    rows: Sequence[AcceptedEdit] = session.scalars(
        select(AcceptedEdit)
        .where(
            AcceptedEdit.adapter_id == adapter_id,
            AcceptedEdit.document_id.in_(list(document_ids)),
        )
        .order_by(AcceptedEdit.document_id, AcceptedEdit.id)
    ).all()
    latest = {row.document_id: row.run_id for row in rows}
    return [row for row in rows if row.run_id == latest[row.document_id]]
