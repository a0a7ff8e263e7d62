"""One HTTP session to one vLLM server: timeouts, connection reuse, and errors as ours.

Knows nothing of what is sent. An answer of any status is an answer; only silence, a refused or a
broken connection is an error here.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from io import BytesIO
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import aiohttp

from server.core.errors import EngineUnavailable
from server.core.json_codec import encode
from server.core.settings import EngineSettings, revealed

# uvicorn, which serves vLLM, closes an idle connection after 5 s; whoever closes first at the same
# moment as the other sends loses a request, so we close earlier.
KEEPALIVE_S = 4.0

SENT_WHOLE_BYTES = 64 * 1024
"""A longer body is sent in pieces, so that it does not hold up other requests."""


@contextmanager
def broken_answers() -> Iterator[None]:
    """Turn what goes wrong on the wire into EngineUnavailable."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EngineUnavailable(_reason(error)) from error


class EngineClient:
    """A pooled session; make it inside a running event loop and close it there."""

    def __init__(self, settings: EngineSettings, url: str) -> None:
        self.url = url.rstrip("/")
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

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
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | bytes | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send and hand over the answer with its body unread; leaving the block ends the request.

        Leaving it early closes the connection, which makes vLLM stop generating.

        Args:
            timeout_s: for the whole exchange; None bounds only each silence.
            request_id: sent as `X-Request-Id`; vLLM makes the completion's id from it.

        Raises:
            EngineUnavailable: no connection, or no answer within the timeout. Read the body under
                :func:`broken_answers`, which does the same for what happens later.
        """
        with broken_answers():
            response = await self._send(method, path, body, timeout_s, request_id)
        try:
            yield response
        finally:
            if not response.content.at_eof():
                response.close()

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None,
        timeout_s: float | None,
        request_id: str | None,
    ) -> aiohttp.ClientResponse:
        headers = {}
        if request_id is not None:
            headers["X-Request-Id"] = request_id
        if body is not None:
            headers["Content-Type"] = "application/json"
        raw = encode(body) if isinstance(body, Mapping) else body
        for may_retry in (True, False):
            context = SimpleNamespace(is_reused=False)
            try:
                return await self._open_session().request(
                    method,
                    f"{self.url}{path}",
                    data=_payload(raw),
                    headers=headers,
                    timeout=self._timeout(timeout_s),
                    trace_request_ctx=context,
                    allow_redirects=False,
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # The engine closed a kept connection just as we wrote to it: nothing was answered,
                # so once more on a fresh one. A fresh connection that breaks is a real failure.
                if not (may_retry and context.is_reused):
                    raise
        raise AssertionError("the second attempt returns or raises")

    def _timeout(self, timeout_s: float | None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=timeout_s,
            sock_connect=self._settings.connect_timeout_s,
            sock_read=self._settings.read_timeout_s if timeout_s is None else None,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_connection_reuseconn.append(_mark_reused)
            headers = {"Accept-Encoding": "identity"}
            if key := revealed(self._settings.api_key):
                headers["Authorization"] = f"Bearer {key}"
            self._session = aiohttp.ClientSession(
                # The engine queues; a limit here would only hide its queue from its scheduler.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                headers=headers,
                trace_configs=[trace],
                auto_decompress=False,
            )
        return self._session


def _payload(raw: bytes | None) -> bytes | BytesIO | None:
    """aiohttp sends bytes at once, and a file of them in pieces."""
    return raw if raw is None or len(raw) <= SENT_WHOLE_BYTES else BytesIO(raw)


async def _mark_reused(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: object
) -> None:
    context.trace_request_ctx.is_reused = True


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connection refused"
    return str(error) or type(error).__name__
