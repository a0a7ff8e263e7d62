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
    policies,
    prompts,
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
    prompts,
    interactions,
    feedback,
    runs,
    methods,
    policies,
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
