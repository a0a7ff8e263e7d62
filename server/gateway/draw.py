"""What a trial draws by: the conversation within its key, so that all of its turns meet one version."""

import hashlib
from typing import Any

from server.core.json_codec import encode
from server.db import Endpoint
from server.gateway.endpoints import EngineRequest
from server.services.messages import is_preface, split_prompt

_CONVERSATIONS = (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES)


def draw_of(request: EngineRequest, key_id: str) -> str:
    """The key with a hash of what its user said first; the key alone where nobody says anything."""
    first = _first_said(request)
    if first is None:
        return key_id
    return f"{key_id}:{hashlib.sha256(encode(first)).hexdigest()}"


def _first_said(request: EngineRequest) -> dict[str, Any] | None:
    if request.endpoint.kind not in _CONVERSATIONS:
        return None
    messages = split_prompt(request.endpoint.kind, request.body)[1]
    return next((message for message in messages if not is_preface(message)), None)
