"""The way of the engine's endpoints past the web framework.

A request for the engine needs no dependency injection, no validation into models and none of the
layers around them; they cost more than the gateway's own work. It goes straight to its handler
here, with the same request id and the same errors that every other route has.
"""

from collections.abc import Awaitable, Callable, Mapping

import structlog
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from server.core.errors import AppError, DatabaseUnavailable
from server.db.session import DATABASE_AWAY
from server.http import error_response, take_request_id, unexpected_response

log = structlog.get_logger(__name__)

Handler = Callable[[Request], Awaitable[ASGIApp]]


class Gateway(FastAPI):
    """The app, with a lane of its own for the paths in ``lane``."""

    lane: Mapping[str, Handler] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        handler = self.lane.get(scope["path"]) if is_post else None
        if handler is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        request_id = take_request_id(scope)
        try:
            response = await handler(Request(scope, receive))
        except ClientDisconnect:
            return
        except AppError as error:
            response = error_response(error, scope["path"], request_id)
        except DATABASE_AWAY as error:
            log.error("database_unavailable", error=str(error)[:300])
            response = error_response(DatabaseUnavailable(), scope["path"], request_id)
        except Exception:
            await unexpected_response(scope["path"], request_id)(scope, receive, send)
            raise  # uvicorn logs it
        await response(scope, receive, send)
