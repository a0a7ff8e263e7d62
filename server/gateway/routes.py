"""The engine's endpoints and the list of models under /v1, as OpenAI's and Anthropic's clients expect."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from server.core.errors import RowNotFound
from server.core.security import Scope
from server.engine.routing import BASE, Route, public_models
from server.gateway.capture import Capture
from server.gateway.draw import draw_of
from server.gateway.endpoints import ENDPOINTS, EndpointSpec, parse_request
from server.gateway.exchange import EngineExchange
from server.gateway.lane import Handler
from server.gateway.shadow import Shadows
from server.http import admitted, get_limiter, get_runtime, read_body, require
from server.runtime import Runtime
from server.services.keys import Principal

router = APIRouter(prefix="/v1", tags=["openai"])

RuntimeDep = Annotated[Runtime, Depends(get_runtime)]
Chat = Annotated[Principal, Depends(require(Scope.CHAT))]


_may_chat = admitted(Scope.CHAT)
"""For what the engine works on: counts against the key's limits."""

_REFUSALS = {
    400: "A field is not what it must be, or the engine refuses it.",
    401: "No key, or one that is not good.",
    403: "The key lacks the scope.",
    404: "No such model, or the engine has no such endpoint for it.",
    409: "The version cannot serve.",
    413: "The body is too long.",
    422: "The engine refuses the request.",
    429: "A limit of the key is reached, or the engine has too much to do.",
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
    async def handle(request: Request) -> ASGIApp:
        actor = await _may_chat(request)
        runtime = get_runtime(request)
        limit = runtime.settings.gateway.max_body_bytes
        body = await read_body(request, limit, "EVERLEARN_GATEWAY__MAX_BODY_BYTES")
        asked = parse_request(endpoint, body)
        capture: Capture = request.app.state.capture
        route = runtime.route(asked.model, actor.owner)
        if route.is_on_trial:
            route = runtime.route(asked.model, actor.owner, draw_of(asked, actor.id))
        request_id = request.state.request_id
        shadows: Shadows = request.app.state.shadows
        return EngineExchange(
            runtime, capture, get_limiter(request), actor, asked, route, request_id, shadows
        )

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


LANE: Mapping[str, Handler] = {endpoint.path: _handler(endpoint) for endpoint in ENDPOINTS}
"""What :class:`server.gateway.lane.Gateway` takes past the framework."""

for _endpoint in ENDPOINTS:  # so that the OpenAPI document has them, and other methods get a 405
    router.add_api_route(
        _endpoint.path.removeprefix("/v1"),
        LANE[_endpoint.path],
        methods=["POST"],
        name=_endpoint.path,
        summary=_endpoint.summary,
        description="Fields that are not ours to read reach the engine untouched.",
        response_class=Response,
        response_model=None,
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
