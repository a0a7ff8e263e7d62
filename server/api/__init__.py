"""Our own HTTP surface under /api/v1: documents, interactions, feedback, runs, adapters, trials, keys, audit; and the operator's checks."""

from fastapi import APIRouter

from server.api import adapters, audit, documents, feedback, interactions, keys, runs, trials

router = APIRouter(prefix="/api/v1")
for part in (documents, interactions, feedback, runs, adapters, trials, keys, audit):
    router.include_router(part.router)
