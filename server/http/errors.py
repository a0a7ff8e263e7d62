"""Every failure as a response in the form that the route's clients read. Decides no status itself."""

import json
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.core.errors import (
    AppError,
    DatabaseUnavailable,
    InvalidRequest,
    RateLimited,
    Unauthenticated,
    UnknownField,
)
from server.db.session import DATABASE_AWAY
from server.http.auth import identify
from server.http.context import REQUEST_ID
from server.http.shapes import shaped

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 5

_PLACES = ("body", "query", "path", "header", "cookie")


def install_error_handlers(app: FastAPI) -> None:
    """Answer AppErrors, malformed requests, unknown routes and the unexpected."""

    @app.exception_handler(AppError)
    async def on_app_error(request: Request, error: AppError) -> JSONResponse:
        return error_response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        refusal = await _refusal_of_key(request) or _first_problem(error)
        return error_response(refusal, request.url.path)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400 and (refusal := await _refusal_of_key(request)):
            return error_response(refusal, request.url.path)
        body = _envelope(_http_message(request, error), "invalid_request_error", _code(error))
        content = shaped(request.url.path, error.status_code, body)
        return _Envelope(content, error.status_code, headers=error.headers)

    async def on_database_error(request: Request, error: Exception) -> JSONResponse:
        log.error("database_unavailable", error=str(error)[:300])
        return error_response(DatabaseUnavailable(), request.url.path)

    for kind in DATABASE_AWAY:
        app.add_exception_handler(kind, on_database_error)

    @app.exception_handler(Exception)
    async def on_unexpected(request: Request, _: Exception) -> JSONResponse:
        return unexpected_response(request.url.path, getattr(request.state, "request_id", ""))


async def _refusal_of_key(request: Request) -> AppError | None:
    """What is wrong with the key, if anything: FastAPI looks at the body first."""
    try:
        await identify(request)
    except AppError as refusal:
        return refusal
    return None


class _Envelope(JSONResponse):
    """Written in ASCII: a message may quote what UTF-8 has no form for, such as half a character."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def error_response(error: AppError, path: str = "", request_id: str | None = None) -> JSONResponse:
    """The envelope as ``path``'s clients read it, with the headers that belong to the status.

    Args:
        request_id: put into the headers where no :class:`RequestIdMiddleware` does it.
    """
    content = shaped(path, error.status, error.envelope())
    headers = error_headers(error)
    if request_id is not None:
        headers[REQUEST_ID] = request_id
    return _Envelope(content, error.status, headers=headers)


def unexpected_response(path: str, request_id: str) -> JSONResponse:
    """For a defect of ours: the one 500."""
    message = f"Something went wrong inside the server; its log has it as {request_id}."
    body = _envelope(message, "server_error", "internal_error")
    return _Envelope(shaped(path, 500, body), 500, headers={REQUEST_ID: request_id})


def error_headers(error: AppError) -> dict[str, str]:
    """What a client should know beside the body: how to sign in, when to come again."""
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, RateLimited):
        return dict(error.headers)
    if error.status == 503:
        return {"retry-after": str(RETRY_AFTER_S)}
    return {}


def _first_problem(error: RequestValidationError) -> InvalidRequest:
    """The first thing wrong with a request, with the field it concerns."""
    first: Mapping[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return InvalidRequest(f"The body is not valid JSON: {reason}.")
    places = [str(place) for place in first["loc"]]
    field = ".".join(places[1:] if places and places[0] in _PLACES else places)
    if first["type"] == "extra_forbidden":
        return UnknownField(f"{field} is not a field of this request.", field)
    if not field:
        return InvalidRequest(f"The body does not fit: {first['msg']}.")
    return InvalidRequest(f"{field}: {first['msg']}.", field)


def _http_message(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"There is no {request.method} {request.url.path} here."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return f"{request.url.path} does not take {request.method}; it takes {allowed or 'others'}."
    return str(error.detail)


def _code(error: HTTPException) -> str:
    return {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")


def _envelope(message: str, kind: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
