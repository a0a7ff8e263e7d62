"""One chat request passed through the engine: its bytes out, a reading of them on the side.

What the engine sends reaches the client unchanged, but for one thing: the engine is always asked
for the token counts of a stream, and the event that carries only those is withheld from a client
that did not ask. (vLLM puts `system_fingerprint` into that last event, so such a client lacks it.)

Leaving :func:`open_reply` early closes the connection, at which vLLM stops generating.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from server.engine.client import EngineClient, broken_answers
from server.engine.sse import Assembled, CompletionAssembler, EventSplitter

PATH = "/v1/chat/completions"

END_TIMEOUT_S = 1.0
"""How long a complete reply is held up by an engine that does not close it."""


class EngineReply:
    """The engine's answer, whose body has not been read yet."""

    def __init__(self, response: aiohttp.ClientResponse, *, withholds_usage: bool) -> None:
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "application/json")
        self._response = response
        self._withholds_usage = withholds_usage
        self._assembler = CompletionAssembler()

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    @property
    def is_done(self) -> bool:
        """Whether a stream has come to its proper end."""
        return self._assembler.is_done

    def assembled(self) -> Assembled:
        """What has been read so far."""
        return self._assembler.result()

    async def body(self) -> bytes:
        """The whole answer, when it is not a stream."""
        with broken_answers():
            body = await self._response.read()
        self._assembler.feed_body(body)
        return body

    async def events(self) -> AsyncIterator[bytes]:
        """Whole events as they come, those for the client only.

        Raises:
            EngineUnavailable: the engine breaks off or falls silent.
        """
        splitter = EventSplitter()
        while True:
            with broken_answers():
                chunk = await self._response.content.readany()
            if not chunk:
                break
            for event in splitter.feed(chunk):
                if self._is_for_client(event):
                    if self.is_done:
                        await self._read_end()
                    yield event
        if rest := splitter.rest():
            self._assembler.feed_event(rest)
            yield rest

    async def _read_end(self) -> None:
        """Read what closes the reply, so that its connection can be used again."""
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._response.content.read()

    def _is_for_client(self, event: bytes) -> bool:
        is_usage_only = self._assembler.feed_event(event)
        return not (is_usage_only and self._withholds_usage)


@asynccontextmanager
async def open_reply(
    client: EngineClient, engine_name: str, request: Mapping[str, Any]
) -> AsyncIterator[EngineReply]:
    """Send a client's request to the weights named.

    Raises:
        EngineUnavailable: no answer. An answer of any status is a reply.
    """
    order, withholds_usage = engine_order(engine_name, request)
    async with client.request("POST", PATH, body=order) as response:
        yield EngineReply(response, withholds_usage=withholds_usage)


def engine_order(engine_name: str, request: Mapping[str, Any]) -> tuple[bytes, bool]:
    """The request as the engine gets it, and whether the usage event is ours alone.

    Nothing but ``model`` and, in a stream, ``stream_options`` differs from what the client sent; a
    ``priority`` below 0, with which a client would go before all others, becomes 0.
    """
    order = {**request, "model": engine_name}
    if isinstance(priority := request.get("priority"), int):
        order["priority"] = max(0, priority)
    withholds_usage = False
    options = request.get("stream_options")
    if request.get("stream") is True and (options is None or isinstance(options, Mapping)):
        asked = dict(options or {})
        if not asked.get("include_usage"):
            # Counts in every event come only to those who ask for both, in vLLM too.
            asked.pop("continuous_usage_stats", None)
            order["stream_options"] = {**asked, "include_usage": True}
            withholds_usage = True
    return json.dumps(order, separators=(",", ":")).encode(), withholds_usage
