"""An engine that costs next to nothing: vLLM's JSON and its 64-chunk streams out of fixed bytes.

It answers what the gateway's probe asks, and never loads an adapter. Run it in a process of its
own: ``python -m benchmarks.stub PORT``.
"""

import asyncio
import json
import sys
from typing import Any, cast

import httptools
import uvloop

BASE = "bench@base"
CHUNKS = 64
WORD = " word"
_ID = "chatcmpl-benchmark"


def _answer(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _event(**fields: Any) -> bytes:
    chunk = {"id": _ID, "object": "chat.completion.chunk", "created": 1, "model": BASE, **fields}
    data = b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
    return _chunk(data)


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _delta(index: int) -> bytes:
    finish = "stop" if index == CHUNKS - 1 else None
    choice = {"index": 0, "delta": {"content": WORD}, "logprobs": None, "finish_reason": finish}
    return _event(choices=[choice])


_USAGE = {"prompt_tokens": 7, "completion_tokens": CHUNKS, "total_tokens": 7 + CHUNKS}
_MESSAGE = {"role": "assistant", "content": WORD * CHUNKS}
_WHOLE = {
    "id": _ID,
    "object": "chat.completion",
    "created": 1,
    "model": BASE,
    "choices": [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "stop"}],
    "usage": _USAGE,
}
_CARDS = {"object": "list", "data": [{"id": BASE, "root": "/base", "parent": None}]}
_LORA = 'vllm:lora_requests_info{max_lora="4",running_lora_adapters=""} 1.0\n'

JSON_REPLY = _answer(json.dumps(_WHOLE, separators=(",", ":")).encode())
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
STREAM_CHUNKS = tuple(_delta(index) for index in range(CHUNKS))
STREAM_USAGE = _event(choices=[], usage=_USAGE)
STREAM_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_ROUTES = {
    b"/health": _answer(b""),
    b"/version": _answer(b'{"version":"0.32.0"}'),
    b"/metrics": _answer(_LORA.encode(), "text/plain"),
    b"/v1/models": _answer(json.dumps(_CARDS).encode()),
    b"/v1/load_lora_adapter": _answer(b'{"error":"no"}', status="400 Bad Request"),
}
_UNKNOWN = _answer(b"{}", status="404 Not Found")


class StubEngine(asyncio.Protocol):
    """One connection. A chunk goes out per turn of the loop, as an engine sends token by token."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's, though they do the same.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path, self._body = url, b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._path != b"/v1/chat/completions":
            self._write(_ROUTES.get(self._path, _UNKNOWN))
        elif _has_true(self._body, b"stream"):
            self._write(STREAM_HEAD)
            self._send_chunk(0, asks_usage=_has_true(self._body, b"include_usage"))
        else:
            self._write(JSON_REPLY)

    def _send_chunk(self, index: int, *, asks_usage: bool) -> None:
        if index < CHUNKS:
            self._write(STREAM_CHUNKS[index])
            self._loop.call_soon(lambda: self._send_chunk(index + 1, asks_usage=asks_usage))
        else:
            self._write(STREAM_USAGE + STREAM_END if asks_usage else STREAM_END)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _has_true(body: bytes, name: bytes) -> bool:
    """Whether a field is true, however the sender spaces its JSON."""
    return b'"%b":true' % name in body or b'"%b": true' % name in body


async def serve(port: int) -> None:
    """Serve on loopback until cancelled."""
    server = await asyncio.get_running_loop().create_server(StubEngine, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
