"""The id of a request, from its header through the logs to the reply; and reading a body safely."""

import re

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.core.clock import new_id
from server.core.errors import PayloadTooLarge

REQUEST_ID = "x-request-id"

DRAINED_LIMITS = 8
"""A body up to this many times too long is still read, so that its sender sees the refusal."""

_SANE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


class RequestIdMiddleware:
    """Gives every request an id: the client's own where it is sane, else a fresh one.

    Pure ASGI, so that streams pass through untouched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SANE_ID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)


async def read_body(request: Request, limit: int, setting: str) -> bytes:
    """The whole body, if it has at most ``limit`` bytes, whatever its headers claim.

    What is a few times too long is read to its end and thrown away: most clients look at an answer
    only when they have sent everything, and would report a broken connection instead of ours.

    Raises:
        PayloadTooLarge: names ``setting`` as what to raise.
    """
    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal() and int(claimed[:20]) > limit * DRAINED_LIMITS:
        raise PayloadTooLarge(limit, setting)
    body = bytearray()
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            body += part
        elif size > limit * DRAINED_LIMITS:
            break
    if size > limit:
        raise PayloadTooLarge(limit, setting)
    return bytes(body)
