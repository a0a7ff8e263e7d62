"""A stream through the proxy, however the network cuts it."""

import asyncio
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import proxy
from server.engine.proxy import Door, EngineReply
from server.engine.reading import Assembled
from server.engine.wire import Reply
from tests.support.fake_engine import FakeEngine

DOORS = (proxy.CHAT, proxy.COMPLETIONS, proxy.RESPONSES, proxy.MESSAGES)
NASTY = 'line\n\ndata: [DONE]\n\n"usage" response.completed message_stop "error" \u2028é'


class Answer:
    """What the wire gives a body by."""

    status = 200
    headers: ClassVar = {"content-type": "text/event-stream"}

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = [chunk for chunk in chunks if chunk]

    async def read_some(self) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""

    async def read(self) -> bytes:
        return b"".join(self._chunks)


def stream_of(door: Door, *, counts: bool = True, n: int = 1) -> bytes:
    body: dict[str, Any] = {"model": NASTY, "stream": True, "n": n, "return_token_ids": True}
    if counts:
        body["stream_options"] = {"include_usage": True}
    formed = FakeEngine().form(door.path, body, "int_1")
    return re.sub(rb'("created(?:_at)?": ?)\d+', rb"\g<1>1", formed)  # no second turns between two


def pass_through(
    door: Door, chunks: Sequence[bytes], *, withholds_usage: bool = False
) -> tuple[list[bytes], Assembled, bool]:
    """The blocks that come out, what was read, and whether the end was seen."""

    async def relay() -> tuple[list[bytes], Assembled, bool]:
        answer = cast(Reply, Answer(chunks))
        reply = EngineReply(answer, door.reader(), withholds_usage=withholds_usage)
        blocks = [block async for block in reply.blocks()]
        return blocks, reply.assembled(), reply.is_done

    return asyncio.run(relay())


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(st.sampled_from(DOORS), st.lists(st.integers(0, 10_000), max_size=30), st.integers(1, 2))
def test_any_cuts_give_the_same_bytes_and_the_same_reading(
    door: Door, places: list[int], n: int
) -> None:
    stream = stream_of(door, n=n)

    blocks, read, is_done = pass_through(door, cut(stream, places))

    assert b"".join(blocks) == stream
    assert (is_done, read) == (True, pass_through(door, [stream])[1])
    assert read.text == NASTY + " 1 2 3 4 5"
    assert read.prompt_tokens == 7


@given(st.sampled_from(DOORS[:2]), st.lists(st.integers(0, 10_000), max_size=30))
def test_any_cuts_withhold_the_counts_that_nobody_asked_for(door: Door, places: list[int]) -> None:
    blocks, read, is_done = pass_through(door, cut(stream_of(door), places), withholds_usage=True)

    assert b"".join(blocks) == stream_of(door, counts=False)
    assert (is_done, read.prompt_tokens, read.completion_tokens) == (True, 7, 6)


@given(st.sampled_from(DOORS), st.data())
def test_a_broken_stream_is_read_up_to_its_break(door: Door, data: st.DataObject) -> None:
    stream = stream_of(door)
    stream = stream[: data.draw(st.integers(0, len(stream) - 3))]
    places = data.draw(st.lists(st.integers(0, 10_000), max_size=10))

    blocks, read, is_done = pass_through(door, cut(stream, places))

    assert b"".join(blocks) == stream
    assert is_done is False
    assert read == pass_through(door, [stream])[1]


def test_every_event_goes_on_as_it_comes() -> None:
    events = [event + b"\n\n" for event in stream_of(proxy.CHAT).split(b"\n\n")[:-1]]

    blocks, _, _ = pass_through(proxy.CHAT, events)

    assert blocks == events


def test_nothing_passes_after_the_end() -> None:
    stream = stream_of(proxy.CHAT)

    together, _, _ = pass_through(proxy.CHAT, [stream + b": more\n\n"])
    apart, _, _ = pass_through(proxy.CHAT, [stream, b": more\n\n"])

    assert b"".join(together) == b"".join(apart) == stream


def test_what_is_too_long_to_be_kept_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pass_through(proxy.CHAT, [stream_of(proxy.CHAT)])[1]
    monkeypatch.setattr(proxy, "MAX_UNREAD_BYTES", 10)

    assert pass_through(proxy.CHAT, cut(stream_of(proxy.CHAT), range(0, 2000, 7)))[1] == whole


def test_an_event_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MAX_EVENT_BYTES", 10)

    with pytest.raises(proxy.EngineError, match="more than 10 bytes"):
        pass_through(proxy.CHAT, [b"data: " + b"x" * 20, b"y", b"z"])
