"""/api/v1/deletions and /api/v1/tenants: what was to be forgotten, and how far that has come."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from server.api.deps import Admin, RequestId, RuntimeDep
from server.api.schemas.base import Id, Text
from server.api.schemas.deletions import DeletionDetail, DeletionPage, DeletionView
from server.api.views import deletion_detail, deletion_view
from server.db import DeletionState
from server.runtime import Runtime
from server.services import deletions
from server.services.relearning import Orders

router = APIRouter(tags=["deletions"])


@router.get("/deletions", responses={400: {}})
async def list_deletions(
    runtime: RuntimeDep,
    actor: Admin,
    state: DeletionState | None = None,
    after: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> DeletionPage:
    """Newest first; ``after`` takes the ``next`` of the page before."""

    def read(session: Session) -> DeletionPage:
        page = deletions.list_deletions(
            session, tenant=actor.owner, state=state, after=after, limit=limit
        )
        return DeletionPage(data=[deletion_view(session, row) for row in page.rows], next=page.next)

    return await runtime.database.read(read)


@router.get("/deletions/{deletion_id}", responses={404: {}})
async def get_deletion(deletion_id: Id, runtime: RuntimeDep, actor: Admin) -> DeletionDetail:
    """One deletion: the versions that saw it, how far it is, and everything that followed from it."""

    def read(session: Session) -> DeletionDetail:
        row = deletions.get_deletion(session, deletion_id, tenant=actor.owner)
        return deletion_detail(session, row)

    return await runtime.read(read)


@router.post("/deletions/{deletion_id}/rebuild", responses={404: {}})
async def rebuild(
    deletion_id: Id, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> DeletionView:
    """Make versions without it, and retire those that saw it. Changes nothing where that is done."""

    def order(session: Session) -> None:
        row = deletions.get_deletion(session, deletion_id, tenant=actor.owner)
        deletions.order_rebuild(session, actor, row, request_id=request_id)

    await runtime.database.run(order)
    return await go_on(runtime, deletion_id)


@router.delete("/tenants/{owner}/data", responses={403: {}, 404: {}})
async def delete_tenant(
    owner: Id,
    runtime: RuntimeDep,
    actor: Admin,
    request_id: RequestId,
    rebuild: bool = False,
) -> DeletionView:
    """Delete every document, interaction and feedback of a tenant; its keys and lines stay.

    What is not deleted when the connection breaks is deleted by the worker.
    """

    def forget(session: Session) -> str:
        return deletions.forget_tenant(
            session, actor, owner, rebuild=rebuild, request_id=request_id
        ).id

    deletion_id = await runtime.database.run(forget)
    while await runtime.database.run(deletions.erase_late, deletion_id):
        pass
    return await go_on(runtime, deletion_id)


async def go_on(runtime: Runtime, deletion_id: str) -> DeletionView:
    """Do what a deletion asks for now, and route by it; the worker does what comes later."""

    def advance(session: Session) -> DeletionView:
        orders = Orders(runtime.queue, runtime.settings.learning)
        return deletion_view(session, deletions.advance(session, deletion_id, orders))

    view = await runtime.database.run(advance)
    await runtime.refresh()
    return view
