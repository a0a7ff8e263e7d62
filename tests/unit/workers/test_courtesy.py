"""How many requests learning keeps, as a function of what is seen at the engine."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.settings import LearningSettings
from server.engine.control import EngineLoad
from workers import courtesy
from workers.courtesy import Courtesy, Manners, users_among

counts = st.integers(1, 64)
seconds = st.floats(0, 1000)


@st.composite
def manners(draw: st.DrawFn) -> Manners:
    most = draw(counts)
    return Manners(most, draw(st.integers(1, most)), draw(st.floats(0.01, 100)))


@given(manners())
def test_without_users_all_are_allowed(rules: Manners) -> None:
    assert rules.allowed(None) == rules.most


@given(manners(), seconds)
def test_learning_always_gets_on_and_never_beyond_its_most(rules: Manners, quiet_s: float) -> None:
    assert 1 <= rules.beside_users <= rules.allowed(quiet_s) <= rules.most


@given(manners(), st.floats(0, 1))
def test_few_stay_until_users_are_gone_for_good(rules: Manners, share: float) -> None:
    assert rules.allowed(share * rules.gone_s) == rules.beside_users


@given(manners(), seconds, seconds)
def test_the_longer_it_is_quiet_the_more_are_allowed(
    rules: Manners, one: float, other: float
) -> None:
    assert rules.allowed(min(one, other)) <= rules.allowed(max(one, other))


@given(manners())
def test_after_twice_the_time_all_are_back(rules: Manners) -> None:
    assert rules.allowed(2 * rules.gone_s) == rules.most


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_users_are_what_is_there_beside_ours(running: int, waiting: int, ours: int) -> None:
    users = users_among(EngineLoad(running, waiting), ours)

    assert users >= 0
    assert users + ours >= running + waiting
    assert users == 0 or users + ours == running + waiting


def test_never_more_beside_users_than_without_them() -> None:
    rules = Manners.of(LearningSettings(rollout_concurrency=2, rollouts_beside_users=5))

    assert (rules.most, rules.beside_users) == (2, 2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """A control that only tells how much there is to do."""

    class client:
        url = "http://engine"

    def __init__(self, load: EngineLoad | None) -> None:
        self._load = load

    async def load(self) -> EngineLoad | None:
        return self._load


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(courtesy, "monotonic", made)
    return made


def taken(polite: Courtesy) -> int:
    """How many more it lets begin, up to ten."""
    return sum(polite.take("http://engine") for _ in range(10))


async def look(
    polite: Courtesy, running: int, waiting: int = 0, finished: int | None = None
) -> None:
    await polite.look(Engine(EngineLoad(running, waiting, finished)))  # type: ignore[arg-type]


async def test_users_who_wait_count_as_those_who_are_served(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    await look(polite, running=0, waiting=1)

    assert taken(polite) == 2


async def test_what_is_too_much_is_taken_back_when_users_come(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    assert taken(polite) == 10
    await look(polite, running=3)

    assert [polite.take_back("http://engine") for _ in range(10)] == [True] * 8 + [False] * 2
    assert polite.aborted == 8
    assert taken(polite) == 0


async def test_our_own_requests_are_no_users(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    with polite.asking("http://engine"), polite.asking("http://engine"):
        pass
    await look(polite, running=2)  # the engine has not counted their end yet
    assert taken(polite) == 10

    await look(polite, running=2)  # by now it would have
    assert taken(polite) == 0


async def watch(polite: Courtesy, clock: Clock, seconds: float) -> None:
    """Look and see nobody, as often as learning looks while it has requests."""
    for _ in range(round(seconds / courtesy.LOOK_S)):
        clock.now += courtesy.LOOK_S
        await look(polite, running=0)


async def test_it_remembers_users_between_calls_and_forgets_them_in_time(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    await look(polite, running=1)
    await watch(polite, clock, 4.75)
    assert taken(polite) == 2

    await watch(polite, clock, 2.75)  # half of the way back
    assert 0 < taken(polite) < 8
    await watch(polite, clock, 5.0)
    assert taken(polite) == 10


async def test_users_whom_nobody_looked_for_are_not_gone(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    await look(polite, running=1)
    clock.now += 600.0  # a training
    await look(polite, running=0)
    assert taken(polite) == 2

    await watch(polite, clock, 10.0)
    assert taken(polite) == 10


async def test_an_engine_that_does_not_tell_is_taken_to_have_no_users(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    await polite.look(Engine(None))  # type: ignore[arg-type]

    assert taken(polite) == 10


def test_who_never_makes_room_never_rests() -> None:
    polite = Manners.of(LearningSettings(rollout_concurrency=4, share_beside_users=0.1))
    rude = Manners.of(LearningSettings(rollout_concurrency=4, rollouts_beside_users=4))

    assert (polite.share, rude.share) == (0.1, 1.0)


@given(st.floats(0.01, 1), st.floats(0, 1000))
def test_those_beside_users_are_there_for_their_share_of_the_time(
    share: float, busy_s: float
) -> None:
    rest_s = Manners(10, 1, 5.0, share).rest_s(busy_s)

    assert rest_s >= 0
    assert share * (busy_s + rest_s) == pytest.approx(busy_s)


async def test_beside_users_it_rests_after_a_bout(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 60.0, 0.25))
    await look(polite, running=1)
    assert taken(polite) == 2
    clock.now += 1.0
    polite.give("http://engine")
    assert taken(polite) == 0  # the bout ends with all that began it

    clock.now += 1.0
    polite.give("http://engine")
    clock.now += 5.9  # the bout was of 2 s, a quarter of 8
    assert taken(polite) == 0
    clock.now += 0.2
    assert taken(polite) == 2


async def test_what_was_there_before_users_came_is_not_rested_for(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 1, 60.0, 0.5))
    assert polite.take("http://engine")
    clock.now += 600.0
    await look(polite, running=1)
    clock.now += 2.0
    polite.give("http://engine")

    clock.now += 2.1
    assert taken(polite) == 1


async def test_it_does_not_rest_once_users_are_gone(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 1, 5.0, 0.01))
    await look(polite, running=1)
    assert polite.take("http://engine")
    clock.now += 4.0
    polite.give("http://engine")
    assert taken(polite) == 0

    clock.now += 7.0
    assert taken(polite) > 0


async def test_users_who_came_and_went_between_two_looks_are_seen(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    await look(polite, running=0, finished=100)  # whoever that was
    assert taken(polite) == 10
    for _ in range(10):
        polite.give("http://engine")
    await look(polite, running=0, finished=101)

    assert taken(polite) == 2


async def test_what_we_were_answered_is_no_user(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    await look(polite, running=0, finished=100)
    with polite.asking("http://engine"):
        pass
    with polite.asking("http://engine"):  # the engine has counted its end, and we have not heard
        await look(polite, running=0, finished=102)
    await look(polite, running=0, finished=102)
    assert taken(polite) == 10

    await look(polite, running=0, finished=103)
    assert taken(polite) == 0


async def test_what_was_broken_off_is_not_taken_for_an_answer_of_ours(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    await look(polite, running=0, finished=100)
    with suppress(TimeoutError), polite.asking("http://engine"):
        raise TimeoutError
    await look(polite, running=0, finished=101)

    assert taken(polite) == 2


async def test_an_engine_that_was_restarted_counts_anew(clock: Clock) -> None:
    polite = Courtesy(Manners(10, 2, 5.0))
    await look(polite, running=0, finished=100)
    await look(polite, running=0, finished=3)
    assert taken(polite) == 10

    await look(polite, running=0, finished=4)
    assert taken(polite) == 0
