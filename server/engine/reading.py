"""What the engine's replies say: text, tool calls, tokens and counts, one reader per kind of reply.

Pure and tolerant: a reader takes events one by one, or one whole body, and passes over what it does
not understand. The forms are those of vLLM 0.32.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from server.core.json_codec import decode_object
from server.engine.sse import DONE, event_payloads

MAX_CHOICES = 10_000
"""Indices beyond this are no choice's."""

_TOO_LONG = ("maximum context length", "maximum model length")
"""Parts of vLLM's words for a prompt that does not fit."""

Payload = Mapping[str, Any]


@dataclass(slots=True)
class Choice:
    """One of the replies to a request."""

    index: int
    parts: list[str] = field(default_factory=list)
    reasoning_parts: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """As OpenAI gives them: ``id``, ``type``, ``function`` with ``name`` and ``arguments``."""
    finish_reason: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    """The engine's lists by name, joined over the pieces of a stream."""

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def summary(self) -> dict[str, Any]:
        """Index, text, tool calls and finish reason; reasoning where there was any."""
        summary: dict[str, Any] = {
            "index": self.index,
            "text": self.text,
            "tool_calls": self.tool_calls,
            "finish_reason": self.finish_reason,
        }
        if self.reasoning_parts:
            summary["reasoning"] = "".join(self.reasoning_parts)
        return summary


@dataclass(slots=True)
class Assembled:
    """What has been read of one reply."""

    completion_id: str | None = None
    by_index: dict[int, Choice] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_token_ids: list[int] = field(default_factory=list)
    error: str | None = None

    @property
    def first(self) -> Choice:
        return self.by_index.get(0) or Choice(0)

    @property
    def text(self) -> str:
        return self.first.text

    @property
    def finish_reason(self) -> str | None:
        return self.first.finish_reason

    @property
    def reply(self) -> str:
        """What the first choice said: its text, or as JSON its text and the calls it asks for."""
        first = self.first
        if not first.tool_calls:
            return first.text
        message = {"content": first.text or None, "tool_calls": first.tool_calls}
        return json.dumps(message, ensure_ascii=False)

    @property
    def choices(self) -> list[dict[str, Any]] | None:
        """Every choice, where there are several or one says more than ``reply`` holds."""
        if len(self.by_index) < 2 and not self.first.reasoning_parts:
            return None
        return [self.by_index[index].summary() for index in sorted(self.by_index)]

    @property
    def tokens(self) -> dict[str, Any] | None:
        """Token ids and log-probabilities of a reply with one choice, where the engine gave them."""
        if len(self.by_index) != 1:
            return None
        found = {
            "prompt_token_ids": self.prompt_token_ids,
            "token_ids": self.first.token_ids,
            "logprobs": self.first.logprobs,
        }
        return {name: value for name, value in found.items() if value} or None


class Reader:
    """Reads events, or one whole JSON body, into an :class:`Assembled`."""

    end_marks: ClassVar[tuple[bytes, ...]] = ()
    """A block of events with none of these bytes holds no end; with one, it may."""

    def __init__(self) -> None:
        self._state = Assembled()

    @classmethod
    def is_end(cls, data: bytes) -> bool:
        """Whether the event with this data is the last of a stream."""
        return False

    def feed_events(self, block: bytes) -> None:
        """Take in whole events of a stream."""
        for payload in event_payloads(block):
            self._take_event(payload)

    def feed_body(self, body: bytes) -> None:
        """Take in the body of a reply that was not streamed."""
        payload = decode_object(body)
        if payload is not None:
            self._take_body(payload)

    def result(self) -> Assembled:
        """What has been read so far."""
        return self._state

    def _take_event(self, payload: Payload) -> None:
        raise NotImplementedError

    def _take_body(self, payload: Payload) -> None:
        raise NotImplementedError

    def _take_head(self, payload: Payload) -> None:
        if isinstance(payload.get("id"), str):
            self._state.completion_id = payload["id"]
        if payload.get("error") is not None:
            self._state.error = error_message(payload)

    def _take_usage(self, usage: Any, prompt: str, completion: str) -> None:
        if isinstance(usage, dict):
            state = self._state
            state.prompt_tokens = _count(usage.get(prompt), state.prompt_tokens)
            state.completion_tokens = _count(usage.get(completion), state.completion_tokens)

    def _choice(self, index: Any) -> Choice | None:
        if type(index) is not int or not 0 <= index < MAX_CHOICES:
            return None
        by_index = self._state.by_index
        if index not in by_index:
            by_index[index] = Choice(index)
        return by_index[index]


class ChatReader(Reader):
    """``/v1/chat/completions``; a stream ends with ``data: [DONE]``."""

    end_marks = (DONE,)

    @classmethod
    def is_end(cls, data: bytes) -> bool:
        return data.strip() == DONE

    def _take_event(self, payload: Payload) -> None:
        self._take(payload, "delta")

    def _take_body(self, payload: Payload) -> None:
        self._take(payload, "message")

    def _take(self, payload: Payload, part: str) -> None:
        self._take_head(payload)
        self._take_usage(payload.get("usage"), "prompt_tokens", "completion_tokens")
        self._state.prompt_token_ids += _list(payload.get("prompt_token_ids"))
        for piece in _objects(payload.get("choices")):
            if (choice := self._choice(piece.get("index", 0))) is not None:
                self._take_choice(choice, piece, part)

    def _take_choice(self, choice: Choice, piece: Payload, part: str) -> None:
        _take_ending(choice, piece)
        message = piece.get(part)
        if not isinstance(message, dict):
            return
        if isinstance(content := message.get("content"), str):
            choice.parts.append(content)
        # vLLM says `reasoning`; others, and vLLM before 0.16, `reasoning_content`.
        reasoning = message.get("reasoning") or message.get("reasoning_content")
        if isinstance(reasoning, str):
            choice.reasoning_parts.append(reasoning)
        for position, call in enumerate(_objects(message.get("tool_calls"))):
            _take_call(choice.tool_calls, call.get("index", position), call)


class TextReader(ChatReader):
    """``/v1/completions``; a stream ends as a chat's does."""

    def _take_choice(self, choice: Choice, piece: Payload, part: str) -> None:
        _take_ending(choice, piece)
        self._state.prompt_token_ids += _list(piece.get("prompt_token_ids"))
        if isinstance(text := piece.get("text"), str):
            choice.parts.append(text)


class ResponsesReader(Reader):
    """``/v1/responses``; the event that ends a stream carries the whole response once more."""

    _ENDS: ClassVar = ("response.completed", "response.incomplete", "response.failed", "error")
    end_marks = (b"response.completed", b"response.incomplete", b"response.failed", b'"error"')

    @classmethod
    def is_end(cls, data: bytes) -> bool:
        payload = decode_object(data)
        return payload is not None and (payload.get("type") in cls._ENDS or _is_bare_error(payload))

    def _take_event(self, payload: Payload) -> None:
        kind = payload.get("type")
        if isinstance(response := payload.get("response"), dict):
            self._take_body(response)
        elif kind == "error" or _is_bare_error(payload):
            self._state.error = error_message(payload)
        elif isinstance(delta := payload.get("delta"), str) and (choice := self._choice(0)):
            if kind == "response.output_text.delta":
                choice.parts.append(delta)
                _merge_logprobs(choice, {"content": payload.get("logprobs")})
            elif kind == "response.reasoning_text.delta":
                choice.reasoning_parts.append(delta)
            elif kind == "response.function_call_arguments.delta" and choice.tool_calls:
                choice.tool_calls[-1]["function"]["arguments"] += delta
        elif kind == "response.output_item.added" and (choice := self._choice(0)):
            for item in _objects([payload.get("item")]):
                if item.get("type") == "function_call":
                    choice.tool_calls.append(_function_call(item))

    def _take_body(self, payload: Payload) -> None:
        self._take_head(payload)
        self._take_usage(payload.get("usage"), "input_tokens", "output_tokens")
        if payload.get("status") in ("queued", "in_progress"):
            return
        self._state.by_index.clear()  # what came in pieces comes here whole
        if (choice := self._choice(0)) is None:
            return
        details = payload.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        choice.finish_reason = _string(reason) or _string(payload.get("status"))
        for item in _objects(payload.get("output")):
            self._take_item(choice, item)

    def _take_item(self, choice: Choice, item: Payload) -> None:
        if item.get("type") == "function_call":
            choice.tool_calls.append(_function_call(item))
            return
        parts = choice.reasoning_parts if item.get("type") == "reasoning" else choice.parts
        for content in _objects(item.get("content")):
            if isinstance(text := content.get("text"), str):
                parts.append(text)
            _merge_logprobs(choice, {"content": content.get("logprobs")})


class MessagesReader(Reader):
    """``/v1/messages``; a stream ends with ``message_stop``, a failed one with ``error``."""

    _ENDS: ClassVar = ("message_stop", "error")
    end_marks = (b"message_stop", b'"error"')

    @classmethod
    def is_end(cls, data: bytes) -> bool:
        payload = decode_object(data)
        return payload is not None and payload.get("type") in cls._ENDS

    def _take_event(self, payload: Payload) -> None:
        choice = self._choice(0)
        if choice is None:
            return
        if payload.get("error") is not None:
            self._state.error = error_message(payload)
        if isinstance(message := payload.get("message"), dict):
            self._take_body(message)
        self._take_counts(payload.get("usage"))
        for block in _objects([payload.get("content_block")]):
            self._take_block(choice, block)
        for delta in _objects([payload.get("delta")]):
            self._take_delta(choice, delta)

    def _take_body(self, payload: Payload) -> None:
        self._take_head(payload)
        self._take_counts(payload.get("usage"))
        if (choice := self._choice(0)) is not None:
            choice.finish_reason = _string(payload.get("stop_reason"))
            for block in _objects(payload.get("content")):
                self._take_block(choice, block)

    def _take_counts(self, usage: Any) -> None:
        """Anthropic counts what came from a cache apart."""
        self._take_usage(usage, "input_tokens", "output_tokens")
        if isinstance(usage, dict) and _count(usage.get("input_tokens"), None) is not None:
            cached = ("cache_read_input_tokens", "cache_creation_input_tokens")
            counts = [usage["input_tokens"], *(_count(usage.get(name), 0) or 0 for name in cached)]
            self._state.prompt_tokens = sum(counts)

    def _take_block(self, choice: Choice, block: Payload) -> None:
        if block.get("type") == "tool_use":
            arguments = block.get("input")
            choice.tool_calls.append(
                _call(
                    block.get("id"), block.get("name"), json.dumps(arguments) if arguments else ""
                )
            )
            return
        self._take_delta(choice, block)

    def _take_delta(self, choice: Choice, delta: Payload) -> None:
        if isinstance(text := delta.get("text"), str):
            choice.parts.append(text)
        if isinstance(thinking := delta.get("thinking"), str):
            choice.reasoning_parts += [thinking] if thinking else []
        if isinstance(piece := delta.get("partial_json"), str) and choice.tool_calls:
            choice.tool_calls[-1]["function"]["arguments"] += piece
        choice.finish_reason = _string(delta.get("stop_reason")) or choice.finish_reason


class CountReader(Reader):
    """Answers without text, such as embeddings: their id and what they cost."""

    def _take_event(self, payload: Payload) -> None:
        self._take_body(payload)

    def _take_body(self, payload: Payload) -> None:
        self._take_head(payload)
        self._take_usage(payload.get("usage"), "prompt_tokens", "completion_tokens")


def error_message(payload: Payload) -> str:
    """The message of vLLM's error object, in its present or its older, flat form."""
    error = payload.get("error", payload)
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        message: str = error["message"]
        return message
    return str(error)[:500]


def says_no_such_model(status: int, message: str) -> bool:
    """Whether an error of vLLM says that it does not know the weights it was asked for."""
    return status == 404 and message.startswith("The model ") and "does not exist" in message


def says_too_long(message: str) -> bool:
    """Whether an error of vLLM says that a prompt, with its reply, does not fit the context."""
    return any(words in message for words in _TOO_LONG)


def is_usage_only(data: bytes) -> bool:
    """Whether the event with this data carries the token counts of a stream and nothing else."""
    payload = decode_object(data)
    return (
        payload is not None
        and payload.get("choices") == []
        and isinstance(payload.get("usage"), dict)
    )


def _take_ending(choice: Choice, piece: Payload) -> None:
    choice.finish_reason = _string(piece.get("finish_reason")) or choice.finish_reason
    if token_ids := piece.get("token_ids"):
        choice.token_ids += _list(token_ids)
    if logprobs := piece.get("logprobs"):
        _merge_logprobs(choice, logprobs)


def _merge_logprobs(choice: Choice, logprobs: Any) -> None:
    for name, values in logprobs.items() if isinstance(logprobs, dict) else ():
        if isinstance(values, list) and values:
            choice.logprobs.setdefault(name, []).extend(values)


def _take_call(calls: list[dict[str, Any]], index: Any, piece: Payload) -> None:
    """A tool call, or a piece of one: a stream sends its name first, then its arguments."""
    if not (isinstance(index, int) and 0 <= index <= len(calls)):
        return
    if index == len(calls):
        calls.append(_call(None, "", ""))
    calls[index]["id"] = piece.get("id") or calls[index]["id"]
    function = piece.get("function")
    for name in ("name", "arguments"):
        if isinstance(function, dict) and isinstance(function.get(name), str):
            calls[index]["function"][name] += function[name]


def _function_call(item: Payload) -> dict[str, Any]:
    return _call(item.get("call_id"), item.get("name"), item.get("arguments"))


def _call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    function = {"name": _string(name) or "", "arguments": _string(arguments) or ""}
    return {"id": _string(call_id), "type": "function", "function": function}


def _is_bare_error(payload: Payload) -> bool:
    """vLLM's own failure in the middle of a stream has no type."""
    return "type" not in payload and payload.get("error") is not None


def _objects(values: Any) -> Iterator[dict[str, Any]]:
    return (value for value in (values if isinstance(values, list) else []) if type(value) is dict)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
