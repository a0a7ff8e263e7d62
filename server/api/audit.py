"""/api/v1/audit: what admins did."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from server.api.deps import Admin, RuntimeDep
from server.api.schemas import AuditEventView, Page, Text
from server.services import audit

router = APIRouter(prefix="/audit", tags=["audit"])


@router.get("", responses={400: {}})
async def list_events(
    runtime: RuntimeDep,
    actor: Admin,
    after: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page:
    """Newest first; ``after`` takes the ``next`` of the page before."""

    def read(session: Session) -> Page:
        found = audit.list_events(session, tenant=actor.owner, after=after, limit=limit + 1)
        shown = found[:limit]
        return Page(
            data=[AuditEventView.model_validate(event, from_attributes=True) for event in shown],
            next=shown[-1].id if len(found) > limit else None,
        )

    return await runtime.database.read(read)
