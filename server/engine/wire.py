"""HTTP/1.1 over kept connections, as much of it as a gateway needs; httptools parses.

A reply's body is handed on as it comes, and a reader who is slow holds up the sender, never the
memory. This is the hottest path of the product: a general client library costs more here than all
else that the gateway does (`make bench-gateway`).

Not covered: redirects, cookies, proxies, compression, HTTP/2; vLLM uses none of them.
"""

import asyncio
import ssl
from collections import deque
from urllib.parse import urlsplit

import httptools

HIGH_WATER_BYTES = 256 * 1024
"""Of a body that nobody has read yet; from here on the sender is made to wait."""

KEEPALIVE_S = 4.0
"""How long an unused connection is kept. uvicorn, which serves vLLM, closes it after 5 s; whoever
closes at the moment when the other sends loses a request, so we close earlier."""


class BrokenConnection(OSError):
    """The connection ended, or what came over it is not HTTP."""


class Unanswered(BrokenConnection):
    """The connection ended before a single byte of the reply."""


class Reply:
    """One reply, whose head has come; read its body, then :meth:`end` it."""

    def __init__(self, connection: "Connection", status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        """Names in lower case."""
        self.is_complete = False
        self._connection = connection
        self._parts: deque[bytes] = deque()
        self._unread_bytes = 0

    async def read_some(self) -> bytes:
        """What has come since the last call; waits while there is nothing. Empty at the end.

        Raises:
            BrokenConnection: the reply was broken off.
            TimeoutError: nothing came in time.
        """
        while not self._parts and not self.is_complete:
            await self._connection.wait()
        if not self._parts:
            return b""
        some = self._parts.popleft() if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._unread_bytes = 0
        self._connection.resume()
        return some

    async def read(self) -> bytes:
        """The whole body; raises as :meth:`read_some` does."""
        parts = []
        while part := await self.read_some():
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def end(self) -> None:
        """Give the connection back; one whose reply is not complete is closed."""
        self._connection.release()

    def feed(self, part: bytes) -> bool:
        """Keep a part of the body; False when there is enough of it for now."""
        self._parts.append(part)
        self._unread_bytes += len(part)
        return self._unread_bytes < HIGH_WATER_BYTES


class Connection(asyncio.Protocol):
    """One connection, for one request after another."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._headers: dict[str, str] = {}
        self._reply: Reply | None = None
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._patience_s = 0.0
        self._is_whole_exchange = False
        self._heard_at = 0.0
        self._is_paused = False
        self._may_keep = False
        self._has_heard = False
        self._is_busy = False
        self.idle_since = 0.0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes, patience_s: float, *, is_whole_exchange: bool) -> Reply:
        """Send a request; the reply when its head is here.

        Args:
            patience_s: how long the other side may be silent, or the whole exchange may take.

        Raises:
            Unanswered: it ended before a byte came.
            BrokenConnection: it ended before a head came, or what came is no head.
            TimeoutError: no head in time.
        """
        assert self._transport is not None, "a connection is asked while it is open"
        self._is_busy = True
        self._has_heard = self._may_keep = False
        self._reply = None
        self._headers = {}
        self._patience_s, self._is_whole_exchange = patience_s, is_whole_exchange
        self._heard_at = self._loop.time()
        self._timer = self._loop.call_later(patience_s, self._check_patience)
        self._transport.write(request)
        while self._reply is None:
            await self.wait()
        return self._reply

    async def wait(self) -> None:
        """Until something has happened."""
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def release(self) -> None:
        """Back into the pool if its reply is complete and it may be used again; else closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_busy = False
        if self._may_keep and self.is_open:
            self.resume()
            self._pool.put(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once; vLLM stops generating."""
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """Let the other side send on."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._heard_at = self._loop.time()
            self._transport.resume_reading()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's is no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        if not self._is_busy:
            self.abort()  # nobody asked
            return
        self._has_heard = True
        self._heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BrokenConnection(f"the engine's reply is not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        reply = self._reply
        if reply is not None and not reply.is_complete and not _has_length(reply):
            reply.is_complete = True  # a body without a length ends with its connection
            self._wake()
        words = str(error) if error else "the engine closed the connection"
        self._fail(BrokenConnection(words) if self._has_heard else Unanswered(words))
        self._pool.forget(self)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._reply is not None:
            self._fail(BrokenConnection("the engine sent more than one reply"))
        elif status >= 200:  # below are notes on the way, such as 100 Continue
            self._reply = Reply(self, status, self._headers)
            self._wake()
        self._headers = {}

    def on_body(self, part: bytes) -> None:
        if self._reply is not None and not self._reply.is_complete:
            has_room = self._reply.feed(part)
            if not has_room and not self._is_paused and self._transport is not None:
                self._is_paused = True
                self._transport.pause_reading()
            self._wake()

    def on_message_complete(self) -> None:
        if self._reply is not None:
            self._reply.is_complete = True
            self._may_keep = self._parser.should_keep_alive()
            self._wake()

    # Our own.

    def _check_patience(self) -> None:
        now = self._loop.time()
        if self._is_paused and not self._is_whole_exchange:
            self._heard_at = now  # it is our reader who is slow
        due = self._heard_at + self._patience_s
        if self._is_whole_exchange or now >= due:
            self._fail(TimeoutError("no answer in time"))
        else:
            self._timer = self._loop.call_at(due, self._check_patience)

    def _fail(self, error: OSError) -> None:
        self._error = self._error or error
        self.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pool:
    """Connections to one address; as many as are asked for, because the engine queues by itself."""

    def __init__(self, url: str, connect_timeout_s: float) -> None:
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or (443 if is_tls else 80)
        self._tls = ssl.create_default_context() if is_tls else None
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def take(self) -> Connection | None:
        """The connection that was used last; None when all are in use."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def connect(self) -> Connection:
        """A fresh one.

        Raises:
            OSError: nobody listens there.
            TimeoutError: no connection in time.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_timeout_s):
            _, connection = await loop.create_connection(
                lambda: Connection(self), self.host, self.port, ssl=self._tls
            )
        self._all.add(connection)
        return connection

    def put(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(KEEPALIVE_S, self._sweep)

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)

    def close(self) -> None:
        """Close every connection, those in use too."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._all):
            connection.abort()

    def _sweep(self) -> None:
        """Close what has been unused for too long; the oldest stand first."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - KEEPALIVE_S
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.pop(0).abort()
        due = self._idle[0].idle_since + KEEPALIVE_S if self._idle else None
        self._sweeper = None if due is None else loop.call_at(due, self._sweep)


def _has_length(reply: Reply) -> bool:
    return "content-length" in reply.headers or "transfer-encoding" in reply.headers
