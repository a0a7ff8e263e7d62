"""The wire to the engine, against a server that sends exactly what a test says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import EngineUnavailable, EngineUnreachable
from server.core.settings import EngineSettings
from server.engine import wire
from server.engine.client import EngineClient, broken_answers

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Engine:
    """A server that follows a script on every connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.requests: list[bytes] = []
        self.tasks: list[asyncio.Task[Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        with suppress(OSError, EOFError):
            await self._script(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        self.requests.append(head + await reader.readexactly(length))
        return self.requests[-1]


@asynccontextmanager
async def running(
    script: Callable[[Engine], Script], **settings: Any
) -> AsyncIterator[tuple[Engine, EngineClient]]:
    engine = Engine(lambda reader, writer: script(engine)(reader, writer))
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/base/"
    async with server, EngineClient(EngineSettings(**settings), url) as client:
        yield engine, client
    await asyncio.gather(*engine.tasks)


def says(*parts: bytes, times: int = 1, pause_s: float = 0) -> Callable[[Engine], Script]:
    """Answer so many requests of a connection with these parts, then close it."""

    def script(engine: Engine) -> Script:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(times):
                try:
                    await engine.read_request(reader)
                except asyncio.IncompleteReadError:
                    return
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(pause_s)

        return talk

    return script


async def body_of(client: EngineClient, **request: Any) -> bytes:
    async with client.request("POST", "/v1/x", body={"a": "é"}, **request) as reply:
        with broken_answers():
            return await reply.read()


async def test_a_request_says_what_it_must() -> None:
    async with running(says(WHOLE), api_key="sesame") as (engine, client):
        assert await body_of(client, request_id="int_1") == b"hello"

    head, _, body = engine.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    for line in (b"Authorization: Bearer sesame", b"X-Request-Id: int_1", b"Content-Length: 10"):
        assert line in head.split(b"\r\n")
    assert body == '{"a":"é"}'.encode()


async def test_a_connection_is_used_again() -> None:
    async with running(says(WHOLE, times=9)) as (engine, client):
        assert [await body_of(client) for _ in range(3)] == [b"hello"] * 3

    assert engine.connections == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n\r\nhello",  # a body that ends with its connection
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
async def test_a_connection_that_ends_is_not_used_again(reply: bytes) -> None:
    async with running(says(reply)) as (engine, client):
        assert [await body_of(client) for _ in range(2)] == [b"hello"] * 2

    assert engine.connections == 2


async def test_notes_on_the_way_are_passed_over() -> None:
    async with running(says(b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE)) as (_, client):
        assert await body_of(client) == b"hello"


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.lists(st.integers(0, 400)))
def test_a_chunked_body_comes_whole_however_it_is_cut(
    chunks: list[bytes], places: list[int]
) -> None:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"
    edges = [0, *sorted(place % len(reply) for place in places), len(reply)]
    parts = [reply[start:end] for start, end in pairwise(edges)]

    async def read() -> bytes:
        async with running(says(*parts)) as (_, client):
            return await body_of(client)

    assert asyncio.run(read()) == b"".join(chunks)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"HTTP/1.1 200 OK\r\nContent-Le"],
        [b"SSH-2.0-OpenSSH\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"],
    ],
)
async def test_a_reply_that_breaks_off_is_an_engine_that_is_away(parts: Sequence[bytes]) -> None:
    async with running(says(*parts)) as (engine, client):
        with pytest.raises(EngineUnavailable):
            await body_of(client)

    assert engine.connections == 1  # a fresh connection that breaks is not tried again


async def test_what_came_before_a_break_is_handed_on() -> None:
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    async with running(says(reply)) as (_, client):
        async with client.request("GET", "/") as answer:
            assert await answer.read_some() == b"hello"
            with pytest.raises(wire.BrokenConnection):
                await answer.read_some()


async def test_a_kept_connection_that_was_closed_costs_one_more_try() -> None:
    async with running(says(WHOLE, times=1)) as (engine, client):
        first = await body_of(client)
        second = await body_of(client)  # the first connection is closed, or is just being closed

    assert (first, second) == (b"hello", b"hello")
    assert engine.connections == 2


async def test_a_kept_connection_that_breaks_in_the_reply_is_not_tried_again() -> None:
    torn = iter([WHOLE, b"HTTP/1.1 200 OK\r\nConte"])

    def script(engine: Engine) -> Script:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for part in torn:
                await engine.read_request(reader)
                writer.write(part)

        return talk

    async with running(script) as (engine, client):
        await body_of(client)
        with pytest.raises(EngineUnavailable):
            await body_of(client)

    assert (len(engine.requests), engine.connections) == (2, 1)


@pytest.mark.parametrize("options", [{"timeout_s": 0.1}, {}])
async def test_silence_is_not_waited_for(options: dict[str, Any]) -> None:
    parts = (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"")
    async with running(says(*parts, pause_s=0.5), read_timeout_s=0.1) as (_, client):
        with pytest.raises(EngineUnavailable, match="no answer in time"):
            await body_of(client, **options)


async def test_a_slow_reply_is_no_silence() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    letters = [bytes([letter]) for letter in b"hello"]
    async with running(says(head, *letters, pause_s=0.3), read_timeout_s=1) as (_, client):
        assert await body_of(client) == b"hello"
        with pytest.raises(EngineUnavailable):
            await body_of(client, timeout_s=1)  # this bounds the whole exchange


async def test_nobody_listens() -> None:
    client = EngineClient(EngineSettings(), "http://127.0.0.1:9")

    with pytest.raises(EngineUnavailable, match="connection refused"):
        await body_of(client)


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionRefusedError()])
async def test_no_connection_in_place_of_one_that_broke_is_neither_silence_nor_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    async def connect(_: wire.Pool) -> wire.Connection:
        raise error

    def script(engine: Engine) -> Script:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.read_request(reader)
            writer.write(WHOLE)
            await engine.read_request(reader)

        return talk

    async with running(script) as (_, client):
        await body_of(client)
        monkeypatch.setattr(wire.Pool, "connect", connect)
        with pytest.raises(EngineUnavailable) as caught:
            await body_of(client)

    assert isinstance(caught.value.__cause__, wire.BrokenConnection)
    assert not isinstance(caught.value, EngineUnreachable)


async def test_a_slow_reader_holds_up_the_sender_not_the_memory() -> None:
    sent = 0

    def script(engine: Engine) -> Script:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await engine.read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * 2**20))
            for _ in range(64):
                writer.write(bytes(2**20))
                await writer.drain()
                sent += 2**20

        return talk

    async with running(script, read_timeout_s=0.5) as (_, client):
        async with client.request("GET", "/") as reply:
            await asyncio.sleep(1.2)  # longer than any silence may be: the reader is slow, not it
            held = sent
            body = await reply.read()

    assert held < 32 * 2**20
    assert len(body) == 64 * 2**20


async def test_leaving_early_closes_the_connection() -> None:
    is_closed = asyncio.Event()

    def script(engine: Engine) -> Script:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
            await reader.read()
            is_closed.set()

        return talk

    async with running(script) as (_, client):
        async with client.request("GET", "/") as reply:
            assert await reply.read_some() == b"a"
        await asyncio.wait_for(is_closed.wait(), 5)


async def test_an_unused_connection_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "KEEPALIVE_S", 0.1)
    async with running(says(WHOLE, times=9)) as (engine, client):
        await body_of(client)
        await asyncio.sleep(0.3)
        await body_of(client)

    assert engine.connections == 2


async def test_what_nobody_asked_for_closes_the_connection() -> None:
    async with running(says(WHOLE + WHOLE, times=9)) as (engine, client):
        assert await body_of(client) == b"hello"
        assert await body_of(client) == b"hello"

    assert engine.connections == 2


async def test_what_comes_between_two_requests_never_answers_the_next() -> None:
    def script(engine: Engine) -> Script:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.read_request(reader)
            writer.write(WHOLE)
            await asyncio.sleep(0.05)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n")
            await engine.read_request(reader)
            writer.write(b"\r\nbad")

        return talk

    async with running(script) as (engine, client):
        assert await body_of(client) == b"hello"
        await asyncio.sleep(0.3)
        assert await body_of(client) == b"hello"

    assert engine.connections == 2
