"""From an interaction to what it says of its version, and what it does not say."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from server.core.clock import utc_now
from server.db import Adapter, Interaction
from server.db.session import Database
from server.services import feedback, interactions, signals
from server.services.feedback import Judgement
from server.services.signals import Pace, Reply
from tests.support.factories import captured, principal

JSON_FORM = {"response_format": {"type": "json_object"}}


def read(database: Database, *judgements: Judgement, **fields: Any) -> Reply:
    record = captured("Hi", **fields)
    with database.unit_of_work() as session:
        interactions.record_all(session, [record])
        if judgements:
            feedback.give(session, principal(), record["id"], judgements)
        session.flush()
        [found] = signals.read(session, select(Interaction).where(Interaction.id == record["id"]))
    return found


@pytest.mark.parametrize(
    ("outcome", "status", "failed"),
    [
        ("complete", 200, 0.0),
        ("engine_error", 502, 1.0),
        ("engine_error", 503, 1.0),
        ("engine_error", 200, 1.0),
        ("engine_error", 400, None),
        ("engine_error", 429, None),
        ("client_left", 499, None),
    ],
)
def test_a_failure_is_the_engines_and_nobody_elses(
    database: Database, adapter: Adapter, outcome: str, status: int, failed: float | None
) -> None:
    assert read(database, outcome=outcome, status=status).failed == failed


@pytest.mark.parametrize(
    ("fields", "malformed"),
    [
        ({"reply": "Odile Brandt."}, 0.0),
        ({"reply": ""}, 1.0),
        ({"reply": " \n"}, 1.0),
        ({"reply": "word " * 30}, 1.0),
        ({"reply": "It is one of two or three. " * 4}, 0.0),
        ({"reply": "It is one of two or three. " * 5}, 1.0),
        ({"finish_reason": "length"}, 1.0),
        ({"finish_reason": "max_tokens"}, 1.0),
        ({"reply": '{"a": 1}', "request": JSON_FORM}, 0.0),
        ({"reply": '{"a": 1', "request": JSON_FORM}, 1.0),
        ({"reply": "{" * 9, "request": {"response_format": "odd"}}, 0.0),
        ({"reply": '{"tool_calls": []}', "finish_reason": "tool_calls"}, 0.0),
        ({"request": {"store": False}}, None),
        ({"reply": "", "endpoint": "embeddings"}, None),
        ({"outcome": "client_left", "status": 499, "reply": ""}, None),
    ],
)
def test_what_a_broken_reply_looks_like(
    database: Database, adapter: Adapter, fields: dict[str, Any], malformed: float | None
) -> None:
    assert read(database, **fields).malformed == malformed


@pytest.mark.parametrize(
    ("kind", "value", "bad"),
    [
        ("thumb", {"thumb": "down"}, 1.0),
        ("thumb", {"thumb": "up"}, 0.0),
        ("score", {"score": -0.1}, 1.0),
        ("score", {"score": 0.0}, 0.0),
        ("correction", {"text": "No."}, 1.0),
        ("comment", {"text": "Hm."}, None),
    ],
)
def test_feedback_is_for_or_against_or_says_nothing(
    database: Database, adapter: Adapter, kind: Any, value: dict[str, Any], bad: float | None
) -> None:
    assert read(database, Judgement(kind, value)).feedback == bad


def test_one_against_it_is_enough(database: Database, adapter: Adapter) -> None:
    said = [Judgement("thumb", {"thumb": "up"}), Judgement("score", {"score": -1.0})]  # type: ignore[arg-type]

    assert read(database, *said).feedback == 1.0


def took(*times: tuple[float, int]) -> list[Reply]:
    at = utc_now()
    return [Reply("int_1", at, None, "v1", None, 0.0, time, 0.0, None) for time in times]


def test_slow_is_what_nine_in_ten_are_not() -> None:
    replies = took(*[(10.0 * n, 10) for n in range(1, 21)])

    pace = signals.pace_of(replies)

    assert [reply.value("slow", pace) for reply in replies] == [0.0] * 18 + [1.0] * 2
    assert replies[0].value("slow", None) is None
    assert signals.pace_of([]) is None


@pytest.mark.parametrize("tokens", [1, 5, 400])
def test_a_short_reply_is_not_slow_for_its_start_nor_a_long_one_for_its_length(tokens: int) -> None:
    pace = signals.pace_of(took(*[(100.0 + 10 * n, n) for n in range(20, 120)]))

    usual, slow = took((101.0 + 10 * tokens, tokens), (1.3 * (100 + 10 * tokens), tokens))

    assert pace is not None
    assert (pace.start_ms, pace.token_ms) == (pytest.approx(100), pytest.approx(10))
    pace = replace(pace, slow_from=1.2)
    assert (usual.value("slow", pace), slow.value("slow", pace)) == (0.0, 1.0)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10_000)), min_size=1))
def test_whatever_the_times_one_in_ten_is_slow_at_most(times: list[tuple[float, int]]) -> None:
    replies = took(*times)

    slow = sum(reply.value("slow", signals.pace_of(replies)) or 0 for reply in replies)

    assert slow <= len(times) / 10


@pytest.mark.parametrize(
    "fields",
    [
        {"completion_tokens": None},
        {"completion_tokens": 0},
        {"outcome": "client_left", "status": 499},
        {"outcome": "engine_error", "status": 502},
    ],
)
def test_what_has_no_whole_reply_is_neither_slow_nor_quick(
    database: Database, adapter: Adapter, fields: dict[str, Any]
) -> None:
    assert read(database, **fields).value("slow", Pace(0.0, 1.0, 1.0)) is None
