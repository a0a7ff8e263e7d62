"""/api/v1/keys: mint, list, limit, revoke. An admin of a tenant sees and makes only that tenant's."""

from fastapi import APIRouter
from sqlalchemy.orm import Session

from server.api.deps import Admin, KeyRingDep, RequestId, RuntimeDep
from server.api.schemas.base import Listing, Text
from server.api.schemas.keys import KeyBody, KeyChangesBody, KeyView, MintedKeyView
from server.api.views import key_view
from server.services import audit, keys
from server.services.keys import Limits
from server.services.tenants import owner_for

router = APIRouter(prefix="/keys", tags=["keys"])


@router.post("", status_code=201, responses={400: {}, 403: {}})
async def create_key(
    body: KeyBody, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> MintedKeyView:
    """Mint a key. The answer holds the secret, which cannot be shown again."""
    owner = owner_for(actor.owner, body.owner)

    def create(session: Session) -> MintedKeyView:
        key, secret = keys.create_key(
            session,
            body.name,
            body.scopes,
            owner=owner,
            allows_learning=body.allows_learning,
            limits=Limits(body.requests_per_minute, body.tokens_per_minute, body.token_budget),
        )
        session.flush()
        detail = body.model_dump()
        audit.record(session, actor, "key.create", key.id, detail, request_id, owner=owner)
        return MintedKeyView(**key_view(key).model_dump(), key=secret)

    return await runtime.database.run(create)


@router.get("")
async def list_keys(runtime: RuntimeDep, actor: Admin) -> Listing:
    """Every key, the revoked ones too; no secret."""

    def read(session: Session) -> list[KeyView]:
        return [key_view(key) for key in keys.list_keys(session, tenant=actor.owner)]

    return Listing(data=await runtime.database.read(read))


@router.patch("/{key_id}", responses={400: {}, 404: {}})
async def change_key(
    key_id: Text,
    body: KeyChangesBody,
    runtime: RuntimeDep,
    key_ring: KeyRingDep,
    actor: Admin,
    request_id: RequestId,
) -> KeyView:
    """Set limits or consent anew; null lifts a limit, what is left out stays."""
    changes = body.model_dump(exclude_unset=True)

    def change(session: Session) -> KeyView:
        key = keys.change_key(session, key_id, changes, tenant=actor.owner)
        audit.record(session, actor, "key.change", key.id, changes, request_id, owner=key.owner)
        return key_view(key)

    view = await runtime.database.run(change)
    await key_ring.changed(view.id)
    return view


@router.delete("/{key_id}", responses={404: {}})
async def revoke_key(
    key_id: Text, runtime: RuntimeDep, key_ring: KeyRingDep, actor: Admin, request_id: RequestId
) -> KeyView:
    """Close a key for good, on every gateway."""

    def revoke(session: Session) -> KeyView:
        key = keys.revoke_key(session, key_id, tenant=actor.owner)
        audit.record(session, actor, "key.revoke", key.id, None, request_id, owner=key.owner)
        return key_view(key)

    view = await runtime.database.run(revoke)
    await key_ring.changed(view.id)
    return view
