"""/api/v1/interactions: look at what was asked and answered, export it, blank it, delete it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from adapters.redaction import build_redactor
from server.api.deletions import go_on
from server.api.deps import Admin, Read, RequestId, RuntimeDep
from server.api.schemas.base import Id, Moment, Text
from server.api.schemas.deletions import ForgottenView
from server.api.schemas.interactions import InteractionDetail, InteractionPage, InteractionView
from server.api.views import interaction_detail, interaction_view
from server.db import Arm, Endpoint, Outcome
from server.services import audit, deletions, experience, interactions
from server.services.interactions import Filters

router = APIRouter(prefix="/interactions", tags=["interactions"])


def _filters(
    adapter: Id | None = None,
    version: Text | None = None,
    outcome: Outcome | None = None,
    endpoint: Endpoint | None = None,
    task: Id | None = None,
    key: Id | None = None,
    conversation: Id | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    has_feedback: bool | None = None,
    arm: Arm | None = None,
    q: Annotated[Text | None, Query(min_length=2, max_length=200)] = None,
) -> Filters:
    return Filters(
        adapter=adapter,
        version=version,
        outcome=outcome,
        endpoint=endpoint,
        task=task,
        key=key,
        conversation=conversation,
        since=since,
        until=until,
        has_feedback=has_feedback,
        arm=arm,
        text=q,
    )


FiltersDep = Annotated[Filters, Depends(_filters)]


@router.get("", responses={400: {}})
async def list_interactions(
    runtime: RuntimeDep,
    actor: Read,
    filters: FiltersDep,
    after: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> InteractionPage:
    """Newest first. `q` looks into replies and last messages, without an index: narrow it."""

    def read(session: Session) -> InteractionPage:
        page = interactions.list_interactions(session, actor, filters, after=after, limit=limit)
        return InteractionPage(data=[interaction_view(row) for row in page.rows], next=page.next)

    return await runtime.database.read(read)


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {}}}, 400: {}},
)
async def export_interactions(
    runtime: RuntimeDep, actor: Read, filters: FiltersDep
) -> StreamingResponse:
    """What may be learnt from, redacted, as JSON lines in OpenAI's fine-tuning format for chat."""
    redactor = await asyncio.to_thread(build_redactor, runtime.settings.capture.redactor)
    first = await runtime.database.read(experience.export_page, actor, filters)

    async def lines() -> AsyncIterator[str]:
        page, last = first
        while True:
            # Redaction is CPU work, and this loop has requests to serve.
            yield await asyncio.to_thread(experience.training_lines, page, redactor)
            if last is None:
                return
            page, last = await runtime.database.read(experience.export_page, actor, filters, last)

    return StreamingResponse(lines(), media_type="application/jsonl")


@router.get("/{interaction_id}", responses={404: {}})
async def get_interaction(
    interaction_id: Text, runtime: RuntimeDep, actor: Read
) -> InteractionDetail:
    """One interaction with its messages and its feedback."""

    def read(session: Session) -> InteractionDetail:
        row = interactions.get_interaction(session, actor, interaction_id)
        return interaction_detail(session, row)

    return await runtime.database.read(read)


@router.post("/{interaction_id}/redact", responses={404: {}})
async def redact_interaction(
    interaction_id: Text, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> InteractionView:
    """Blank its prompt, its reply and the words of its feedback; tokens and times stay."""

    def redact(session: Session) -> InteractionView:
        row = interactions.redact_interaction(session, actor, interaction_id)
        audit.record(
            session, actor, "interaction.redact", row.id, None, request_id, owner=row.owner
        )
        return interaction_view(row)

    return await runtime.database.run(redact)


@router.delete("/{interaction_id}", responses={404: {}})
async def delete_interaction(
    interaction_id: Text,
    runtime: RuntimeDep,
    actor: Admin,
    request_id: RequestId,
    rebuild: bool = False,
) -> ForgottenView:
    """Delete it, with its feedback and the messages that nothing else reaches.

    With ``rebuild``, versions that were trained on it are made again without it, and retired.
    """

    def delete(session: Session) -> str:
        return deletions.forget_interaction(
            session, actor, interaction_id, rebuild=rebuild, request_id=request_id
        ).id

    deletion = await go_on(runtime, await runtime.database.run(delete))
    return ForgottenView(id=interaction_id, deletion=deletion)
