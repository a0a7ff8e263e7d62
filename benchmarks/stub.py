"""An engine that costs next to nothing: vLLM's JSON and its 64-chunk streams out of fixed bytes.

It answers what the gateway's probe asks. An adapter that it is told to load is named in each chunk
and says the name of its folder, so that whoever reads can tell which one answered. Run it in a
process of its own: ``python -m benchmarks.stub PORT [PAUSE_S]``.
"""

import asyncio
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast

import httptools
import uvloop

BASE = "bench@base"
CHUNKS = 64
WORD = " word"
_ID = "chatcmpl-benchmark"
_MODEL = re.compile(rb'"model": ?"([^"]+)"')
_USAGE = {"prompt_tokens": 7, "completion_tokens": CHUNKS, "total_tokens": 7 + CHUNKS}
_LORA = 'vllm:lora_requests_info{max_lora="4",running_lora_adapters=""} 1.0\n'

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def word_of(path: str) -> str:
    """What an adapter from this folder says over and over."""
    return f" {PurePath(path).name}"


def _answer(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@dataclass(frozen=True, slots=True)
class Replies:
    """All that one model ever answers."""

    root: str
    whole: bytes
    odds: bytes
    """The same with log-probabilities, by which an adapter is told from the base."""
    chunks: tuple[bytes, ...]
    usage: bytes

    @classmethod
    def of(cls, model: str, root: str, word: str) -> "Replies":
        top = [{"token": word, "logprob": -0.1 if model == BASE else -0.2, "bytes": None}]
        odds = {"content": [{**top[0], "top_logprobs": top}]}
        return cls(
            root=root,
            whole=_whole(model, word, None),
            odds=_whole(model, word, odds),
            chunks=tuple(_delta(model, word, index) for index in range(CHUNKS)),
            usage=_event(model, choices=[], usage=_USAGE),
        )


def _whole(model: str, word: str, logprobs: dict[str, Any] | None) -> bytes:
    message = {"role": "assistant", "content": word * CHUNKS}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    body = {
        "id": _ID,
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [choice],
        "usage": _USAGE,
    }
    return _answer(json.dumps(body, separators=(",", ":")).encode())


def _event(model: str, **fields: Any) -> bytes:
    chunk = {"id": _ID, "object": "chat.completion.chunk", "created": 1, "model": model, **fields}
    data = b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
    return _chunk(data)


def _delta(model: str, word: str, index: int) -> bytes:
    finish = "stop" if index == CHUNKS - 1 else None
    choice = {"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": finish}
    return _event(model, choices=[choice])


_OF_BASE = Replies.of(BASE, "/base", WORD)
JSON_REPLY = _OF_BASE.whole
STREAM_CHUNKS = _OF_BASE.chunks
STREAM_USAGE = _OF_BASE.usage
STREAM_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_ROUTES = {
    b"/health": _answer(b""),
    b"/version": _answer(b'{"version":"0.32.0"}'),
    b"/metrics": _answer(_LORA.encode(), "text/plain"),
}
_UNKNOWN = _answer(b"{}", status="404 Not Found")


class Models:
    """What the stub holds: the base, and the adapters that it was told to load."""

    def __init__(self) -> None:
        self._replies = {BASE: _OF_BASE}

    def replies(self, body: bytes) -> Replies | None:
        """What the model answers that a request names; one that names none asks for the base."""
        if len(self._replies) == 1 and BASE.encode() in body:
            return _OF_BASE
        named = _MODEL.search(body)
        return self._replies.get(named[1].decode()) if named else _OF_BASE

    def listing(self) -> bytes:
        cards = [
            {"id": name, "root": replies.root, "parent": None if name == BASE else BASE}
            for name, replies in self._replies.items()
        ]
        return _answer(json.dumps({"object": "list", "data": cards}).encode())

    def load(self, body: bytes) -> bytes:
        order = json.loads(body or b"{}")
        name, path = order.get("lora_name"), order.get("lora_path")
        if not name or not path or name in self._replies:
            return _answer(b'{"error":"no"}', status="400 Bad Request")
        self._replies[name] = Replies.of(name, path, word_of(path))
        return _answer(b"Success")

    def unload(self, body: bytes) -> bytes:
        name = json.loads(body or b"{}").get("lora_name")
        if name == BASE or self._replies.pop(name, None) is None:
            return _UNKNOWN
        return _answer(b"Success")


class StubEngine(asyncio.Protocol):
    """One connection. A chunk goes out per turn of the loop, as an engine sends token by token.

    Args:
        pause_s: between two chunks; 0 for the next turn.
    """

    def __init__(self, models: Models, pause_s: float) -> None:
        self._models = models
        self._pause_s = pause_s
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
        if self._path == b"/v1/chat/completions":
            self._chat(self._body)
        elif self._path == b"/v1/models":
            self._write(self._models.listing())
        elif self._path == b"/v1/load_lora_adapter":
            self._write(self._models.load(self._body))
        elif self._path == b"/v1/unload_lora_adapter":
            self._write(self._models.unload(self._body))
        else:
            self._write(_ROUTES.get(self._path, _UNKNOWN))

    def _chat(self, body: bytes) -> None:
        replies = self._models.replies(body)
        if replies is None:
            self._write(_UNKNOWN)
        elif _has_true(body, b"stream"):
            self._write(STREAM_HEAD)
            self._send_chunk(replies, 0, asks_usage=_has_true(body, b"include_usage"))
        else:
            self._write(replies.odds if _has_true(body, b"logprobs") else replies.whole)

    def _send_chunk(self, replies: Replies, index: int, *, asks_usage: bool) -> None:
        if index < CHUNKS:
            self._write(replies.chunks[index])
            self._after_pause(lambda: self._send_chunk(replies, index + 1, asks_usage=asks_usage))
        else:
            self._write(replies.usage + STREAM_END if asks_usage else STREAM_END)

    def _after_pause(self, work: Callable[[], None]) -> None:
        if self._pause_s:
            self._loop.call_later(self._pause_s, work)
        else:
            self._loop.call_soon(work)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _has_true(body: bytes, name: bytes) -> bool:
    """Whether a field is true, however the sender spaces its JSON."""
    return b'"%b":true' % name in body or b'"%b": true' % name in body


async def serve(port: int, pause_s: float) -> None:
    """Serve on loopback until cancelled."""
    models = Models()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: StubEngine(models, pause_s), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]) if sys.argv[2:] else 0.0))
