"""Requests to one vLLM server: addresses, the key, timeouts, and errors as ours.

Knows nothing of what is sent. An answer of any status is an answer; only silence, a refused or a
broken connection is an error here.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from server.core.errors import EngineUnavailable, EngineUnreachable
from server.core.json_codec import encode
from server.core.settings import EngineSettings, revealed
from server.engine.wire import BrokenConnection, Connection, Pool, Reply, Unanswered


@contextmanager
def broken_answers() -> Iterator[None]:
    """Turn what goes wrong on the wire into EngineUnavailable."""
    try:
        yield
    except OSError as error:  # a TimeoutError is one too
        raise EngineUnavailable(_reason(error)) from error


class EngineClient:
    """Kept connections to one engine; use it inside one event loop and close it there."""

    def __init__(self, settings: EngineSettings, url: str) -> None:
        self.url = url.rstrip("/")
        self._settings = settings
        self._pool = Pool(self.url, settings.connect_timeout_s)
        parts = urlsplit(self.url)
        self._prefix = parts.path
        head = f"Host: {parts.netloc.rpartition('@')[2]}\r\nAccept-Encoding: identity\r\n"
        if key := revealed(settings.api_key):
            head += f"Authorization: Bearer {key}\r\n"
        self._head = head.encode()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._pool.close()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | bytes | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> AsyncIterator[Reply]:
        """Send and hand over the answer with its body unread; leaving the block ends the request.

        Leaving it early closes the connection, which makes vLLM stop generating.

        Args:
            timeout_s: for the whole exchange; None bounds only each silence.
            request_id: sent as `X-Request-Id`; vLLM makes the completion's id from it.

        Raises:
            EngineUnreachable: no connection.
            EngineUnavailable: no answer within the timeout. Read the body under
                :func:`broken_answers`, which does the same for what happens later.
        """
        raw = encode(body) if isinstance(body, Mapping) else body
        order = self._order(method, path, raw, request_id)
        with broken_answers():
            reply = await self._send(order, timeout_s)
        try:
            yield reply
        finally:
            reply.end()

    def _order(self, method: str, path: str, body: bytes | None, request_id: str | None) -> bytes:
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n".encode() + self._head
        if request_id is not None:
            head += b"X-Request-Id: %b\r\n" % request_id.encode()
        if body is not None:
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        return head + b"\r\n" + (body or b"")

    async def _send(self, order: bytes, timeout_s: float | None) -> Reply:
        patience_s = self._settings.read_timeout_s if timeout_s is None else timeout_s
        is_whole_exchange = timeout_s is not None
        if (kept := self._pool.take()) is not None:
            try:
                return await _ask(kept, order, patience_s, is_whole_exchange)
            except Unanswered:
                # The engine closed a kept connection just as we wrote to it: nothing was answered,
                # so once more on a fresh one. A fresh connection that breaks is a real failure.
                fresh = await self._connect_again()
        else:
            try:
                fresh = await self._pool.connect()
            except OSError as error:
                raise EngineUnreachable(_reason(error)) from error
        return await _ask(fresh, order, patience_s, is_whole_exchange)

    async def _connect_again(self) -> Connection:
        """A fresh connection in place of one that broke.

        Raises:
            BrokenConnection: there is none. The engine may have seen the request and ended by it, so
                it is not merely out of reach; nor is it silent, for it has broken off.
        """
        try:
            return await self._pool.connect()
        except OSError as error:
            raise BrokenConnection(_reason(error)) from error


async def _ask(
    connection: Connection, order: bytes, patience_s: float, is_whole_exchange: bool
) -> Reply:
    """The head of the reply; the connection of an exchange without one is closed."""
    try:
        return await connection.ask(order, patience_s, is_whole_exchange=is_whole_exchange)
    except BaseException:
        connection.release()
        raise


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return str(error) or type(error).__name__
