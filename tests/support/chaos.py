"""A proxy in front of a real server that can take it away: connections cut, refused, or left hanging."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def to_tcp(host: str, port: int) -> Connect:
    """Passes connections on to this address."""
    return lambda: asyncio.open_connection(host, port)


class Mode(StrEnum):
    """What the proxy does with connections, old and new."""

    PASS = "pass"
    CUT = "cut"
    """Every connection is closed at once."""
    HANG = "hang"
    """Nothing is passed on and nothing is closed, as when a network cable is pulled."""


class Proxy:
    """TCP on a free loopback port, passed on to whatever ``connect`` opens."""

    def __init__(self, connect: Connect) -> None:
        self.port = 0
        self._connect = connect
        self._mode = Mode.PASS
        self._is_passing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task[None] | None = None

    def set_mode(self, mode: Mode) -> None:
        """Change it now, from any thread; returns when it is done."""
        asyncio.run_coroutine_threadsafe(self._set_mode(mode), self._loop).result(timeout=10)

    async def _set_mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.PASS:
            self._is_passing.set()
        else:
            self._is_passing.clear()
        if mode is Mode.CUT:
            for writer in list(self._writers):
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.CUT:
            writer.transport.abort()
            return
        self._writers.add(writer)
        with suppress(OSError):
            await self._is_passing.wait()
            upstream_reader, upstream_writer = await self._connect()
            self._writers.add(upstream_writer)
            await asyncio.gather(
                self._pump(reader, upstream_writer), self._pump(upstream_reader, writer)
            )
            self._writers.discard(upstream_writer)
        self._writers.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._is_passing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    def _run(self, started: threading.Event) -> None:
        async def main() -> None:
            self._is_passing.set()
            self._main = asyncio.current_task()
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            async with server:
                await server.serve_forever()

        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(main())
        self._loop.run_until_complete(self._end_connections())

    async def _end_connections(self) -> None:
        """Let every connection come to its end, so that no transport outlives the loop."""
        self._is_passing.set()
        for writer in list(self._writers):
            writer.transport.abort()
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=5)
        await asyncio.sleep(0.01)

    @contextmanager
    def running(self) -> Iterator["Proxy"]:
        started = threading.Event()
        thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        thread.start()
        if not started.wait(10):
            raise TimeoutError("the proxy does not start")
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop)
            thread.join(10)
            self._loop.close()

    def _stop(self) -> None:
        assert self._main is not None
        self._main.cancel()
