"""/api/v1/methods: how documents can be learnt."""

from fastapi import APIRouter

from server.api.deps import ReadOrIngest, RuntimeDep
from server.api.schemas.base import Listing
from server.api.schemas.runs import MethodView
from server.services import methods

router = APIRouter(prefix="/methods", tags=["methods"])


@router.get("")
async def list_methods(runtime: RuntimeDep, actor: ReadOrIngest) -> Listing:
    """What each is for, the config that it runs with, and the schema of all that can be set."""
    found = methods.describe(runtime.settings.learning)
    return Listing(data=[MethodView.model_validate(one, from_attributes=True) for one in found])
