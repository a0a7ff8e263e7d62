"""/api/v1/policies: which method runs by itself, on what, when, and within which budget."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session

from server.api.deps import Admin, Read, RequestId, RuntimeDep
from server.api.schemas.base import Listing, Text
from server.api.schemas.deletions import DeletedView
from server.api.schemas.policies import DryRunView, PolicyBody, PolicyPatch, PolicyView
from server.api.views import dry_run_view, policy_view
from server.services import audit, policies, policy_rows, registry
from server.services.policy_rows import Draft

router = APIRouter(prefix="/policies", tags=["policies"])


@router.post("", status_code=201, responses={400: {}, 404: {}, 409: {}})
async def create_policy(
    body: PolicyBody, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> PolicyView:
    """A new policy of a line. Nothing is learnt before it is due; see what would be by a dry run."""
    settings = runtime.settings
    said = {name: getattr(body, name) for name in PolicyBody.model_fields if name != "adapter"}

    def create(session: Session) -> PolicyView:
        line = registry.own_adapter(
            session, body.adapter or settings.model.name, tenant=actor.owner
        )
        policy = policy_rows.create(session, settings, line, Draft(**said), actor=actor)
        detail = {"adapter": line.name, "name": policy.name}
        audit.record(
            session, actor, "policy.create", policy.id, detail, request_id, owner=line.owner
        )
        return policy_view(session, policy, settings.learning)

    return await runtime.database.run(create)


@router.get("", responses={404: {}})
async def list_policies(runtime: RuntimeDep, actor: Read, adapter: Text | None = None) -> Listing:
    """By line, the oldest first; ``adapter`` leaves those of one line."""

    def read(session: Session) -> list[PolicyView]:
        rows = policy_rows.listed(session, tenant=actor.owner, adapter=adapter)
        return [policy_view(session, row, runtime.settings.learning) for row in rows]

    return Listing(data=await runtime.database.read(read))


@router.get("/{policy_id}", responses={404: {}})
async def get_policy(policy_id: Text, runtime: RuntimeDep, actor: Read) -> PolicyView:
    """One policy, with what it decided last."""

    def read(session: Session) -> PolicyView:
        policy = policy_rows.get(session, policy_id, tenant=actor.owner)
        return policy_view(session, policy, runtime.settings.learning)

    return await runtime.database.read(read)


@router.patch("/{policy_id}", responses={400: {}, 404: {}})
async def change_policy(
    policy_id: Text, body: PolicyPatch, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> PolicyView:
    """Replace the fields that are given; a run that is open already goes on as it was queued."""
    changes: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}

    def change(session: Session) -> PolicyView:
        policy = policy_rows.get(session, policy_id, tenant=actor.owner)
        policy_rows.change(session, runtime.settings, policy, changes, actor=actor)
        owner = policy_rows.line_of(session, policy).owner
        detail = {"fields": sorted(changes)}
        audit.record(session, actor, "policy.change", policy.id, detail, request_id, owner=owner)
        return policy_view(session, policy, runtime.settings.learning)

    return await runtime.database.run(change)


@router.delete("/{policy_id}", responses={404: {}, 409: {}})
async def delete_policy(
    policy_id: Text, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> DeletedView:
    """Its runs stay. The line's own policy can only be switched off."""

    def delete(session: Session) -> DeletedView:
        policy = policy_rows.get(session, policy_id, tenant=actor.owner)
        owner = policy_rows.line_of(session, policy).owner
        policy_rows.delete(session, policy)
        audit.record(session, actor, "policy.delete", policy_id, None, request_id, owner=owner)
        return DeletedView(id=policy_id)

    return await runtime.database.run(delete)


@router.post("/{policy_id}/dry-run", responses={400: {}, 404: {}})
async def dry_run_policy(policy_id: Text, runtime: RuntimeDep, actor: Read) -> DryRunView:
    """What it would learn now, due or not: method, counts, what is left out and why. Changes nothing."""

    def read(session: Session) -> DryRunView:
        policy = policy_rows.get(session, policy_id, tenant=actor.owner)
        found = policies.dry_run(
            session,
            runtime.settings.learning,
            policy,
            max_rank=runtime.settings.engine.max_lora_rank,
        )
        return dry_run_view(found)

    return await runtime.read_aside(read)
