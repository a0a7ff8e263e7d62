"""The check of every reply: a wrong version, a broken stream and a mixed-up text must be seen."""

import asyncio
import json
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapters.lora_files import check_config, check_weights
from adapters.spec import LINEAR_MODULES
from benchmarks.real_engine import TINY_MODEL
from benchmarks.stub import BASE, CHUNKS, Models, word_of
from benchmarks.swap import _saying
from benchmarks.swap_load import (
    WINDOW_S,
    Answer,
    Caller,
    Checker,
    Load,
    Order,
    Saying,
    Spans,
    Timeline,
    phases,
    read_stream,
)
from benchmarks.versions import write_lora

NAMES = {1: "bench@v1", 2: "bench@v2"}
MODELS = {1: "bench@v1.aa", 2: "bench@v2.bb"}
SAYINGS = {
    number: [Saying(text, len(text)) for text in texts]
    for number, texts in {1: ("one", "ein"), 2: ("two", "zwei")}.items()
}


def stream(text: str, model: str, *, end: str = "data: [DONE]\n\n") -> bytes:
    chunks = [
        {"model": model, "choices": [{"delta": {"content": letter}}]} for letter in ["", *text]
    ]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + end.encode()


def answer(by: int = 1, prompt: int = 0, **fields: Any) -> Answer:
    """What version 1 says to the first prompt, unless told otherwise."""
    body = fields.pop("body", None) or stream(SAYINGS[by][prompt].text, MODELS[by])
    shown = {"status": 200, "version": NAMES[by], "is_whole": True, **fields}
    return Answer(prompt, 1.0, 1.0, array("d", [1.5]), [body], **shown)


CHECKER = Checker(SAYINGS, NAMES, MODELS)
NAMELESS = Checker(SAYINGS, None, {1: "live", 2: "live"})


def test_a_right_reply_is_right():
    finding = CHECKER.check(answer(2, prompt=1), {2})

    assert (finding.failure, finding.wrong) == ("", "")
    assert finding.version == 2
    assert finding.is_text_sure


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        ({"status": 503}, "status 503"),
        ({"status": 0}, "no reply"),
        ({"is_whole": False}, "the stream broke off"),
        ({"body": stream("one", MODELS[1], end="")}, "the stream broke off"),
        ({"body": b'data: {"error": "lost"}\n\ndata: [DONE]\n\n'}, "the stream broke off lost"),
        ({"body": b'data: {"mod'}, "the stream broke off in the middle of a chunk"),
    ],
)
def test_a_failed_stream_is_seen(fields: dict[str, Any], failure: str):
    assert CHECKER.check(answer(**fields), {1}).failure == failure


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, {2}),  # whole, consistent, and of a version that must not answer any longer
        ({"version": "bench@v3"}, {1, 2}),
        ({"version": ""}, {1, 2}),
        ({"version": NAMES[2]}, {1, 2}),  # the header names another than the chunks
        ({"body": stream("one", MODELS[2])}, {1, 2}),
        ({"body": stream("o", MODELS[1], end="") + stream("ne", MODELS[2])}, {1, 2}),
        ({"body": stream("two", MODELS[1])}, {1, 2}),  # the right names on the wrong weights
        ({"body": stream("onE", MODELS[1])}, {1, 2}),
        ({"body": stream("ein", MODELS[1])}, {1, 2}),  # what it says to another prompt
    ],
)
def test_a_wrong_version_is_seen(fields: dict[str, Any], allowed: set[int]):
    finding = CHECKER.check(answer(**fields), allowed)

    assert finding.failure == ""
    assert finding.wrong


@pytest.mark.parametrize(
    ("text", "allowed", "wrong"),
    [
        ("one", {1}, ""),
        ("two", {1, 2}, ""),
        ("two", {1}, "a version answered that must not"),
        ("otto", {1, 2}, "the text is nobody's"),
    ],
)
def test_without_names_the_text_tells_who_answered(text: str, allowed: set[int], wrong: str):
    assert NAMELESS.check(answer(body=stream(text, "live")), allowed).wrong == wrong


def test_where_texts_waver_their_beginning_is_checked_and_not_called_whole():
    saying = _saying(["a cat sat", "a cat ran", "a cat sat"])
    checker = Checker({1: [saying], 2: [Saying("dog", 3)]}, NAMES, MODELS)

    assert saying == Saying("a cat sat", 6)
    assert _saying(["same", "same"]) == Saying("same", 4)
    fits = checker.check(answer(body=stream("a cat ran", MODELS[1])), {1})
    assert (fits.wrong, fits.is_text_sure) == ("", False)
    assert checker.check(answer(body=stream("a cow", MODELS[1])), {1}).wrong


def test_who_may_answer_follows_from_the_orders():
    timeline = Timeline(initial=1)
    timeline.orders += [Order(2, 10, 11), Order(1, 20, 21), Order(2, 30)]

    assert timeline.allowed(5, 6) == {1}
    assert timeline.allowed(9, 10.5) == {1, 2}  # the order came before its first byte
    assert timeline.allowed(10.5, 12) == {1, 2}
    assert timeline.allowed(11.1, 12) == {2}
    assert timeline.allowed(12, 25) == {1, 2}
    assert timeline.allowed(22, 29) == {1}
    assert timeline.allowed(31, 32) == {1, 2}  # the last order has not returned


def test_an_order_that_failed_settles_nothing():
    timeline = Timeline(initial=1)
    timeline.orders.append(Order(2, 10, 11, error="500"))

    assert timeline.allowed(12, 13) == {1, 2}


def test_the_first_reply_of_a_version_is_kept_with_its_order():
    timeline = Timeline(initial=1)
    timeline.orders += [Order(2, 10, 11), Order(1, 20, 21)]

    for version, sent_at, first_at in (
        (2, 9.9, 10.0),  # asked before
        (1, 10.0, 10.1),
        (2, 10.1, 10.4),
        (2, 10.1, 10.3),
        (2, 20.1, 20.5),
        (1, 19.9, 20.6),
        (1, 20.3, 20.7),
    ):
        timeline.saw(version, sent_at, first_at)

    assert [order.first_at for order in timeline.orders] == [10.3, 20.7]


def test_times_are_told_apart_by_when_they_were():
    spans = Spans()
    orders = [Order(2, 10, 10.1), Order(1, 20, 22)]
    for began, ended in ((0, 1), (4, 5), (9.9, 10), (10.2, 10.2), (9, 30), (10.5, 11), (25, 28)):
        spans.add(began, ended)
    parts = phases(orders, counts_from=2)

    assert spans.within(parts["before"]) == [1]
    assert spans.within(parts["during"]) == pytest.approx([0.1, 0, 21])
    assert spans.within(parts["after"]) == [3]
    assert orders[0].window == (10, 10 + WINDOW_S)


@contextmanager
def server(replies: list[bytes]) -> Iterator[int]:
    """Sends these in turn, each to a request of one line, and closes when there is no more."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            while replies and self.rfile.readline():
                self.wfile.write(replies.pop(0))

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listening.server_address[1]
        finally:
            listening.shutdown()
            thread.join()


def http(body: bytes, *, version: str = NAMES[1], length: int | None = None) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nX-Everlearn-Version: {version}\r\n"
    return f"{head}content-length: {length or len(body)}\r\n\r\n".encode() + body


async def test_a_client_sees_headers_text_and_a_connection_that_breaks():
    whole = stream("one", MODELS[1])
    with server([http(whole), http(whole, length=len(whole) + 9)]) as port:
        caller = Caller(port)
        first, second = await caller.ask(b"GET\n"), await caller.ask(b"GET\n")
        third = await caller.ask(b"GET\n")
        caller.close()

    assert (first.status, first.version, first.is_whole) == (200, NAMES[1], True)
    assert read_stream(b"".join(first.parts)).text == "one"
    assert not second.is_whole
    assert [bool(CHECKER.check(one, {1}).failure) for one in (first, second, third)] == [
        False,
        True,
        True,
    ]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def test_nobody_asks_while_requests_are_held_back():
    replies = [http(stream("one", MODELS[1])) for _ in range(10_000)]
    with server(replies) as port:
        load = Load(port, [b"GET\n"], CHECKER, Timeline(initial=1))
        clients = asyncio.create_task(load.run(3))
        await until(lambda: load.replies >= 5)
        load.hold()
        await load.idle()
        seen = load.replies
        await asyncio.sleep(0.1)

        assert (load.replies, load.waiting) == (seen, 3)
        load.release()
        await until(lambda: load.replies >= seen + 5)
        load.stop()
        await clients

    assert (load.failures, load.wrong) == ({}, {})
    assert load.whole_texts == load.replies


def test_the_stub_loads_names_and_forgets_adapters():
    models = Models()
    order = json.dumps({"lora_name": "bench@v1.aa", "lora_path": "/x/v0001"}).encode()
    ask = b'{"model": "bench@v1.aa"}'

    assert models.replies(ask) is None
    assert b" 200 " in models.load(order)
    assert b" 400 " in models.load(order)
    assert b" 400 " in models.load(b"{}")
    replies, base = models.replies(ask), models.replies(f'{{"model":"{BASE}"}}'.encode())
    assert replies is not None
    assert base is not None
    assert replies.whole.count(word_of("/x/v0001").encode()) == CHUNKS
    assert all(b'"model":"bench@v1.aa"' in chunk for chunk in replies.chunks)
    assert replies.odds != base.odds
    assert b"/x/v0001" in models.listing()
    assert b" 200 " in models.unload(order)
    assert models.replies(ask) is None


def test_random_weights_are_lora_that_an_engine_takes(tmp_path):
    one, again, other = (
        write_lora(tmp_path / name, TINY_MODEL, seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )

    config = check_config(
        (one / "adapter_config.json").read_bytes(), max_rank=16, allowed_modules=LINEAR_MODULES
    )
    check_weights(one / "adapter_model.safetensors", config)
    first, same, second = (
        load_file(folder / "adapter_model.safetensors") for folder in (one, again, other)
    )
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not any(np.array_equal(first[name], second[name]) for name in first)
