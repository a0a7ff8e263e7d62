"""One request and its reply as the record that is captured: the columns of ``Interaction``."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from server.db import Outcome
from server.engine.reading import Assembled
from server.engine.routing import Route
from server.gateway.endpoints import EngineRequest
from server.services.keys import Principal


def interaction_record(
    *,
    interaction_id: str,
    created_at: datetime,
    principal: Principal,
    request: EngineRequest,
    route: Route,
    read: Assembled,
    outcome: Outcome,
    status: int,
    error: str | None,
    first_byte_ms: float | None,
    duration_ms: float,
    may_learn: bool,
    shadow_of: str | None = None,
) -> Mapping[str, Any]:
    """The columns of :class:`server.db.Interaction` that the gateway knows."""
    return {
        "id": interaction_id,
        "created_at": created_at.isoformat(),
        "completion_id": read.completion_id,
        "key_id": principal.id,
        "owner": principal.owner,
        "endpoint": request.endpoint.kind,
        "requested_model": request.model,
        "adapter": route.adapter,
        "version": route.version_name,
        "engine_name": route.engine_name,
        "is_stream": request.is_stream,
        "request": request.body,
        "reply": _storable(read.reply),
        "choices": read.choices,
        "tokens": read.tokens,
        "finish_reason": read.finish_reason,
        "outcome": outcome,
        "status": status,
        "error": error and _storable(error),
        "prompt_tokens": read.prompt_tokens,
        "completion_tokens": read.completion_tokens,
        "first_byte_ms": first_byte_ms,
        "duration_ms": duration_ms,
        "may_learn": may_learn,
        "arm": route.arm,
        "shadow_of": shadow_of,
    }


def _storable(text: str) -> str:
    """Without NUL and lone surrogates, which PostgreSQL has no place for."""
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()
