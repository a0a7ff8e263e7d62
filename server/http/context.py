"""The id of a request, from its header through the logs to the reply."""

import re

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.core.clock import new_id

REQUEST_ID = "x-request-id"

_SANE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


def take_request_id(scope: Scope) -> str:
    """Give a request its id: the client's own where it is sane, else a fresh one.

    It stands in ``request.state`` and in all that is logged from here on; a request has a task, and
    so a context, to itself.
    """
    given = Headers(scope=scope).get(REQUEST_ID, "")
    request_id = given if _SANE_ID.fullmatch(given) else new_id("req")
    scope.setdefault("state", {})["request_id"] = request_id
    structlog.contextvars.bind_contextvars(request_id=request_id)
    return request_id


class RequestIdMiddleware:
    """Gives every request its id, and every reply too.

    Pure ASGI, so that streams pass through untouched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = take_request_id(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
