"""vLLM's OpenAI and LoRA surface in one Starlette app, with faults to order.

The forms of its answers were read off vLLM 0.32. It has no weights: every model answers its own
name and a number, so a test can see which one spoke. Proves nothing about vLLM itself.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass
class FakeEngine:
    """The engine's state and its faults; tests change the fields while it runs."""

    base: str = "smollm2@base"
    version: str = "0.32.0"
    has_lora: bool = True
    allows_updates: bool = True
    max_loras: int = 4
    words: int = 6
    """Tokens of a reply, the name included."""
    token_s: float = 0.0
    """Pause before each token."""
    load_s: float = 0.0
    """Pause before a load succeeds."""
    refuses_load: int | None = None
    """Status with which loads are refused."""
    refuses_chat: int | None = None
    """Status with which chats are refused."""
    breaks_after: int | None = None
    """Tokens after which a stream's connection is cut."""
    errors_after: int | None = None
    """Tokens after which a stream carries an error event."""
    ignores_adapters: bool = False
    """Answer with the base's log-probabilities whatever is asked for."""
    api_key: str | None = None
    """Asked for under /v1 and nowhere else, as vLLM does."""

    adapters: dict[str, str] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Every chat request as it came."""
    request_ids: list[str] = field(default_factory=list)
    peers: list[int] = field(default_factory=list)
    """The client's port of every chat request: one port, one connection."""
    cancelled: int = 0
    """Replies whose client left."""
    has_served: bool = False

    def lose_adapters(self) -> None:
        """What a restart does."""
        self.adapters.clear()

    def app(self) -> ASGIApp:
        app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/version", self._version),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                *(
                    (
                        Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                        Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
                    )
                    if self.allows_updates
                    else ()
                ),
            ]
        )

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"].startswith("/v1") and self.api_key:
                given = Request(scope).headers.get("authorization")
                if given != f"Bearer {self.api_key}":
                    await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
                    return
            await app(scope, receive, send)

        return guarded

    async def _health(self, _: Request) -> Response:
        return Response()

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": self.version})

    async def _metrics(self, _: Request) -> Response:
        if not self.has_lora:
            return PlainTextResponse("# HELP vllm:other x\n")
        text = "# HELP vllm:lora_requests_info x\n# TYPE vllm:lora_requests_info gauge\n"
        if self.has_served:
            labels = f'max_lora="{self.max_loras}",running_lora_adapters=""'
            text += f"vllm:lora_requests_info{{{labels}}} 1.0\n"
        return PlainTextResponse(text)

    async def _models(self, _: Request) -> Response:
        cards = [{"id": self.base, "object": "model", "root": "/models/base", "parent": None}]
        cards += [
            {"id": name, "object": "model", "root": path, "parent": self.base}
            for name, path in self.adapters.items()
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def _load(self, request: Request) -> Response:
        order = await request.json()
        if "lora_name" not in order:
            return _error(400, "2 validation errors", "Bad Request", "body.lora_name")
        name, path = order["lora_name"], order["lora_path"]
        await asyncio.sleep(self.load_s)
        if self.refuses_load is not None:
            return _error(self.refuses_load, "LoRA rank 32 is greater than 16", "InternalError")
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' is there.", "InvalidUserInput")
        self.adapters[name] = path
        self.loads.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        self.unloads.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        if self.refuses_chat is not None:
            return _error(self.refuses_chat, "the engine is dead", "InternalServerError")
        model = body.get("model", self.base)
        if model != self.base and model not in self.adapters:
            return _error(404, f"The model `{model}` does not exist.", "NotFoundError", "model")
        temperature = body.get("temperature", 1)
        if not isinstance(temperature, int | float) or temperature < 0:
            return _error(400, "temperature must be non-negative", "BadRequestError", "temperature")
        self.has_served = True
        self.bodies.append(body)
        request_id = request.headers.get("x-request-id", f"{len(self.bodies):08d}")
        self.request_ids.append(request_id)
        self.peers.append(request.client.port if request.client else 0)
        reply_id = f"chatcmpl-{request_id}"
        if body.get("stream"):
            stream = self._stream(reply_id, body)
            return StreamingResponse(stream, media_type="text/event-stream")
        return await self._whole(request, reply_id, body)

    async def _whole(self, request: Request, reply_id: str, body: dict[str, Any]) -> Response:
        for _ in range(self.words):
            await asyncio.sleep(self.token_s)
            if await request.is_disconnected():
                self.cancelled += 1
                return Response(status_code=499)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(self._tokens(body))},
                "logprobs": self._logprobs(body) if body.get("logprobs") else None,
                "finish_reason": "stop",
            }
            for index in range(body.get("n") or 1)
        ]
        return JSONResponse(
            {
                "id": reply_id,
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body["model"],
                "choices": choices,
                "usage": self._usage(body),
            }
        )

    async def _stream(self, reply_id: str, body: dict[str, Any]) -> Any:
        def event(**fields: Any) -> str:
            chunk = {
                "id": reply_id,
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": body["model"],
                **fields,
            }
            return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"

        def choice(index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
            return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}

        is_complete = False
        try:
            indices = range(body.get("n") or 1)
            for index in indices:
                yield event(choices=[choice(index, {"role": "assistant", "content": ""})])
            tokens = self._tokens(body)
            for position, token in enumerate(tokens):
                await asyncio.sleep(self.token_s)
                if position == self.breaks_after:
                    is_complete = True
                    raise ConnectionAbortedError("ordered by the test")
                if position == self.errors_after:
                    error = {"message": "out of memory", "type": "InternalServerError", "code": 500}
                    yield f"data: {json.dumps({'error': error})}\n\ndata: [DONE]\n\n"
                    is_complete = True
                    return
                finish = "stop" if position == len(tokens) - 1 else None
                for index in indices:
                    yield event(choices=[choice(index, {"content": token}, finish)])
            if (body.get("stream_options") or {}).get("include_usage"):
                yield event(choices=[], usage=self._usage(body))
            is_complete = True
            yield "data: [DONE]\n\n"
        finally:
            if not is_complete:
                self.cancelled += 1

    def _tokens(self, body: dict[str, Any]) -> list[str]:
        return [body["model"], *(f" {number}" for number in range(1, self.words))]

    def _usage(self, body: dict[str, Any]) -> dict[str, int]:
        completion = self.words * (body.get("n") or 1)
        return {
            "prompt_tokens": 7,
            "completion_tokens": completion,
            "total_tokens": 7 + completion,
        }

    def _logprobs(self, body: dict[str, Any]) -> dict[str, Any]:
        is_base = self.ignores_adapters or body["model"] == self.base
        top = [{"token": "a", "logprob": -0.5 if is_base else -0.7}, {"token": "b", "logprob": -2}]
        return {"content": [{"token": "a", "logprob": top[0]["logprob"], "top_logprobs": top}]}


@dataclass
class Served:
    """An app on a real socket."""

    url: str
    server: uvicorn.Server


@contextmanager
def serve(app: Any, port: int = 0, *, timeout_s: float = 20) -> Iterator[Served]:
    """Run an ASGI app with uvicorn in a thread; stops and joins at the end."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        log_level="critical",
        timeout_graceful_shutdown=1,
        lifespan="on",
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + timeout_s
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the server did not start")
        time.sleep(0.01)
    bound = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(f"http://127.0.0.1:{bound}", server)
    finally:
        server.should_exit = True
        thread.join(timeout_s)


def _error(status: int, message: str, kind: str, param: str | None = None) -> Response:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status)
