"""Questions about a document: sent later by users, found in traffic, listed, taken back.

The split never changes: a user's question and one from traffic are only ever asked.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from adapters.types import ExamItem, ItemKind
from server.core.errors import RowNotFound
from server.db import EvaluationResult, ExamQuestion, Interaction
from server.services import audit, documents
from server.services.documents import SentQuestion
from server.services.keys import Principal
from server.services.paging import Page, page_of


@dataclass(frozen=True, slots=True)
class Heard:
    """A question that a user of the model has asked, with what the document says to it."""

    item: ExamItem
    interaction_id: str


@dataclass(frozen=True, slots=True)
class HeardSoFar:
    """The questions from traffic that some documents have."""

    interactions: frozenset[str]
    by_asker: Counter[tuple[str, str]]
    """How many by document and asker, who is the end user, or the key where none is named."""


def add(
    session: Session, principal: Principal, document_id: str, sent: Sequence[SentQuestion]
) -> tuple[list[ExamQuestion], int]:
    """Store questions on a document, each once; the rows in the order sent, and how many are new.

    One that is there in the same words stays as it is, with its answers.

    Raises:
        RowNotFound: no such document, another tenant's, or a deleted one.
        InvalidRequest: the document would have too many.
    """
    document = documents.get_document(session, document_id, tenant=principal.owner)
    session.flush()  # what is read anew must be there
    session.refresh(document, with_for_update=True)  # whoever deletes it comes before or after
    if document.deleted_at is not None:
        raise RowNotFound("document", document_id, "It was deleted; send it anew.")
    items, new = documents.add_user_questions(session, document_id, sent)
    rows = session.scalars(
        select(ExamQuestion).where(
            ExamQuestion.document_id == document_id,
            ExamQuestion.item_id.in_([item.id for item in items]),
        )
    )
    by_item = {row.item_id: row for row in rows}
    return [by_item[item_id] for item_id in dict.fromkeys(item.id for item in items)], new


def list_questions(
    session: Session,
    document_id: str,
    *,
    tenant: str | None = None,
    kind: str | None = None,
    without_traffic: bool = False,
    after: str | None = None,
    limit: int = 100,
) -> Page[ExamQuestion]:
    """The questions on a document, newest first.

    Args:
        without_traffic: leave out those that users of the model have asked.

    Raises:
        RowNotFound: no such document, or another tenant's.
        InvalidRequest: ``after`` is no cursor.
    """
    documents.get_document(session, document_id, tenant=tenant)
    statement = select(ExamQuestion).where(ExamQuestion.document_id == document_id)
    if without_traffic:
        statement = statement.where(ExamQuestion.kind != ItemKind.TRAFFIC)
    if kind is not None:
        statement = statement.where(ExamQuestion.kind == kind)
    return page_of(session, statement, ExamQuestion, after=after, limit=limit)


def remove(
    session: Session,
    principal: Principal,
    document_id: str,
    question_id: str,
    *,
    request_id: str | None = None,
) -> ExamQuestion:
    """Take one question out of all exams from now on; exams that were sat keep their rows.

    Raises:
        RowNotFound: no such document or question, or another tenant's.
    """
    document = documents.get_document(session, document_id, tenant=principal.owner)
    row = session.get(ExamQuestion, question_id)
    if row is None or row.document_id != document_id:
        raise RowNotFound(
            "question", question_id, f"List them: GET /api/v1/documents/{document_id}/questions."
        )
    session.delete(row)
    detail = {"document": document_id, "kind": row.kind, "split": row.split}
    audit.record(
        session,
        principal,
        "question.delete",
        question_id,
        detail,
        request_id,
        owner=document.owner,
    )
    session.flush()
    return row


def add_heard(session: Session, heard: Iterable[Heard]) -> int:
    """Store questions from traffic, but those whose interaction was deleted or redacted meanwhile.

    Returns how many were stored.
    """
    by_interaction = {one.interaction_id: one for one in heard}
    # Locked, so that whoever deletes the interaction finds the question, or we find it deleted.
    live = session.scalars(
        select(Interaction.id)
        .where(
            Interaction.id.in_(by_interaction),
            Interaction.may_learn,
            Interaction.redacted_at.is_(None),
        )
        .order_by(Interaction.id)
        .with_for_update()
    ).all()
    stored = 0
    for interaction_id in live:
        item = by_interaction[interaction_id].item
        if item.document_id is None:
            continue
        stored += documents.add_exam_questions(
            session, item.document_id, exam=[item], train=[], interaction_id=interaction_id
        )
    return stored


def heard_so_far(session: Session, document_ids: Collection[str]) -> HeardSoFar:
    """What traffic has given to these documents."""
    asker = func.coalesce(Interaction.end_user, Interaction.key_id)
    rows = session.execute(
        select(ExamQuestion.interaction_id, ExamQuestion.document_id, asker)
        .join(Interaction, Interaction.id == ExamQuestion.interaction_id)
        .where(ExamQuestion.document_id.in_(document_ids))
    ).all()
    return HeardSoFar(
        interactions=frozenset(found for found, _, _ in rows if found is not None),
        by_asker=Counter((document_id, who) for _, document_id, who in rows),
    )


def forget_heard(session: Session, interaction_ids: Collection[str]) -> None:
    """Take out the questions that came from these interactions, and what exams quoted of them.

    An exam of prompts quotes an interaction under the interaction's own id.
    """
    session.execute(
        delete(EvaluationResult).where(
            EvaluationResult.document_id.in_(interaction_ids),
            EvaluationResult.kind == ItemKind.PROMPT,
        )
    )
    rows = session.scalars(
        select(ExamQuestion)
        .where(ExamQuestion.interaction_id.in_(interaction_ids))
        .order_by(ExamQuestion.id)
        .with_for_update()  # an exam that is being stored is waited for
    ).all()
    for row in rows:
        session.execute(
            delete(EvaluationResult).where(
                EvaluationResult.document_id == row.document_id,
                EvaluationResult.item_id == row.item_id,
            )
        )
        session.delete(row)


def without_forgotten(session: Session, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an exam without the questions from traffic that were forgotten while it was sat.

    What is left cannot be forgotten before this transaction ends.
    """
    rows = list(rows)
    heard = {row["item_id"] for row in rows if row["kind"] == ItemKind.TRAFFIC}
    if not heard:
        return rows
    known = {
        (question.document_id, question.item_id)
        for question in session.scalars(
            select(ExamQuestion)
            .where(ExamQuestion.item_id.in_(heard), ExamQuestion.kind == ItemKind.TRAFFIC)
            .order_by(ExamQuestion.id)
            .with_for_update()
        )
    }
    return [
        row
        for row in rows
        if row["kind"] != ItemKind.TRAFFIC or (row["document_id"], row["item_id"]) in known
    ]
