"""/api/v1/adapters: lines, versions, aliases, promotion and rollback."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session

from server.api.deps import Admin, Read, RequestId, RuntimeDep
from server.api.schemas.adapters import (
    AdapterChangesBody,
    AdapterView,
    AliasEventView,
    LineBody,
    MoveView,
    PromoteBody,
    RetireBody,
    RollbackBody,
)
from server.api.schemas.base import Listing, Text
from server.api.schemas.versions import VersionView
from server.api.views import adapter_view, event_view, version_view
from server.core.clock import monotonic
from server.core.errors import InvalidRequest
from server.core.metrics import MOVE
from server.runtime import Runtime
from server.services import audit, bootstrap, evaluations, promotion, registry, retirement, trials
from server.services.keys import Principal
from server.services.promotion import Move
from server.services.tenants import owner_for

router = APIRouter(prefix="/adapters", tags=["adapters"])


@router.get("")
async def list_adapters(runtime: RuntimeDep, actor: Read) -> Listing:
    """Every line with its versions; of everybody's lines, a tenant sees no documents and exams."""
    tenant = actor.owner

    def read(session: Session) -> list[AdapterView]:
        lines = registry.list_adapters(session, tenant=tenant)
        return [adapter_view(session, line, tenant=tenant) for line in lines]

    return Listing(data=await runtime.read(read))


@router.post("", status_code=201, responses={400: {}, 403: {}, 409: {}})
async def create_adapter(
    body: LineBody, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> AdapterView:
    """A further line over the same base model, which learns from its owner's documents alone."""
    owner = owner_for(actor.owner, body.owner)

    def create(session: Session) -> AdapterView:
        line = bootstrap.create_line(session, runtime.settings, body.name, owner=owner)
        audit.record(session, actor, "adapter.create", line.name, None, request_id, owner=owner)
        session.flush()
        return adapter_view(session, line, tenant=actor.owner)

    view = await runtime.database.run(create)
    await runtime.refresh()
    return view


@router.get("/{name}", responses={404: {}})
async def get_adapter(name: Text, runtime: RuntimeDep, actor: Read) -> AdapterView:
    """One line: its versions with their exams, and every move of its aliases."""

    def read(session: Session) -> AdapterView:
        line = registry.get_adapter(session, name, tenant=actor.owner)
        return adapter_view(session, line, tenant=actor.owner)

    return await runtime.read(read)


@router.patch("/{name}", responses={400: {}, 403: {}, 404: {}})
async def change_adapter(
    name: Text,
    body: AdapterChangesBody,
    runtime: RuntimeDep,
    actor: Admin,
    request_id: RequestId,
) -> AdapterView:
    """Say how this line's versions come to serve, from the next exam or trial on."""

    def change(session: Session) -> AdapterView:
        line = registry.own_adapter(session, name, tenant=actor.owner)
        trials.set_rollout(session, line, body.rollout, runtime.settings.rollout)
        detail = body.model_dump()
        audit.record(session, actor, "adapter.change", name, detail, request_id, owner=line.owner)
        session.flush()
        return adapter_view(session, line, tenant=actor.owner)

    return await runtime.database.run(change)


@router.post("/{name}/promote", responses={400: {}, 403: {}, 404: {}, 409: {}})
async def promote(
    name: Text, body: PromoteBody, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> MoveView:
    """Let a version that passed its exam answer for the line; with `force`, any that has weights."""

    def plan(session: Session) -> Move:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        return promotion.plan_promotion(
            session,
            adapter,
            body.version,
            expected_revision=body.expected_revision,
            force=body.force,
        )

    return await _move(runtime, name, plan, actor, request_id, reason=body.reason)


@router.post("/{name}/rollback", responses={400: {}, 403: {}, 404: {}, 409: {}})
async def roll_back(
    name: Text, body: RollbackBody, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> MoveView:
    """Point the champion at what served before it, or at the version named."""

    def plan(session: Session) -> Move:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        return promotion.plan_rollback(
            session, adapter, body.to, expected_revision=body.expected_revision
        )

    return await _move(runtime, name, plan, actor, request_id, reason=body.reason)


@router.post("/{name}/versions/{version}/retire", responses={400: {}, 403: {}, 404: {}, 409: {}})
async def retire_version(
    name: Text,
    version: Text,
    body: RetireBody,
    runtime: RuntimeDep,
    actor: Admin,
    request_id: RequestId,
) -> VersionView:
    """Take a version out of service for good; a trial of it ends. Doing it twice changes nothing."""

    def retire(session: Session) -> VersionView:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        found = registry.get_version(session, adapter, version)
        if found is None:
            raise InvalidRequest("The base model cannot be retired; name a version.", "version")
        if retirement.retire(session, adapter, found, actor=actor.label, reason=body.reason):
            target = registry.version_name(name, found.number)
            detail = {"reason": body.reason}
            audit.record(
                session, actor, "version.retire", target, detail, request_id, owner=adapter.owner
            )
        session.flush()
        return version_view(session, adapter, found)

    view = await runtime.database.run(retire)
    await runtime.refresh()
    return view


async def _move(
    runtime: Runtime,
    name: str,
    plan: Callable[[Session], Move],
    actor: Principal,
    request_id: str,
    *,
    reason: str,
) -> MoveView:
    """Plan, load what is not loaded, then move; the next request sees it when this returns."""
    began = monotonic()
    move = await runtime.database.read(plan)
    if move.to_number is not None:
        await runtime.ensure_servable(name, move.to_number)  # which counts its failures itself

    def apply(session: Session) -> AliasEventView:
        adapter = registry.get_adapter(session, name)
        event = promotion.apply_move(
            session,
            adapter,
            move,
            actor=actor.label,
            reason=reason,
            is_forced=move.overruled is not None,
        )
        view = event_view(session, adapter, event)
        audit.record(
            session,
            actor,
            f"adapter.{move.kind}",
            name,
            {"from": view.from_version, "to": view.to_version, **_overruled(session, move)},
            request_id,
            owner=adapter.owner,
        )
        return view

    try:
        event = await runtime.database.run(apply)
        await runtime.refresh()
    except Exception:
        runtime.metrics.swap_error(MOVE)
        raise
    seconds = monotonic() - began
    runtime.metrics.swapped(event.kind, seconds)
    return MoveView(
        adapter=name,
        alias=event.alias,
        kind=event.kind,
        from_version=event.from_version,
        to_version=event.to_version,
        revision=event.revision,
        is_forced=event.is_forced,
        skipped=[registry.version_name(name, number) for number in move.skipped],
        moved_in_ms=round(seconds * 1000, 1),
    )


def _overruled(session: Session, move: Move) -> dict[str, Any]:
    """For the audit trail: what an admin's force has overruled."""
    if move.overruled is None or move.to_id is None:
        return {}
    exam = evaluations.of_version(session, registry.by_id(session, move.to_id))
    return {
        "forced": True,
        "status": move.overruled,
        "verdict": exam.verdict if exam else None,
    }
