"""vLLM's OpenAI and LoRA surface in one Starlette app, with faults to order.

The forms of its answers were read off vLLM 0.32. It has no weights: every model answers its own
name and a number, so a test can see which one spoke. Proves nothing about vLLM itself.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
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
    slots: int | None = None
    """Adapters that fit; a load beyond is refused."""
    refuses_load: int | None = None
    """Status with which loads are refused."""
    refuses_unload: int | None = None
    """Status with which unloads are refused."""
    refuses_chat: int | None = None
    """Status with which chats are refused."""
    failing_model: str | None = None
    """The one model whose chats are refused, with 500."""
    hanging_model: str | None = None
    """The one model that never answers."""
    silent_model: str | None = None
    """The one model that answers nothing but the empty text."""
    breaks_at_head: bool = False
    """Cut the connection of every chat once its head is out, before a byte of its body."""
    breaks_after: int | None = None
    """Tokens after which a stream's connection is cut."""
    errors_after: int | None = None
    """Tokens after which a stream carries an error event."""
    forgets: int = 0
    """Requests of users for an adapter before which it is started anew, and has none."""
    ignores_adapters: bool = False
    """Answer with the base's log-probabilities whatever is asked for."""
    has_embeddings: bool = False
    """Whether the model can embed; vLLM has the route only then."""
    context: int = 10_000_000
    """Characters of the longest request; vLLM counts tokens."""
    can_score: bool = True
    """Whether plain completions come with log-probabilities."""
    ends_by: str = "stop"
    """Why whole chats say that they end."""
    calls_tool: bool = False
    """Answer every chat with a call of the tool ``find``."""
    tells_load: bool = True
    """Whether its metrics tell how many requests it has."""
    users: int = 0
    """Requests of others that its metrics count beside those it has."""
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
    running: int = 0
    """Replies that it is at work on."""
    most_running: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    """Requests that it says it has answered, by the reason of their end."""
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
                Route("/v1/completions", self._chat, methods=["POST"]),
                Route("/v1/responses", self._chat, methods=["POST"]),
                Route("/v1/messages", self._chat, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._count_tokens, methods=["POST"]),
                *(
                    (Route("/v1/embeddings", self._chat, methods=["POST"]),)
                    if self.has_embeddings
                    else ()
                ),
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
        labels = f'engine="0",model_name="{self.base}"'
        load = {"running": self.running + self.users, "waiting": 0} if self.tells_load else {}
        gauges = [f"vllm:num_requests_{name}{{{labels}}} {n:.1f}\n" for name, n in load.items()]
        gauges += [
            f'vllm:request_success_total{{engine="0",finished_reason="{reason}"}} {n:.1f}\n'
            for reason, n in self.finished.items()
        ]
        text = "# HELP vllm:lora_requests_info x\n# TYPE vllm:lora_requests_info gauge\n"
        if self.has_served:
            labels = f'max_lora="{self.max_loras}",running_lora_adapters=""'
            text += f"vllm:lora_requests_info{{{labels}}} 1.0\n"
        return PlainTextResponse(text + "".join(gauges))

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
        if self.slots is not None and len(self.adapters) >= self.slots:
            return _error(400, "No free slots for this LoRA adapter.", "InvalidUserInput")
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' is there.", "InvalidUserInput")
        self.adapters[name] = path
        self.loads.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self.refuses_unload is not None:
            return _error(self.refuses_unload, "the engine is busy", "InternalServerError")
        if name not in self.adapters:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        self.unloads.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        form = FORMS[request.url.path]
        if self.refuses_chat is not None:
            error = _error(self.refuses_chat, "the engine is dead", "InternalServerError")
            error.headers["retry-after"] = "17"
            return error
        if self.forgets and "x-request-id" in request.headers and body["model"] in self.adapters:
            self.forgets -= 1
            self.lose_adapters()
        if (refusal := self._refusal(body)) is not None:
            status, message, kind, param = refusal
            if form is MessagesForm:
                error = {"type": kind, "message": message}
                return JSONResponse({"type": "error", "error": error}, status)
            return _error(status, message, kind, param)
        if body["model"] == self.failing_model:
            return _error(500, "CUDA error: device-side assert", "InternalServerError")
        self.has_served = True
        self.bodies.append(body)
        request_id = request.headers.get("x-request-id", f"{len(self.bodies):08d}")
        self.request_ids.append(request_id)
        self.peers.append(request.client.port if request.client else 0)
        if body["model"] == self.hanging_model:
            return await self._hang(request)
        if self.breaks_at_head:
            kind = "text/event-stream" if body.get("stream") else "application/json"
            return StreamingResponse(_cut_off(), media_type=kind)
        reply = form(self, body, request_id)
        if body.get("stream"):
            return StreamingResponse(self._stream(reply, body), media_type="text/event-stream")
        return await self._whole(request, reply)

    async def _hang(self, request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            continue
        self.cancelled += 1
        return Response(status_code=499)

    def _refusal(self, body: dict[str, Any]) -> tuple[int, str, str, str | None] | None:
        model = body.get("model", self.base)
        if model != self.base and model not in self.adapters:
            message = f"The model `{model}` does not exist. Valid aliases: {self.base}."
            return 404, message, "NotFoundError", "model"
        temperature = body.get("temperature", 1)
        if not isinstance(temperature, int | float) or temperature < 0:
            return 400, "temperature must be non-negative", "BadRequestError", "temperature"
        if len(json.dumps(body)) > self.context:
            message = (
                f"This model's maximum context length is {self.context} tokens. However, your "
                "prompt contains more input tokens. Please reduce the length of the input prompt."
            )
            return 400, message, "BadRequestError", "input_tokens"
        return None

    async def _count_tokens(self, _: Request) -> Response:
        return JSONResponse({"input_tokens": 7})

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            yield
        finally:
            self.running -= 1

    async def _whole(self, request: Request, reply: "Form") -> Response:
        with self._at_work():
            for _ in range(self.words):
                await asyncio.sleep(self.token_s)
                if await request.is_disconnected():
                    self.cancelled += 1
                    return Response(status_code=499)
        return JSONResponse(reply.whole())

    async def _stream(self, reply: "Form", body: dict[str, Any]) -> Any:
        is_complete = False
        self.running += 1
        try:
            for event in reply.head():
                yield event
            for position, token in enumerate(self.tokens(body)):
                await asyncio.sleep(self.token_s)
                if position == self.breaks_after:
                    is_complete = True
                    raise ConnectionAbortedError("ordered by the test")
                if position == self.errors_after:
                    is_complete = True
                    yield reply.failure()
                    return
                yield reply.token(position, token)
            is_complete = True
            for event in reply.tail():
                yield event
        finally:
            self.running -= 1
            if not is_complete:
                self.cancelled += 1

    def form(self, path: str, body: dict[str, Any], request_id: str) -> bytes:
        """The bytes that answer such a request."""
        reply = FORMS[path](self, body, request_id)
        if not body.get("stream"):
            return bytes(JSONResponse(reply.whole()).body)
        events = reply.head()
        events += [reply.token(position, token) for position, token in enumerate(self.tokens(body))]
        return "".join([*events, *reply.tail()]).encode()

    def tokens(self, body: dict[str, Any]) -> list[str]:
        if body["model"] == self.silent_model:
            return [""] * self.words
        return [body["model"], *(f" {number}" for number in range(1, self.words))]

    def usage(self, body: dict[str, Any]) -> dict[str, int]:
        completion = self.words * (body.get("n") or 1)
        return {
            "prompt_tokens": 7,
            "completion_tokens": completion,
            "total_tokens": 7 + completion,
        }

    def next_logprobs(self, body: dict[str, Any]) -> dict[str, Any]:
        """Two tokens and their likelihoods, by id; the base is surer than an adapter."""
        is_base = self.ignores_adapters or body["model"] == self.base
        top = {"token_id:1": -0.5 if is_base else -0.7, "token_id:2": -2.0}
        return {"tokens": ["token_id:1"], "top_logprobs": [top]}

    def sampled(self, position: int) -> dict[str, Any]:
        """What is told of a sampled token when nobody asks for others."""
        token = {"token": f"token_id:{position}", "logprob": -0.25 * (position + 1)}
        return {**token, "top_logprobs": []}

    def logprobs(self, body: dict[str, Any], position: int | None = None) -> dict[str, Any]:
        """Of the token at a position, or of the whole reply."""
        if body.get("top_logprobs") == 0:
            positions = range(self.words) if position is None else [position]
            return {"content": list(map(self.sampled, positions))}
        is_base = self.ignores_adapters or body["model"] == self.base
        a, b = ("token_id:1", "token_id:2") if body.get("return_tokens_as_token_ids") else "ab"
        top = [{"token": a, "logprob": -0.5 if is_base else -0.7}, {"token": b, "logprob": -2}]
        return {"content": [{"token": a, "logprob": top[0]["logprob"], "top_logprobs": top}]}


class Form:
    """One reply in the form of one endpoint; the forms were read off vLLM 0.32's models."""

    def __init__(self, engine: FakeEngine, body: dict[str, Any], request_id: str) -> None:
        self.engine = engine
        self.body = body
        self.request_id = request_id
        self.model = body["model"]
        self.text = "".join(engine.tokens(body))
        self.last = engine.words - 1

    def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def head(self) -> list[str]:
        return []

    def token(self, position: int, token: str) -> str:
        raise NotImplementedError

    def failure(self) -> str:
        error = {"message": "out of memory", "type": "InternalServerError", "code": 500}
        return f"data: {_json({'error': error})}\n\ndata: [DONE]\n\n"

    def tail(self) -> list[str]:
        return []


class ChatForm(Form):
    """``/v1/chat/completions``."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def whole(self) -> dict[str, Any]:
        choices = [self._choice(index) for index in range(self.body.get("n") or 1)]
        fields = {"choices": choices, "usage": self.engine.usage(self.body)}
        if self.body.get("return_token_ids"):
            fields |= self._prompt_ids()
        return {**self._fields(self.kind), **fields}

    def head(self) -> list[str]:
        first = {"role": "assistant", "content": ""}
        more = self._prompt_ids() if self.body.get("return_token_ids") else {}
        return [
            self._event(choices=[self._piece(index, delta=first)], **more)
            for index in range(self.body.get("n") or 1)
        ]

    def token(self, position: int, token: str) -> str:
        finish = "stop" if position == self.last else None
        return "".join(
            self._event(choices=[self._piece(index, finish, **self._said(position, token))])
            for index in range(self.body.get("n") or 1)
        )

    def tail(self) -> list[str]:
        end = ["data: [DONE]\n\n"]
        if (self.body.get("stream_options") or {}).get("include_usage"):
            return [self._event(choices=[], usage=self.engine.usage(self.body)), *end]
        return end

    def _prompt_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": [1, 2, 3, 4, 5, 6, 7]}

    def _choice(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.engine.calls_tool:
            message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
        choice = {
            "index": index,
            "message": message,
            "logprobs": self.engine.logprobs(self.body) if self.body.get("logprobs") else None,
            "finish_reason": "tool_calls" if self.engine.calls_tool else self.engine.ends_by,
        }
        if self.body.get("return_token_ids"):
            choice["token_ids"] = list(range(self.engine.words))
        return choice

    def _said(self, position: int, token: str) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {"content": token}}
        if self.engine.calls_tool:
            call = TOOL_CALL if position == 0 else {"function": {"arguments": ""}}
            said = {"delta": {"tool_calls": [{**call, "index": 0}]}}
        if self.body.get("logprobs"):
            said["logprobs"] = self.engine.logprobs(self.body, position)
        if self.body.get("return_token_ids"):
            said["token_ids"] = [position]
        return said

    def _piece(self, index: int, finish: str | None = None, **said: Any) -> dict[str, Any]:
        return {"index": index, "logprobs": None, "finish_reason": finish, **said}

    def _event(self, **fields: Any) -> str:
        return f"data: {_json({**self._fields(self.chunk_kind), **fields})}\n\n"

    def _fields(self, kind: str) -> dict[str, Any]:
        reply_id = f"{self.prefix}-{self.request_id}"
        return {"id": reply_id, "object": kind, "created": int(time.time()), "model": self.model}


class TextForm(ChatForm):
    """``/v1/completions``."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def head(self) -> list[str]:
        return []

    def _prompt_ids(self) -> dict[str, Any]:
        return {}

    def _choice(self, index: int) -> dict[str, Any]:
        choice = self._piece(index, "stop", text=self.text)
        if self.body.get("logprobs") and self.engine.can_score:
            choice["logprobs"] = self.engine.next_logprobs(self.body)
        if self.body.get("return_token_ids"):
            choice["token_ids"] = list(range(self.engine.words))
            choice |= super()._prompt_ids()
        return choice

    def _said(self, position: int, token: str) -> dict[str, Any]:
        said: dict[str, Any] = {"text": token}
        if self.body.get("return_token_ids"):
            said["token_ids"] = [position]
            said |= super()._prompt_ids() if position == 0 else {}
        return said


class ResponsesForm(Form):
    """``/v1/responses``."""

    def __init__(self, engine: FakeEngine, body: dict[str, Any], request_id: str) -> None:
        super().__init__(engine, body, body.get("request_id", f"resp_{request_id}"))
        self._number = 0

    def whole(self) -> dict[str, Any]:
        return self._response("completed", [self._item("completed", [self._part(self.text)])])

    def head(self) -> list[str]:
        started = self._response("in_progress", [])
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        return [
            self._event("response.created", response=started),
            self._event("response.in_progress", response=started),
            self._event(
                "response.output_item.added", output_index=0, item=self._item("in_progress", [])
            ),
            self._event("response.content_part.added", part=self._part(""), **place),
        ]

    def token(self, position: int, token: str) -> str:
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
        return self._event("response.output_text.delta", delta=token, **place)

    def failure(self) -> str:
        return self._event("error", message="out of memory", code="server_error", param=None)

    def tail(self) -> list[str]:
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
        item = self._item("completed", [self._part(self.text)])
        return [
            self._event("response.output_text.done", text=self.text, **place),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event("response.completed", response=self.whole()),
        ]

    def _event(self, kind: str, **fields: Any) -> str:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {_json(event)}\n\n"

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": None}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        item = {"id": "msg_1", "type": "message", "role": "assistant"}
        return {**item, "status": status, "content": content}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.engine.words,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 7 + self.engine.words,
        }
        return {
            "id": self.request_id,
            "object": "response",
            "created_at": int(time.time()),
            "model": self.model,
            "status": status,
            "output": output,
            "usage": usage if status == "completed" else None,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "temperature": 1.0,
            "top_p": 1.0,
            "metadata": self.body.get("metadata"),
        }


class MessagesForm(Form):
    """``/v1/messages``."""

    def whole(self) -> dict[str, Any]:
        content = [{"type": "text", "text": self.text}]
        usage = {"input_tokens": 7, "output_tokens": self.engine.words}
        return {**self._message(content, "end_turn"), "usage": usage}

    def head(self) -> list[str]:
        message = {**self._message([], None), "usage": {"input_tokens": 7, "output_tokens": 0}}
        block = {"type": "text", "text": ""}
        return [
            self._event("message_start", message=message),
            self._event("content_block_start", index=0, content_block=block),
        ]

    def token(self, position: int, token: str) -> str:
        delta = {"type": "text_delta", "text": token}
        return self._event("content_block_delta", index=0, delta=delta)

    def failure(self) -> str:
        error = {"type": "internal_error", "message": "out of memory"}
        return self._event("error", error=error)

    def tail(self) -> list[str]:
        usage = {"input_tokens": 7, "output_tokens": self.engine.words}
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        return [
            self._event("content_block_stop", index=0),
            self._event("message_delta", delta=delta, usage=usage),
            self._event("message_stop"),
        ]

    def _message(self, content: list[dict[str, Any]], stop: str | None) -> dict[str, Any]:
        head = {"id": f"chatcmpl-{self.request_id}", "type": "message", "role": "assistant"}
        end = {"model": self.model, "stop_reason": stop, "stop_sequence": None}
        return {**head, **end, "content": content}

    def _event(self, kind: str, **fields: Any) -> str:
        return f"event: {kind}\ndata: {_json({'type': kind, **fields})}\n\n"


class EmbeddingsForm(Form):
    """``/v1/embeddings``."""

    def whole(self) -> dict[str, Any]:
        return {
            "id": f"embd-{self.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": self.model,
            "data": [{"index": 0, "object": "embedding", "embedding": [0.5, -0.5]}],
            "usage": {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0},
        }


FORMS: dict[str, type[Form]] = {
    "/v1/chat/completions": ChatForm,
    "/v1/completions": TextForm,
    "/v1/responses": ResponsesForm,
    "/v1/messages": MessagesForm,
    "/v1/embeddings": EmbeddingsForm,
}

TOOL_CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "find", "arguments": '{"who": "Odile"}'},
}


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


async def _cut_off() -> AsyncIterator[bytes]:
    """A body whose connection is cut before its first byte."""
    raise ConnectionAbortedError("ordered by the test")
    yield b""


def _error(status: int, message: str, kind: str, param: str | None = None) -> Response:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
