"""One request passed through the engine: its bytes out, a reading of them on the side.

What the engine sends reaches the client unchanged, but for one thing: the engine is always asked
for the token counts of a stream, and the event that carries only those is withheld from a client
that did not ask. (vLLM puts `system_fingerprint` into that last event, so such a client lacks it.)

Nothing is parsed while a stream runs: whole events go on as they come, and a plain search in their
bytes tells the few that matter. What was said is read when it is asked for, at the end.

Leaving :func:`open_reply` early closes the connection, at which vLLM stops generating.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from server.core.errors import EngineError
from server.core.json_codec import encode
from server.engine.client import EngineClient, broken_answers
from server.engine.reading import (
    Assembled,
    ChatReader,
    CountReader,
    MessagesReader,
    Reader,
    ResponsesReader,
    TextReader,
    is_usage_only,
)
from server.engine.sse import EventSplitter, event_data, split_events
from server.engine.wire import Reply

END_TIMEOUT_S = 1.0
"""How long a complete reply is held up by an engine that does not close it."""

MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""A stream is kept for reading up to this size; what is longer is read piece by piece."""

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""An event that is longer is not waited for."""


@dataclass(frozen=True, slots=True)
class Door:
    """One of the engine's endpoints: where it is, and how its replies are read."""

    path: str
    reader: type[Reader]
    has_stream_options: bool = False
    """Whether a stream gives token counts only to those who ask."""
    takes_request_id: bool = False
    """Whether the reply's id is a field of the request, not the header ``X-Request-Id``."""


CHAT = Door("/v1/chat/completions", ChatReader, has_stream_options=True)
COMPLETIONS = Door("/v1/completions", TextReader, has_stream_options=True)
RESPONSES = Door("/v1/responses", ResponsesReader, takes_request_id=True)
EMBEDDINGS = Door("/v1/embeddings", CountReader)
MESSAGES = Door("/v1/messages", MessagesReader)
COUNT_TOKENS = Door("/v1/messages/count_tokens", CountReader)


class EngineReply:
    """The engine's answer, whose body has not been read yet."""

    def __init__(self, response: Reply, reader: Reader, *, withholds_usage: bool) -> None:
        self.status = response.status
        self.content_type = response.headers.get("content-type", "application/json")
        self.retry_after = response.headers.get("retry-after")
        self.is_done = False
        """Whether a stream has come to its proper end."""
        self._response = response
        self._reader = reader
        self._withholds_usage = withholds_usage
        self._unread: list[bytes] = []
        self._unread_bytes = 0

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    def assembled(self) -> Assembled:
        """What has come so far, read."""
        self._reader.feed_events(b"".join(self._unread))
        self._unread.clear()
        self._unread_bytes = 0
        return self._reader.result()

    async def body(self) -> bytes:
        """The whole answer, when it is not a stream."""
        with broken_answers():
            body = await self._response.read()
        if self.status == 200:
            self._reader.feed_body(body)
        return body

    async def blocks(self) -> AsyncIterator[bytes]:
        """Whole events as they come, those for the client only; none after the end of the stream.

        Raises:
            EngineUnavailable: the engine breaks off or falls silent.
            EngineError: an event has no end.
        """
        splitter = EventSplitter()
        while not self.is_done:
            with broken_answers():
                chunk = await self._response.read_some()
            if not chunk:
                break
            if splitter.held > MAX_EVENT_BYTES:
                raise EngineError(f"The engine sends an event of more than {MAX_EVENT_BYTES} bytes")
            if block := self._for_client(splitter.feed_whole(chunk)):
                if self.is_done:
                    await self._read_end()
                yield block
        if not self.is_done and (rest := splitter.rest()):
            self._keep(rest)
            yield rest

    def _for_client(self, block: bytes) -> bytes:
        """The block without what is not the client's; notes the end of the stream."""
        may_count = self._withholds_usage and b'"usage"' in block
        may_end = self._may_end(block)
        if not (may_count or may_end):
            self._keep(block)
            return block
        sent: list[bytes] = []
        for event in split_events(block):
            self._keep(event)
            if not (may_count and b'"usage"' in event and is_usage_only(event_data(event))):
                sent.append(event)
            if may_end and self._may_end(event) and self._reader.is_end(event_data(event)):
                self.is_done = True
                break
        return b"".join(sent)

    def _may_end(self, block: bytes) -> bool:
        return any(mark in block for mark in self._reader.end_marks)

    def _keep(self, block: bytes) -> None:
        self._unread.append(block)
        self._unread_bytes += len(block)
        if self._unread_bytes > MAX_UNREAD_BYTES:
            self.assembled()

    async def _read_end(self) -> None:
        """Read what closes the reply, so that its connection can be used again."""
        with suppress(OSError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._response.read()


@asynccontextmanager
async def open_reply(
    client: EngineClient,
    door: Door,
    engine_name: str,
    request: Mapping[str, Any],
    request_id: str | None = None,
) -> AsyncIterator[EngineReply]:
    """Send a client's request to the weights named.

    Args:
        request_id: what the engine makes the reply's id from.

    Raises:
        EngineUnavailable: no answer. An answer of any status is a reply.
    """
    order, withholds_usage = engine_order(door, engine_name, request, request_id)
    async with client.request("POST", door.path, body=order, request_id=request_id) as response:
        yield EngineReply(response, door.reader(), withholds_usage=withholds_usage)


def engine_order(
    door: Door, engine_name: str, request: Mapping[str, Any], request_id: str | None = None
) -> tuple[bytes, bool]:
    """The request as the engine gets it, and whether the usage event is ours alone.

    Nothing but ``model``, the id of a response and, in a stream, ``stream_options`` differs from
    what the client sent; a ``priority`` below 0, with which a client would go before all others,
    becomes 0.
    """
    order = {**request, "model": engine_name}
    if isinstance(priority := request.get("priority"), int):
        order["priority"] = max(0, priority)
    if door.takes_request_id and request_id is not None:
        order["request_id"] = f"resp_{request_id}"
    withholds_usage = False
    options = request.get("stream_options")
    if (
        door.has_stream_options
        and request.get("stream") is True
        and (options is None or isinstance(options, Mapping))
    ):
        asked = dict(options or {})
        if not asked.get("include_usage"):
            # Counts in every event come only to those who ask for both, in vLLM too.
            asked.pop("continuous_usage_stats", None)
            order["stream_options"] = {**asked, "include_usage": True}
            withholds_usage = True
    return encode(order), withholds_usage
