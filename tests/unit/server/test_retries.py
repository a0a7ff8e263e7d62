"""What keeps a conversation with a replica, and when another replica is asked."""

from typing import Any

import pytest

from server.core.errors import EngineUnavailable, EngineUnreachable
from server.core.settings import EngineSettings
from server.engine.replica import Probe, Replica, State
from server.gateway.retries import MAX_BROKEN, Retries, conversation_beginning


def replica(port: int) -> Replica:
    settings = EngineSettings()
    made = Replica(f"http://127.0.0.1:{port}", settings, Probe(settings, "smollm2@base", 16))
    made._state = State.HEALTHY
    return made


def timed_out(kind: type[EngineUnavailable]) -> EngineUnavailable:
    error = kind("no answer in time")
    error.__cause__ = TimeoutError()
    return error


SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Who are you?"}
REPLY = {"role": "assistant", "content": "A model."}
SECOND = {"role": "user", "content": "Really?"}


@pytest.mark.parametrize("head", [[], [SYSTEM]])
def test_every_turn_of_a_conversation_begins_alike(head: list[Any]) -> None:
    turns = [[*head, FIRST], [*head, FIRST, REPLY, SECOND]]

    assert conversation_beginning(turns[0]) == conversation_beginning(turns[1]) != ""
    assert conversation_beginning(turns[0]) != conversation_beginning([*head, SECOND])


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [
        ("a text", "a text"),
        ("x" * 1000, "x" * 256),
        (["a", "b"], "a\nb"),
        ([1, 2, 3], "1\n2\n3"),
        ([{"role": "user", "content": [{"type": "image_url"}, {"text": "Hi"}]}], "Hi"),
        ([{"role": "user", "content": [{"type": "image_url"}, 7]}], ""),
        ([{"role": "user", "content": None}], ""),
        ([{"type": "item_reference"}], ""),
        ([{"role": "user", "content": [{"text": 5}]}], ""),
        (None, ""),
        (7, ""),
    ],
)
def test_the_beginning_of_any_prompt(prompt: object, beginning: str) -> None:
    assert conversation_beginning(prompt) == beginning


def test_a_refused_connection_sends_a_request_on_any_number_of_times() -> None:
    retries, asked = Retries(), [replica(port) for port in range(1, 9)]

    assert all(retries.may_go_on(each, EngineUnreachable("refused")) for each in asked)

    assert {each.state for each in asked} == {State.AWAY}
    assert set(retries.failed) == set(asked)
    assert not retries.may_go_on(asked[0], EngineUnreachable("refused"))  # once each


def test_a_request_that_breaks_replica_after_replica_is_given_up() -> None:
    retries, asked = Retries(), [replica(port) for port in range(1, 9)]
    broken = EngineUnavailable("connection reset")

    went_on = [retries.may_go_on(each, broken) for each in asked[: MAX_BROKEN + 1]]

    assert went_on == [True] * MAX_BROKEN + [False]


def test_a_silent_replica_is_neither_left_nor_suspected_but_one_that_takes_no_connection_is() -> (
    None
):
    busy, away = replica(1), replica(2)

    assert not Retries().may_go_on(busy, timed_out(EngineUnavailable))
    assert Retries().may_go_on(away, timed_out(EngineUnreachable))

    assert (busy.state, away.state) == (State.HEALTHY, State.AWAY)
