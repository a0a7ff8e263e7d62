"""/api/v1/feedback: judge a reply, by nothing but its id."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from sqlalchemy.orm import Session

from server.api.deps import Judge, Read, RuntimeDep
from server.api.schemas.base import Id, Text
from server.api.schemas.feedback import FeedbackBody, FeedbackListing, FeedbackPage
from server.api.views import feedback_view
from server.core.errors import InvalidRequest
from server.db import FeedbackKind
from server.services import feedback
from server.services.feedback import Judgement

router = APIRouter(prefix="/feedback", tags=["feedback"])


@router.post(
    "",
    status_code=201,
    responses={
        200: {"model": FeedbackListing},
        202: {"model": FeedbackListing},
        400: {},
        404: {},
        409: {},
    },
)
async def create_feedback(
    body: FeedbackBody,
    response: Response,
    runtime: RuntimeDep,
    actor: Judge,
    idempotency_key: Annotated[Id | None, Header()] = None,
) -> FeedbackListing:
    """Judge a reply in one or several ways. The same again answers 200 and keeps nothing more.

    202 where the reply is on its way into the database: the feedback joins it there.
    """
    judgements = _judgements(body)

    def give(session: Session) -> tuple[FeedbackListing, bool]:
        rows, is_new = feedback.give(
            session, actor, body.completion_id, judgements, idempotency_key=idempotency_key
        )
        return FeedbackListing(data=[feedback_view(row) for row in rows]), is_new

    listing, is_new = await runtime.database.run(give)
    is_waiting = any(view.interaction_id is None for view in listing.data)
    response.status_code = 202 if is_waiting else 201 if is_new else 200
    return listing


@router.get("", responses={400: {}})
async def list_feedback(
    runtime: RuntimeDep,
    actor: Read,
    completion_id: Id | None = None,
    kind: FeedbackKind | None = None,
    after: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> FeedbackPage:
    """Newest first; `completion_id` may be the interaction's id too."""

    def read(session: Session) -> FeedbackPage:
        page = feedback.list_feedback(
            session, actor, target=completion_id, kind=kind, after=after, limit=limit
        )
        return FeedbackPage(data=[feedback_view(row) for row in page.rows], next=page.next)

    return await runtime.database.read(read)


def _judgements(body: FeedbackBody) -> list[Judgement]:
    said: list[Judgement] = []
    if body.score is not None:
        said.append(Judgement(FeedbackKind.SCORE, {"score": body.score}, body.choice))
    if body.thumb is not None:
        said.append(Judgement(FeedbackKind.THUMB, {"thumb": body.thumb}, body.choice))
    for kind, text in (
        (FeedbackKind.CORRECTION, body.correction),
        (FeedbackKind.REFERENCE, body.reference),
        (FeedbackKind.COMMENT, body.comment),
    ):
        if text is not None:
            said.append(Judgement(kind, {"text": text}, body.choice))
    if body.preference is not None:
        if body.preference.chosen == body.preference.rejected:
            raise InvalidRequest("A choice cannot be preferred to itself.", "preference")
        said.append(Judgement(FeedbackKind.PREFERENCE, body.preference.model_dump()))
    if not said:
        known = ", ".join(FeedbackKind)
        raise InvalidRequest(f"Nothing was said of the reply; send one or more of {known}.")
    return said
