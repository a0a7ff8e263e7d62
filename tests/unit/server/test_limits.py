"""Limits: the sliding minute, the budget, and what clients are told of them."""

import json
import pickle
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import event, text

from server.core.errors import BudgetSpent, RateLimited
from server.core.security import Scope
from server.db import ApiKey
from server.db.session import Database
from server.http.errors import error_response
from server.http.limits import WINDOW_S, Limiter, Window, duration
from server.services import keys
from server.services.keys import Limits, Principal

counts = st.integers(0, 10_000)
seconds = st.floats(0, WINDOW_S, exclude_max=True)


class Clock:
    """Stands still until it is moved; begins at the turn of a minute."""

    def __init__(self) -> None:
        self.now = 1_000_000 * float(WINDOW_S)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(database: Database) -> AsyncIterator[Database]:
    yield database
    await database.close()


@pytest.fixture
def limiter(database: Database, clock: Clock) -> Limiter:
    return Limiter(database, clock=clock)


def principal(key_id: str = "key_1", *, tokens_used: int = 0, **limits: int) -> Principal:
    return Principal(
        key_id, "k", frozenset({Scope.CHAT}), limits=Limits(**limits), tokens_used=tokens_used
    )


def admitted(limiter: Limiter, who: Principal, tries: int) -> int:
    passed = 0
    for _ in range(tries):
        try:
            limiter.admit(who)
        except RateLimited:
            continue
        passed += 1
    return passed


def later(window: Window, after_s: float) -> Window:
    """The same counts after a while in which nothing came."""
    turns, elapsed = divmod(window.elapsed_s + after_s, WINDOW_S)
    if turns == 0:
        return Window(window.before, window.now, elapsed)
    return Window(window.now if turns == 1 else 0, 0, elapsed)


@given(counts, counts, seconds, st.integers(1, 5_000))
def test_the_wait_is_as_long_as_it_must_be_and_no_longer(
    before: int, now: int, elapsed_s: float, limit: int
) -> None:
    window = Window(before, now, elapsed_s)

    wait_s = window.wait_s(limit)

    assert later(window, wait_s + 1e-6).used + 1 <= limit + 1e-3
    if wait_s > 0:
        assert later(window, wait_s * 0.999).used + 1 > limit - 1e-3 * (before + now)
        assert window.used + 1 > limit


@given(counts, counts, seconds)
def test_after_the_reset_nothing_counts(before: int, now: int, elapsed_s: float) -> None:
    window = Window(before, now, elapsed_s)

    assert later(window, window.reset_s + 1e-6).used == pytest.approx(0, abs=0.01)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60), st.integers(1, 10))
def test_no_minute_has_more_than_the_limit(pauses: list[float], limit: int) -> None:
    clock = Clock()
    limiter = Limiter(Database("sqlite://"), clock=clock)
    who = principal(requests_per_minute=limit)
    passed: dict[int, int] = {}
    for pause in pauses:
        clock.now += pause
        minute = int(clock.now // WINDOW_S)
        passed[minute] = passed.get(minute, 0) + admitted(limiter, who, 3)

    assert max(passed.values()) <= limit


def test_a_burst_at_the_turn_of_a_minute_gets_the_limit_once(
    limiter: Limiter, clock: Clock
) -> None:
    who = principal(requests_per_minute=60)
    clock.now += 59
    before = admitted(limiter, who, 100)
    clock.now += 2
    after = admitted(limiter, who, 100)

    assert before == 60
    assert after == 1  # what has faded of the minute before


async def test_who_is_refused_is_told_when_to_come_again_and_may_then(
    limiter: Limiter, clock: Clock
) -> None:
    who = principal(requests_per_minute=3)
    clock.now += 12.5
    assert admitted(limiter, who, 5) == 3

    with pytest.raises(RateLimited) as caught:
        limiter.admit(who)

    wait_s = int(caught.value.headers["retry-after"])
    clock.now += wait_s - 1.5
    assert admitted(limiter, who, 1) == 0
    clock.now += 1.5
    await limiter.sync()
    assert admitted(limiter, who, 1) == 1


def test_tokens_are_counted_when_they_are_spent(limiter: Limiter, clock: Clock) -> None:
    who = principal(tokens_per_minute=100)
    limiter.admit(who)
    limiter.spend(who, 99)
    limiter.admit(who)
    limiter.spend(who, 900)

    with pytest.raises(RateLimited, match="100 tokens a minute"):
        limiter.admit(who)
    clock.now += WINDOW_S
    with pytest.raises(RateLimited):
        limiter.admit(who)
    clock.now += WINDOW_S
    limiter.admit(who)


def test_keys_do_not_share_a_limit(limiter: Limiter) -> None:
    first, second = principal("key_1", requests_per_minute=2), principal("key_2", **{})

    assert admitted(limiter, first, 5) == 2
    assert admitted(limiter, second, 5) == 5
    assert admitted(limiter, principal("key_3", requests_per_minute=2), 5) == 2


def test_clients_see_what_is_left(limiter: Limiter, clock: Clock) -> None:
    who = principal(requests_per_minute=10, tokens_per_minute=1000)
    assert limiter.headers(principal()) == {}
    assert limiter.headers(who)["x-ratelimit-reset-requests"] == "0s"

    clock.now += 30
    limiter.admit(who)
    limiter.spend(who, 250)

    assert limiter.headers(who) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "1m30s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": "1m30s",
    }


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (0.0593, "60ms"), (1, "1s"), (1.2, "2s"), (59.5, "1m0s"), (360, "6m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_a_refusal_is_openais_with_every_header(limiter: Limiter) -> None:
    who = principal(requests_per_minute=1)
    limiter.admit(who)
    with pytest.raises(RateLimited) as caught:
        limiter.admit(who)

    answer = error_response(caught.value)
    error = json.loads(bytes(answer.body))["error"]

    assert answer.status_code == 429
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in answer.headers


def test_a_spent_budget_is_a_quota_that_waiting_does_not_fill(limiter: Limiter) -> None:
    who = principal(token_budget=100, tokens_used=100)
    with pytest.raises(BudgetSpent) as caught:
        limiter.admit(who)

    answer = error_response(caught.value)
    error = json.loads(bytes(answer.body))["error"]

    assert answer.status_code == 429
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"


def test_refusals_can_be_pickled(limiter: Limiter) -> None:
    for error in (RateLimited("requests", 5, 7, {"a": "b"}), BudgetSpent(9, {"a": "b"})):
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.headers) == (str(error), error.headers)


async def test_the_budget_counts_what_is_written_and_what_is_not(
    limiter: Limiter, database: Database
) -> None:
    secret = mint(database, token_budget=100)
    who = await looked_up(database, secret)
    limiter.spend(who, 60)
    limiter.admit(who)
    await limiter.write_spent()
    assert limiter.tokens_used(who) == 60  # though the key was looked up before
    limiter.spend(who, 40)
    with pytest.raises(BudgetSpent):
        limiter.admit(who)

    await limiter.write_spent()
    await limiter.write_spent()  # forgets what the database knows by now

    who = await looked_up(database, secret)
    assert (who.tokens_used, limiter.tokens_used(who)) == (100, 100)
    with pytest.raises(BudgetSpent):
        Limiter(database).admit(who)  # as another gateway, or after a restart


async def test_spending_is_written_in_one_go(limiter: Limiter, database: Database) -> None:
    people = [await looked_up(database, mint(database)) for _ in range(3)]
    written: list[str] = []

    def on_statement(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("UPDATE"):
            written.append(statement)

    event.listen(database.async_engine.sync_engine, "before_cursor_execute", on_statement)
    for _ in range(100):
        for who in people:
            limiter.spend(who, 2)
    assert written == []
    await limiter.write_spent()

    assert len(written) == len(people)
    with database.unit_of_work() as session:
        assert {key.tokens_used for key in session.query(ApiKey)} == {200}


async def test_what_cannot_be_written_is_written_later(
    limiter: Limiter, database: Database
) -> None:
    secret = mint(database)
    who = await looked_up(database, secret)
    limiter.spend(who, 5)
    rename(database, "api_keys", "elsewhere")

    await limiter.write_spent()

    limiter.spend(who, 6)
    rename(database, "elsewhere", "api_keys")
    assert limiter.tokens_used(who) == 11
    await limiter.close()
    assert (await looked_up(database, secret)).tokens_used == 11


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 500), st.booleans()), max_size=30))
async def test_no_token_is_lost_or_counted_twice(acts: list[tuple[int, int, bool]]) -> None:
    assume(acts)
    written = {"key_0": 0, "key_1": 0, "key_2": 0}

    class Memory:
        async def run(self, _: Any, due: dict[str, int]) -> dict[str, int]:
            for key_id, amount in due.items():
                written[key_id] += amount
            return {key_id: written[key_id] for key_id in due}

    limiter = Limiter(Memory())  # type: ignore[arg-type]
    spent = dict.fromkeys(written, 0)
    for index, amount, writes in acts:
        who = principal(f"key_{index}", tokens_used=written[f"key_{index}"], token_budget=10**9)
        limiter.spend(who, amount)
        spent[who.id] += amount
        assert limiter.tokens_used(who) == spent[who.id]
        if writes:
            await limiter.write_spent()
    await limiter.close()

    assert written == spent


def mint(database: Database, **limits: int) -> str:
    with database.unit_of_work() as session:
        return keys.create_key(session, "k", ["chat"], limits=Limits(**limits))[1]


async def looked_up(database: Database, secret: str) -> Principal:
    who = await database.read(keys.authenticate, secret)
    assert who is not None
    return who


def rename(database: Database, old: str, new: str) -> None:
    with database.unit_of_work() as session:
        session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
