"""/api/v1/keys: mint, list, revoke."""

from fastapi import APIRouter
from sqlalchemy.orm import Session

from server.api.deps import Admin, RuntimeDep
from server.api.schemas import KeyBody, KeyView, Listing, MintedKeyView, Text
from server.api.views import key_view
from server.services import keys

router = APIRouter(prefix="/keys", tags=["keys"])


@router.post("", status_code=201, responses={400: {}})
async def create_key(body: KeyBody, runtime: RuntimeDep, _: Admin) -> MintedKeyView:
    """Mint a key. The answer holds the secret, which cannot be shown again."""

    def create(session: Session) -> MintedKeyView:
        key, secret = keys.create_key(session, body.name, body.scopes)
        session.flush()
        return MintedKeyView(**key_view(key).model_dump(), key=secret)

    return await runtime.database.run(create)


@router.get("")
async def list_keys(runtime: RuntimeDep, _: Admin) -> Listing:
    """Every key, the revoked ones too; no secret."""

    def read(session: Session) -> list[KeyView]:
        return [key_view(key) for key in keys.list_keys(session)]

    return Listing(data=await runtime.database.read(read))


@router.delete("/{key_id}", responses={404: {}})
async def revoke_key(key_id: Text, runtime: RuntimeDep, _: Admin) -> KeyView:
    """Close a key for good."""

    def revoke(session: Session) -> KeyView:
        return key_view(keys.revoke_key(session, key_id))

    return await runtime.database.run(revoke)
