"""Reading a request's body: never more of it than was agreed, and JSON that cannot break the reader."""

import json
import re
from collections.abc import Collection
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.core.errors import InvalidRequest, PayloadTooLarge
from server.http.errors import error_response

MAX_BODY_BYTES = 1024 * 1024
"""For every route without a limit of its own: what they take is a few hundred bytes long."""

DRAINED_LIMITS = 8
"""A body up to this many times too long is still read, so that its sender sees the refusal."""


class BodyLimitMiddleware:
    """Answers 413 to a long body before a route sees it.

    FastAPI reads a body before it looks at the key, so without this anybody could fill the memory.

    Args:
        own_limit: paths of the routes that check the key first and then call :func:`read_body`, or
            read their body piece by piece.
        own_limit_pattern: the same for paths with a name in them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        own_limit: Collection[str],
        own_limit_pattern: re.Pattern[str] | None = None,
    ) -> None:
        self._app = app
        self._own_limit = own_limit
        self._pattern = own_limit_pattern

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._has_own_limit(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(Request(scope, receive), MAX_BODY_BYTES)
        except PayloadTooLarge as error:
            await error_response(error)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, receive_again, send)

    def _has_own_limit(self, path: str) -> bool:
        if path in self._own_limit:
            return True
        return self._pattern is not None and self._pattern.fullmatch(path) is not None


async def read_body(request: Request, limit: int, setting: str | None = None) -> bytes:
    """The whole body, if it has at most ``limit`` bytes, whatever its headers claim.

    What is a few times too long is read to its end and thrown away: most clients look at an answer
    only when they have sent everything, and would report a broken connection instead of ours.

    Raises:
        PayloadTooLarge: names ``setting``, if there is one, as what to raise.
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


def parse_json(text: str) -> Any:
    """The value that a body holds.

    Raises:
        InvalidRequest: it is not JSON, or nested or long beyond what Python reads.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body cannot be read: {error}.") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
