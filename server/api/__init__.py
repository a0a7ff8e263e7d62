"""Our own HTTP surface under /api/v1, a module for each noun; and the operator's checks."""

from fastapi import APIRouter

from server.api import (
    adapters,
    audit,
    deletions,
    documents,
    feedback,
    interactions,
    keys,
    methods,
    questions,
    replicas,
    runs,
    tasks,
    trials,
    versions,
)

PARTS = (
    documents,
    questions,
    tasks,
    interactions,
    feedback,
    runs,
    methods,
    trials,
    adapters,
    versions,
    replicas,
    keys,
    audit,
    deletions,
)

router = APIRouter(prefix="/api/v1")
for part in PARTS:
    router.include_router(part.router)
