"""What the routers ask for: the process's runtime, and a principal with the right scope."""

from typing import Annotated, TypeAlias

from fastapi import Depends, Request

from server.core.security import Scope
from server.http import KeyRing, get_key_ring, get_runtime, require
from server.runtime import Runtime
from server.services.keys import Principal

RuntimeDep: TypeAlias = Annotated[Runtime, Depends(get_runtime)]
KeyRingDep: TypeAlias = Annotated[KeyRing, Depends(get_key_ring)]
Ingest: TypeAlias = Annotated[Principal, Depends(require(Scope.INGEST))]
Read: TypeAlias = Annotated[Principal, Depends(require(Scope.READ))]
Judge: TypeAlias = Annotated[Principal, Depends(require(Scope.FEEDBACK))]
ReadOrIngest: TypeAlias = Annotated[Principal, Depends(require(Scope.READ, Scope.INGEST))]
"""For what a sender of documents must see: what became of them."""
Admin: TypeAlias = Annotated[Principal, Depends(require(Scope.ADMIN))]


def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


RequestId: TypeAlias = Annotated[str, Depends(_request_id)]
"""For the audit trail."""
