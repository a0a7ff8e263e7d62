"""The event splitter and the reader, under any chunking and any garbage."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from server.core.json_codec import decode_object
from server.engine.reading import ChatReader, MessagesReader, Reader, ResponsesReader, TextReader
from server.engine.sse import EventSplitter, event_data, event_payloads, split_events

PIECES = st.lists(
    st.sampled_from([b"\n", b"\r", b"\r\n", b"data: x", b"data:", b": ping", b"{}", b"\x00", b"e"]),
    max_size=40,
).map(b"".join)


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(stream[:size])
        stream = stream[size:]
    return [*chunks, stream]


def events_of(chunks: list[bytes]) -> list[bytes]:
    splitter = EventSplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return [*events, splitter.rest()]


@given(PIECES, st.lists(st.integers(0, 5), max_size=60))
def test_what_comes_out_is_what_went_in_however_it_is_cut(stream: bytes, sizes: list[int]) -> None:
    assert b"".join(events_of(cut(stream, sizes))) == stream


@given(PIECES, st.lists(st.integers(0, 5), max_size=60))
def test_the_cuts_do_not_change_the_events(stream: bytes, sizes: list[int]) -> None:
    whole = events_of([stream + b"\n\ndata: end\n\n"])

    assert events_of(cut(stream + b"\n\ndata: end\n\n", sizes)) == whole


def test_events_end_with_a_blank_line_of_any_kind() -> None:
    splitter = EventSplitter()

    events = splitter.feed(b"data: 1\n\ndata: 2\r\n\r\ndata: 3\r\rdata: 4\n\r\ndata: 5\r\n")

    assert events == [b"data: 1\n\n", b"data: 2\r\n\r\n", b"data: 3\r\r", b"data: 4\n\r\n"]
    assert splitter.feed(b"\r") == []
    assert splitter.feed(b"\n") == [b"data: 5\r\n\r\n"]
    assert splitter.rest() == b""


def test_data_lines_are_joined_and_comments_dropped() -> None:
    assert event_data(b": ping\ndata: a\ndata:b\r\nevent: x\n\n") == b"a\nb"


def chunk(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def test_a_stream_is_assembled_choice_by_choice() -> None:
    reader = ChatReader()
    last = {"index": 0, "delta": {"content": "lo"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    for event in (
        chunk(id="c1", choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]),
        chunk(id="c1", choices=[{"index": 1, "delta": {"content": "other"}}]),
        chunk(id="c1", choices=[{"index": 0, "delta": {"content": "Hel"}}]),
        chunk(id="c1", choices=[last]),
        chunk(id="c1", choices=[], usage=usage),
        b"data: [DONE]\n\n",
    ):
        reader.feed_events(event)

    read = reader.result()
    assert (read.completion_id, read.text, read.finish_reason) == ("c1", "Hello", "stop")
    assert (read.prompt_tokens, read.completion_tokens) == (3, 2)
    assert read.choices == [
        {"index": 0, "text": "Hello", "tool_calls": [], "finish_reason": "stop"},
        {"index": 1, "text": "other", "tool_calls": [], "finish_reason": None},
    ]


def test_tokens_and_reasoning_of_one_choice_are_kept() -> None:
    reader = ChatReader()
    for ids, word in ([5], "a"), ([6, 7], "b"):
        logprobs = {"content": [{"token": word, "logprob": -0.5}]}
        delta = {"content": word, "reasoning": word.upper()}
        piece = {"index": 0, "delta": delta, "token_ids": ids, "logprobs": logprobs}
        reader.feed_events(chunk(choices=[piece], prompt_token_ids=[1, 2] if word == "a" else None))

    read = reader.result()
    assert read.tokens == {
        "prompt_token_ids": [1, 2],
        "token_ids": [5, 6, 7],
        "logprobs": {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.5}]},
    }
    assert read.choices is not None
    assert (read.choices[0]["text"], read.choices[0]["reasoning"]) == ("ab", "AB")


CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"who": 1}'}}


def test_tool_calls_are_the_reply_of_a_body() -> None:
    reader = ChatReader()
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    reader.feed_body(json.dumps({"choices": [{"index": 0, "message": message}]}).encode())

    assert json.loads(reader.result().reply) == {"content": None, "tool_calls": [CALL]}


def test_tool_calls_of_a_stream_are_put_together() -> None:
    pieces = [
        {"content": "Let me look."},
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "find", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"who":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "c2", "function": {"name": "stop"}},
                "odd",
                {"index": 9},
            ]
        },
    ]
    reader = ChatReader()
    for piece in pieces:
        event = {"choices": [{"index": 0, "delta": piece}]}
        reader.feed_events(b"data: " + json.dumps(event).encode() + b"\n\n")

    reply = json.loads(reader.result().reply)
    second = {"id": "c2", "type": "function", "function": {"name": "stop", "arguments": ""}}
    assert reply == {"content": "Let me look.", "tool_calls": [CALL, second]}


def test_an_error_event_is_read_in_both_of_vllms_forms() -> None:
    nested, flat = ChatReader(), ChatReader()

    nested.feed_events(chunk(error={"message": "out of memory", "code": 500}))
    flat.feed_events(chunk(error="out of memory"))

    assert nested.result().error == flat.result().error == "out of memory"


WORDS = [
    "id",
    "choices",
    "usage",
    "error",
    "delta",
    "index",
    "content",
    "prompt_tokens",
    "message",
    "finish_reason",
    "type",
    "response",
    "output",
    "item",
    "text",
    "tool_calls",
    "function",
    "logprobs",
    "token_ids",
    "content_block",
    "input",
    "input_tokens",
    "response.completed",
    "response.output_text.delta",
    "message_stop",
    "function_call",
    "partial_json",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(
    st.sampled_from([ChatReader, TextReader, ResponsesReader, MessagesReader]),
    st.lists(
        st.binary(max_size=60) | VALUES.map(lambda value: b"data: " + json.dumps(value).encode()),
        max_size=4,
    ),
)
def test_garbage_is_passed_over(kind: type[Reader], events: list[bytes]) -> None:
    reader = kind()

    for event in events:
        reader.feed_events(event)
        reader.feed_body(event.removeprefix(b"data: "))
        kind.is_end(event_data(event))

    read = reader.result()
    assert isinstance(read.reply, str)
    json.dumps([read.choices, read.tokens])


EVENTS = st.one_of(
    st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=2).map(
        lambda payload: b"data: " + json.dumps(payload, ensure_ascii=False).encode()
    ),
    st.sampled_from(
        [b"data: [DONE]", b": ping", b"event: x\ndata: {}", b"data: {}\ndata: {}", b"data: []",
         b"data: {", b"data:{}", b"", b"data: {}\r", b"data: 1"]
    ),
)  # fmt: skip
ENDS = st.sampled_from([b"\n\n", b"\n\n", b"\r\n\r\n", b"\n\n\n", b"\n", b""])


@given(st.lists(st.tuples(EVENTS, ENDS), max_size=6))
@example([(b"data: {}", b"\n"), (b"data: [DONE]", b"\n\n")])
def test_the_quick_ways_say_what_the_careful_ones_say(pieces: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(piece + end for piece, end in pieces)
    splitter = EventSplitter()
    careful = splitter.feed(block)
    careful += [rest] if (rest := splitter.rest()) else []

    assert split_events(block) == careful
    expected = [decode_object(event_data(event)) for event in careful]
    assert event_payloads(block) == [payload for payload in expected if payload is not None]
