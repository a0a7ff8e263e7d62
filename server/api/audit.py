"""/api/v1/audit: what admins did."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from server.api.deps import Admin, RuntimeDep
from server.api.schemas.base import Id, Page, Text
from server.api.views import audit_view
from server.services import audit

router = APIRouter(prefix="/audit", tags=["audit"])


@router.get("", responses={400: {}})
async def list_events(
    runtime: RuntimeDep,
    actor: Admin,
    deletion: Id | None = None,
    after: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page:
    """Newest first; ``after`` takes the ``next`` of the page before.

    With ``deletion``, only what followed from that one.
    """

    def read(session: Session) -> Page:
        found = audit.list_events(
            session, tenant=actor.owner, deletion=deletion, after=after, limit=limit + 1
        )
        shown = found[:limit]
        return Page(
            data=[audit_view(event) for event in shown],
            next=shown[-1].id if len(found) > limit else None,
        )

    return await runtime.database.read(read)
