"""HTTP connections with bounds: on their number, on what comes before a request, and on every wait.

uvicorn waits for ever for a client that connects and says nothing, sends its headers byte by byte or
stops reading a reply. Each such client holds memory, and a slow reader holds the engine's work too.
"""

import asyncio
import json
from asyncio.events import TimerHandle
from dataclasses import dataclass
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers; OpenAI's clients send about one kilobyte."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of one gateway process."""

    max_connections: int
    head_timeout_s: float
    """From the first byte, or the connection, to the end of the headers."""
    body_timeout_s: float
    """From the end of the headers to the end of the body."""
    write_timeout_s: float
    """How long a client may leave a reply unread before it counts as gone."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, closing what exceeds the limits. One instance per connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        *,
        limits: ConnectionLimits,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._receive_timer: TimerHandle | None = None
        self._write_timer: TimerHandle | None = None
        self._head_bytes = 0
        self._is_in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "The server has too many connections. Try again shortly.")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receive_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._receive_timer is None and self._is_idle():
            self._await_head()
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"Request line and headers exceed {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._await(self._limits.body_timeout_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_receive_timer()
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return self._is_in_head and (self.cycle is None or self.cycle.response_complete)

    def _await_head(self) -> None:
        self._await(self._limits.head_timeout_s)

    def _await(self, timeout_s: float) -> None:
        self._stop_receive_timer()
        self._receive_timer = self.loop.call_later(timeout_s, self._give_up)

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _give_up(self) -> None:
        self._receive_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # a body that does not come: the route waits for it
        else:
            self._refuse(408, "The request did not arrive in time.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer without asking the app, and close."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        head = (
            f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self._stop_receive_timer()
        self.transport.write(head.encode() + body)
        self.transport.close()
