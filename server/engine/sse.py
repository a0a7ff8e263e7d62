"""Server-sent events as vLLM sends them: cut a byte stream into whole events.

Pure and tolerant: whatever arrives leaves unchanged, and what is not understood is passed over.
Not covered: the event-stream fields `id` and `retry`, which the engine does not use.
"""

import re
from typing import Any

from server.core.json_codec import decode, decode_object

DONE = b"[DONE]"

_DONE_EVENT = b"data: " + DONE + b"\n\n"

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

    @property
    def held(self) -> int:
        """Bytes of an event that is not complete yet."""
        return len(self._buffer)

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

    def feed_whole(self, chunk: bytes) -> bytes:
        """As :meth:`feed`, in one piece; an unfinished event is kept back, all else goes at once."""
        if not self._buffer and chunk.endswith(b"\n\n"):  # nearly always
            return chunk
        return b"".join(self.feed(chunk))

    def rest(self) -> bytes:
        """What is left when the stream has ended: an unfinished event, usually nothing."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return rest


def split_events(block: bytes) -> list[bytes]:
    """The events of a block, each with its end; the last may lack it."""
    if b"\r" not in block:  # nearly always; what follows says the same, byte by byte
        *events, rest = block.split(b"\n\n")
        whole = [event + b"\n\n" for event in events]
        return [*whole, rest] if rest else whole
    splitter = EventSplitter()
    events = splitter.feed(block)
    return [*events, rest] if (rest := splitter.rest()) else events


def event_payloads(block: bytes) -> list[dict[str, Any]]:
    """The JSON objects that the events of a block carry; what carries none is passed over."""
    if block.startswith(b"data: {") and (plain := _as_list(block)) is not None:
        return plain
    payloads = (decode_object(event_data(event)) for event in split_events(block))
    return [payload for payload in payloads if payload is not None]


def _as_list(block: bytes) -> list[dict[str, Any]] | None:
    """The same in one go, for a block of nothing but ``data: {...}`` events and a ``[DONE]``.

    JSON holds no bare line break, so the borders of the events can become those of a list. None
    for any other block: then the result is no list of objects, or no JSON.
    """
    events = block.removesuffix(_DONE_EVENT)
    if len(events) < len(block) and not events.endswith(b"\n\n"):  # a second line of one event
        return None
    inner = events.removeprefix(b"data: ").rstrip(b"\n")
    try:
        found = decode(b"[" + inner.replace(b"\n\ndata: ", b",") + b"]")
    except (ValueError, RecursionError):
        return None
    return found if all(type(payload) is dict for payload in found) else None


def event_data(event: bytes) -> bytes:
    """The joined `data:` lines of one event; empty for a comment."""
    line = event.strip(b"\r\n")
    if line.startswith(b"data:") and b"\n" not in line and b"\r" not in line:  # nearly always
        return line[5:].removeprefix(b" ")
    lines = _LINE_BREAK.split(event)
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
