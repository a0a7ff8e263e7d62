"""/api/v1/adapters: versions, aliases, promotion and rollback."""

from collections.abc import Callable

from fastapi import APIRouter
from sqlalchemy.orm import Session

from server.api.deps import Admin, Ingest, RuntimeDep
from server.api.schemas import (
    AdapterView,
    AliasEventView,
    Listing,
    MoveView,
    PromoteBody,
    RollbackBody,
    Text,
)
from server.api.views import adapter_view, event_view
from server.core.clock import monotonic
from server.runtime import Runtime
from server.services import promotion, registry
from server.services.promotion import Move

router = APIRouter(prefix="/adapters", tags=["adapters"])


@router.get("")
async def list_adapters(runtime: RuntimeDep, _: Ingest) -> Listing:
    """Every line with its versions."""

    def read(session: Session) -> list[AdapterView]:
        return [adapter_view(session, row) for row in registry.list_adapters(session)]

    return Listing(data=await runtime.read(read))


@router.get("/{name}", responses={404: {}})
async def get_adapter(name: Text, runtime: RuntimeDep, _: Ingest) -> AdapterView:
    """One line: its versions with their exams, and every move of its aliases."""

    def read(session: Session) -> AdapterView:
        return adapter_view(session, registry.get_adapter(session, name))

    return await runtime.read(read)


@router.post("/{name}/promote", responses={400: {}, 404: {}, 409: {}})
async def promote(name: Text, body: PromoteBody, runtime: RuntimeDep, actor: Admin) -> MoveView:
    """Let a version that passed its exam answer for the line."""

    def plan(session: Session) -> Move:
        adapter = registry.get_adapter(session, name)
        return promotion.plan_promotion(session, adapter, body.version)

    return await _move(runtime, name, plan, actor=actor.label, reason=body.reason)


@router.post("/{name}/rollback", responses={400: {}, 404: {}, 409: {}})
async def roll_back(name: Text, body: RollbackBody, runtime: RuntimeDep, actor: Admin) -> MoveView:
    """Point the champion at what served before it, or at the version named."""

    def plan(session: Session) -> Move:
        return promotion.plan_rollback(session, registry.get_adapter(session, name), body.to)

    return await _move(runtime, name, plan, actor=actor.label, reason=body.reason)


async def _move(
    runtime: Runtime, name: str, plan: Callable[[Session], Move], *, actor: str, reason: str
) -> MoveView:
    """Plan, load what is not loaded, then move; the next request sees it when this returns."""
    began = monotonic()
    move = await runtime.database.read(plan)
    if move.to_number is not None:
        await runtime.ensure_servable(name, move.to_number)

    def apply(session: Session) -> AliasEventView:
        adapter = registry.get_adapter(session, name)
        event = promotion.apply_move(session, adapter, move, actor=actor, reason=reason)
        return event_view(session, adapter, event)

    event = await runtime.database.run(apply)
    await runtime.refresh()
    return MoveView(
        adapter=name,
        alias=event.alias,
        kind=event.kind,
        from_version=event.from_version,
        to_version=event.to_version,
        moved_in_ms=round((monotonic() - began) * 1000, 1),
    )
