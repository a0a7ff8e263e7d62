"""/metrics: what Prometheus reads from one gateway."""

from fastapi import APIRouter, Request, Response

from server.api.deps import Read, RuntimeDep
from server.core.errors import ForeignTenant

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response, responses={403: {}})
async def metrics(request: Request, runtime: RuntimeDep, actor: Read) -> Response:
    """Prometheus text. It tells of every tenant's lines, so only the operator's keys open it."""
    if actor.owner is not None:
        raise ForeignTenant(actor.owner, "Metrics tell of every tenant: use an operator's key.")
    moment = await runtime.moment()
    body, media_type = runtime.metrics.render(request.headers.get("accept", ""), moment)
    return Response(body, media_type=media_type)
