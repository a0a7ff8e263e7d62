"""The engine's endpoints and the list of models under /v1, as OpenAI's and Anthropic's clients expect."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute

from server.core.errors import RowNotFound
from server.core.security import Scope
from server.engine.routing import BASE, Route, public_models, resolve
from server.gateway.capture import Capture
from server.gateway.endpoints import ENDPOINTS, EndpointSpec, parse_request
from server.gateway.exchange import EngineExchange
from server.http import get_runtime, read_body, require
from server.runtime import Runtime
from server.services.keys import Principal

router = APIRouter(prefix="/v1", tags=["openai"])

RuntimeDep = Annotated[Runtime, Depends(get_runtime)]
Chat = Annotated[Principal, Depends(require(Scope.CHAT))]

Handler = Callable[[Request], Awaitable[Response]]

_may_chat = require(Scope.CHAT)

_REFUSALS = {
    400: "A field is not what it must be, or the engine refuses it.",
    401: "No key, or one that is not good.",
    403: "The key lacks the scope.",
    404: "No such model, or the engine has no such endpoint for it.",
    409: "The version cannot serve.",
    413: "The body is too long.",
    422: "The engine refuses the request.",
    429: "Too many requests.",
    502: "The engine failed.",
    503: "The engine or the database is away.",
}


class DirectRoute(APIRoute):
    """Hands the request to its function as it is.

    FastAPI's own way there, which solves dependencies and reads the body into models, costs more
    than all that the gateway does; here nothing of it is needed.
    """

    def get_route_handler(self) -> Any:
        return self.endpoint


def _handler(endpoint: EndpointSpec) -> Handler:
    async def handle(request: Request) -> Response:
        actor = await _may_chat(request)
        runtime = get_runtime(request)
        limit = runtime.settings.gateway.max_body_bytes
        body = await read_body(request, limit, "EVERLEARN_GATEWAY__MAX_BODY_BYTES")
        asked = parse_request(endpoint, body)
        capture: Capture = request.app.state.capture
        return EngineExchange(runtime, capture, actor, asked, runtime.route(asked.model))

    return handle


def _request_schema(endpoint: EndpointSpec) -> dict[str, Any]:
    """The little that is read here; every other field is the engine's."""
    schema = {
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": {"type": "string"},
            endpoint.prompt_field: {},
            "stream": {"type": ["boolean", "null"]},
            "store": {"type": ["boolean", "null"]},
            "priority": {"type": ["integer", "null"]},
        },
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


for _endpoint in ENDPOINTS:
    router.add_api_route(
        _endpoint.path.removeprefix("/v1"),
        _handler(_endpoint),
        methods=["POST"],
        name=_endpoint.path,
        summary=_endpoint.summary,
        description="Fields that are not ours to read reach the engine untouched.",
        response_class=Response,
        responses={status: {"description": text} for status, text in _REFUSALS.items()},
        openapi_extra=_request_schema(_endpoint),
        route_class_override=DirectRoute,
    )


@router.get("/responses/{response_id}")
@router.delete("/responses/{response_id}")
@router.post("/responses/{response_id}/cancel")
async def refuse_response(response_id: str, _: Chat) -> Response:
    """Responses are not kept: always 404."""
    raise RowNotFound("response", response_id, "Responses are not kept here.")


@router.get("/models")
async def list_models(runtime: RuntimeDep, _: Chat) -> dict[str, Any]:
    """Every name that can be asked for, and the weights behind it."""
    snapshot = runtime.routes()
    data = [_model(name, route) for name, route in public_models(snapshot).items()]
    return {"object": "list", "data": data}


@router.get("/models/{name}")
async def get_model(name: str, runtime: RuntimeDep, _: Chat) -> dict[str, Any]:
    """One name, an alias such as ``smollm2@champion`` too."""
    return _model(name, resolve(runtime.routes(), name))


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
