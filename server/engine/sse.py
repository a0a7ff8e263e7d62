"""Server-sent events as vLLM sends them: cut a byte stream into whole events.

Pure and tolerant: whatever arrives leaves unchanged, and what is not understood is passed over.
Not covered: the event-stream fields `id` and `retry`, which the engine does not use.
"""

import re

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
    splitter = EventSplitter()
    events = splitter.feed(block)
    return [*events, rest] if (rest := splitter.rest()) else events


def event_data(event: bytes) -> bytes:
    """The joined `data:` lines of one event; empty for a comment."""
    line = event.strip(b"\r\n")
    if line.startswith(b"data:") and b"\n" not in line and b"\r" not in line:  # nearly always
        return line[5:].removeprefix(b" ")
    lines = _LINE_BREAK.split(event)
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
