"""What the routers ask for: the process's runtime, and a principal with the right scope."""

from typing import Annotated, TypeAlias

from fastapi import Depends

from server.core.security import Scope
from server.http import get_runtime, require
from server.runtime import Runtime
from server.services.keys import Principal

RuntimeDep: TypeAlias = Annotated[Runtime, Depends(get_runtime)]
Ingest: TypeAlias = Annotated[Principal, Depends(require(Scope.INGEST))]
Read: TypeAlias = Annotated[Principal, Depends(require(Scope.READ))]
Judge: TypeAlias = Annotated[Principal, Depends(require(Scope.FEEDBACK))]
Admin: TypeAlias = Annotated[Principal, Depends(require(Scope.ADMIN))]
