"""/healthz: the process lives. /readyz: it can answer. Neither needs a key."""

from fastapi import APIRouter, Response

from server.api.deps import RuntimeDep

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {}})
async def readyz(response: Response, runtime: RuntimeDep) -> dict[str, object]:
    """Whether database and engine answer; 503 and the reason when one does not."""
    parts = await runtime.readiness()
    is_ready = all(state == "ok" for state in parts.values())
    response.status_code = 200 if is_ready else 503
    return {"status": "ok" if is_ready else "not_ready", **parts}
