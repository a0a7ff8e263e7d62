"""/v1/chat/completions and /v1/models, as OpenAI's clients expect them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from server.core.security import Scope
from server.engine.routing import BASE, Route, public_models
from server.gateway.capture import Capture
from server.gateway.chat import parse_chat
from server.gateway.exchange import ChatExchange
from server.http import admitted, get_limiter, get_runtime, read_body, require
from server.runtime import Runtime
from server.services.keys import Principal

router = APIRouter(prefix="/v1", tags=["openai"])

RuntimeDep = Annotated[Runtime, Depends(get_runtime)]
Chat = Annotated[Principal, Depends(require(Scope.CHAT))]
CountedChat = Annotated[Principal, Depends(admitted(Scope.CHAT))]
"""For what the engine works on: counts against the key's limits."""


@router.post("/chat/completions", response_class=Response)
async def create_chat_completion(
    request: Request, runtime: RuntimeDep, actor: CountedChat
) -> Response:
    """Chat, streaming or not. Fields that are not ours to read reach the engine untouched."""
    limit = runtime.settings.gateway.max_body_bytes
    chat = parse_chat(await read_body(request, limit, "EVERLEARN_GATEWAY__MAX_BODY_BYTES"))
    capture: Capture = request.app.state.capture
    route = runtime.route(chat.model, actor.owner)
    return ChatExchange(runtime, capture, get_limiter(request), actor, chat, route)


@router.get("/models")
async def list_models(runtime: RuntimeDep, actor: Chat) -> dict[str, Any]:
    """Every name that can be asked for, and the weights behind it."""
    snapshot = runtime.routes()
    models = public_models(snapshot, actor.owner)
    data = [_model(name, route) for name, route in models.items()]
    return {"object": "list", "data": data}


@router.get("/models/{name}")
async def get_model(name: str, runtime: RuntimeDep, actor: Chat) -> dict[str, Any]:
    """One name, an alias such as ``smollm2@champion`` too."""
    return _model(name, runtime.route(name, actor.owner))


def _model(name: str, route: Route) -> dict[str, Any]:
    """OpenAI's model object; ``root`` and ``parent`` as vLLM gives them."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "everlearn",
        "root": route.engine_name,
        "parent": None if route.weights is None else f"{route.adapter}@{BASE}",
    }
