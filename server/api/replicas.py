"""/api/v1/replicas: the engines that serve, and how each gateway sees them. For the operator only."""

from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends
from sqlalchemy.orm import Session

from server.api.deps import Admin, RequestId, RuntimeDep
from server.api.schemas.base import Text
from server.api.schemas.deletions import DeletedView
from server.api.schemas.fleet import DrainBody, FleetView, GatewayView, ReplicaBody, ReplicaView
from server.core.clock import utc_now
from server.db import Replica
from server.runtime import Runtime
from server.services import audit, fleet
from server.services.keys import Principal
from server.services.tenants import operator_only

router = APIRouter(prefix="/replicas", tags=["replicas"])


def _operator(actor: Admin) -> Principal:
    operator_only(actor.owner, "The engines serve every tenant; ask the operator.")
    return actor


Operator: TypeAlias = Annotated[Principal, Depends(_operator)]


@router.get("", responses={403: {}})
async def list_replicas(runtime: RuntimeDep, actor: Operator) -> FleetView:
    """Every replica as this gateway sees it, and what each gateway tells of itself."""

    def read(session: Session) -> FleetView:
        return FleetView(
            data=[_view(runtime, replica) for replica in fleet.list_replicas(session)],
            gateways=[
                GatewayView.model_validate(gateway, from_attributes=True)
                for gateway in fleet.live_gateways(session, now=utc_now())
            ],
        )

    return await runtime.read(read)


@router.post("", status_code=201, responses={400: {}, 403: {}, 409: {}})
async def add_replica(
    body: ReplicaBody, runtime: RuntimeDep, actor: Operator, request_id: RequestId
) -> ReplicaView:
    """Use a further engine; it takes requests once it is probed and holds what serves."""

    def add(session: Session) -> Replica:
        replica = fleet.add_replica(session, body.url)
        audit.record(session, actor, "replica.add", replica.url, None, request_id)
        return replica

    replica = await runtime.database.run(add)
    await runtime.refresh()
    return _view(runtime, replica)


@router.patch("/{replica_id}", responses={400: {}, 403: {}, 404: {}})
async def drain_replica(
    replica_id: Text, body: DrainBody, runtime: RuntimeDep, actor: Operator, request_id: RequestId
) -> ReplicaView:
    """Let it take no new request, or take them again; what runs on it is finished."""

    def change(session: Session) -> Replica:
        replica = fleet.set_draining(session, replica_id, is_draining=body.is_draining)
        action = "replica.drain" if body.is_draining else "replica.undrain"
        audit.record(session, actor, action, replica.url, None, request_id)
        return replica

    replica = await runtime.database.run(change)
    await runtime.refresh()
    return _view(runtime, replica)


@router.delete("/{replica_id}", responses={403: {}, 404: {}, 409: {}})
async def remove_replica(
    replica_id: Text, runtime: RuntimeDep, actor: Operator, request_id: RequestId
) -> DeletedView:
    """Use it no more; what runs on it is finished. One from the settings is back at the next start."""

    def remove(session: Session) -> None:
        replica = fleet.remove_replica(session, replica_id)
        audit.record(session, actor, "replica.remove", replica.url, None, request_id)

    await runtime.database.run(remove)
    await runtime.refresh()
    return DeletedView(id=replica_id)


def _view(runtime: Runtime, row: Replica) -> ReplicaView:
    seen = runtime.fleet.replicas.get(row.url)
    return ReplicaView(
        id=row.id,
        url=row.url,
        origin=row.origin,
        is_draining=row.is_draining,
        state=str(seen.state) if seen else "joining",
        error=str(seen.error) if seen and seen.error else None,
        outstanding=seen.outstanding if seen else 0,
        resident=seen.residency.names() if seen else [],
        created_at=row.created_at,
    )
