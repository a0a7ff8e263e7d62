"""Server-sent events as vLLM sends them: cut a byte stream into whole events, and read them.

Pure and tolerant: whatever arrives leaves unchanged, and what is not understood is passed over.
Not covered: the event-stream fields `id` and `retry`, which chat completions do not use.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

DONE = b"[DONE]"

# Two line breaks; the groups are atomic so that "\r\n" never counts as two.
_END_OF_EVENT = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_BREAK = re.compile(rb"\r\n|\n|\r")


class EventSplitter:
    """Cuts chunks of any size into whole events, byte for byte.

    Joined, what `feed` and `rest` return is what went in.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # no event ends before this offset

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are complete now, each with the blank line that ends it."""
        self._buffer += chunk
        events: list[bytes] = []
        start = 0
        while match := _END_OF_EVENT.search(self._buffer, max(start, self._searched)):
            # A "\r" at the very end may be half of a "\r\n": wait for what follows.
            if match.end() == len(self._buffer) and match[0].endswith(b"\r"):
                break
            events.append(bytes(self._buffer[start : match.end()]))
            start = match.end()
        del self._buffer[:start]
        self._searched = max(0, len(self._buffer) - 3)  # an end may be cut across chunks
        return events

    def rest(self) -> bytes:
        """What is left when the stream has ended: an unfinished event, usually nothing."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return rest


def event_data(event: bytes) -> bytes:
    """The joined `data:` lines of one event; empty for a comment."""
    lines = _LINE_BREAK.split(event)
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


@dataclass(slots=True)
class Assembled:
    """What has been read of one completion; of several choices, the first one's text."""

    completion_id: str | None = None
    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """As OpenAI gives them: ``id``, ``type``, ``function`` with ``name`` and ``arguments``."""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None

    @property
    def reply(self) -> str:
        """What the model said: its text, or as JSON its text and the calls it asks for."""
        if not self.tool_calls:
            return self.text
        message = {"content": self.text or None, "tool_calls": self.tool_calls}
        return json.dumps(message, ensure_ascii=False)


@dataclass(slots=True)
class CompletionAssembler:
    """Reads events, or one whole JSON body, into an :class:`Assembled`."""

    _parts: list[str] = field(default_factory=list)
    _state: Assembled = field(default_factory=Assembled)
    is_done: bool = False
    """Whether `[DONE]` has been seen."""

    def feed_event(self, event: bytes) -> bool:
        """Take in one event of a stream. True when it carries the usage and nothing else."""
        data = event_data(event)
        if data.strip() == DONE:
            self.is_done = True
            return False
        payload = _json_object(data)
        if payload is None:
            return False
        self._take(payload, "delta")
        return payload.get("choices") == [] and isinstance(payload.get("usage"), dict)

    def feed_body(self, body: bytes) -> None:
        """Take in the body of a reply that was not streamed."""
        payload = _json_object(body)
        if payload is not None:
            self._take(payload, "message")

    def result(self) -> Assembled:
        self._state.text = "".join(self._parts)
        return self._state

    def _take(self, payload: dict[str, Any], part: str) -> None:
        state = self._state
        if isinstance(payload.get("id"), str):
            state.completion_id = payload["id"]
        if isinstance(usage := payload.get("usage"), dict):
            state.prompt_tokens = _count(usage.get("prompt_tokens"), state.prompt_tokens)
            state.completion_tokens = _count(
                usage.get("completion_tokens"), state.completion_tokens
            )
        if payload.get("error") is not None:
            state.error = error_message(payload)
        choices = payload.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                self._take_choice(choice, part)

    def _take_choice(self, choice: dict[str, Any], part: str) -> None:
        if isinstance(choice.get("finish_reason"), str):
            self._state.finish_reason = choice["finish_reason"]
        message = choice.get(part)
        if not isinstance(message, dict):
            return
        if isinstance(message.get("content"), str):
            self._parts.append(message["content"])
        calls = message.get("tool_calls")
        for position, piece in enumerate(calls if isinstance(calls, list) else []):
            if isinstance(piece, dict):
                self._take_call(piece.get("index", position), piece)

    def _take_call(self, index: Any, piece: dict[str, Any]) -> None:
        """A tool call, or a piece of one: a stream sends its name first, then its arguments."""
        calls = self._state.tool_calls
        if not (isinstance(index, int) and 0 <= index <= len(calls)):
            return
        if index == len(calls):
            calls.append(
                {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
            )
        calls[index]["id"] = piece.get("id") or calls[index]["id"]
        function = piece.get("function")
        for name in ("name", "arguments"):
            if isinstance(function, dict) and isinstance(function.get(name), str):
                calls[index]["function"][name] += function[name]


def error_message(payload: dict[str, Any]) -> str:
    """The message of vLLM's error object, in its present or its older, flat form."""
    error = payload.get("error", payload)
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        message: str = error["message"]
        return message
    return str(error)[:500]


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        payload = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def _count(value: Any, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
