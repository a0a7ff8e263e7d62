"""EngineSampler: answers in order, at low priority, stopped by whoever watches."""

from collections.abc import Iterator

import pytest

from adapters.sampling import NotScored, SamplingError
from adapters.types import SamplingParams, TopK
from server.core.settings import EngineSettings, LearningSettings, Settings
from tests.support.fake_engine import FakeEngine, Served, serve
from workers.sampler import LEARNING_PRIORITY, EngineSampler

CONVERSATIONS = [[{"role": "user", "content": f"Question {number}"}] for number in range(40)]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def served(engine: FakeEngine) -> Iterator[Served]:
    with serve(engine.app()) as served:
        yield served


def sampler(settings: Settings, url: str) -> EngineSampler:
    return EngineSampler(
        settings.model_copy(update={"engine": EngineSettings(url=url, start_timeout_s=0.1)}),
        "smollm2@base",
    )


def test_every_conversation_is_asked_once_at_low_priority(
    settings: Settings, engine: FakeEngine, served: Served
) -> None:
    seen: list[tuple[int, int]] = []

    replies = sampler(settings, served.url).chat(
        CONVERSATIONS,
        SamplingParams(max_tokens=7, seed=3),
        on_progress=lambda done, total: seen.append((done, total)),
    )

    assert len(replies) == 40
    assert all("smollm2@base" in reply for reply in replies)
    assert seen == [(number, 40) for number in range(1, 41)]
    assert {body["priority"] for body in engine.bodies} == {LEARNING_PRIORITY}
    assert {(body["max_tokens"], body["seed"]) for body in engine.bodies} == {(7, 3)}
    asked = {body["messages"][0]["content"] for body in engine.bodies}
    assert len(asked) == 40


def test_a_failing_engine_is_a_sampling_error(
    settings: Settings, engine: FakeEngine, served: Served
) -> None:
    engine.refuses_chat = 500

    with pytest.raises(SamplingError):
        sampler(settings, served.url).chat(CONVERSATIONS, SamplingParams())


def test_an_absent_engine_is_a_sampling_error(settings: Settings) -> None:
    with pytest.raises(SamplingError, match="does not answer"):
        sampler(settings, "http://127.0.0.1:9").chat(CONVERSATIONS[:1], SamplingParams())


def test_progress_can_stop_the_work(settings: Settings, engine: FakeEngine, served: Served) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise Stop

    engine.token_s = 0.01
    with pytest.raises(Stop):
        sampler(settings, served.url).chat(CONVERSATIONS, SamplingParams(), on_progress=stop)
    assert len(engine.bodies) < 40


def test_a_cancel_beside_an_engine_error_is_still_a_cancel(
    settings: Settings, engine: FakeEngine, served: Served
) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, _: int) -> None:
        engine.refuses_chat = 500
        raise Stop

    with pytest.raises(Stop):
        sampler(settings, served.url).chat(CONVERSATIONS, SamplingParams(), on_progress=stop)


def test_replies_tell_tokens_likelihoods_and_how_they_ended(
    engine: FakeEngine, served: Served, settings: Settings
) -> None:
    [reply] = sampler(settings, served.url).replies(CONVERSATIONS[:1], SamplingParams(max_tokens=6))

    assert reply.text.startswith("smollm2@base")
    assert (reply.finish_reason, reply.prompt_ids) == ("stop", (1, 2, 3, 4, 5, 6, 7))
    assert reply.ids == (0, 1, 2, 3, 4, 5)
    assert reply.likeliest == (TopK((1, 2), (-0.5, -2.0)),)
    assert engine.bodies[0]["top_logprobs"] == 20
    assert engine.bodies[0]["priority"] == LEARNING_PRIORITY


def test_what_is_likely_after_given_tokens_is_asked_token_by_token(
    engine: FakeEngine, served: Served, settings: Settings
) -> None:
    found = sampler(settings, served.url).score([(5, 6, 7), (1,)])

    assert found == [TopK((1, 2), (-0.5, -2.0))] * 2
    asked = {tuple(body["prompt"]): body for body in engine.bodies}
    assert set(asked) == {(5, 6, 7), (1,)}
    assert asked[1,]["max_tokens"] == 1
    # It would kill vLLM 0.32 for all who use it.
    assert "prompt_logprobs" not in asked[1,]


def test_beside_users_beginnings_are_scored_one_by_one(
    engine: FakeEngine, served: Served, settings: Settings
) -> None:
    """Seen: eight at once were eight prompts in each step, and a user had his reply in 91 s."""
    engine.users, engine.token_s = 1, 0.01
    learning = LearningSettings(rollouts_beside_users=4, share_beside_users=1)
    polite = settings.model_copy(update={"learning": learning})

    sampler(polite, served.url).chat(CONVERSATIONS[:8], SamplingParams())
    assert engine.most_running == 4

    engine.most_running = 0
    found = sampler(polite, served.url).score([(number,) for number in range(1, 9)])
    assert len(found) == 8
    assert engine.most_running == 1


def test_without_users_beginnings_are_scored_side_by_side(
    engine: FakeEngine, served: Served, settings: Settings
) -> None:
    engine.token_s = 0.01
    learning = LearningSettings(rollout_concurrency=4)
    alone = settings.model_copy(update={"learning": learning})

    sampler(alone, served.url).score([(number,) for number in range(1, 9)])
    assert engine.most_running == 4


def test_an_engine_that_cannot_score_is_told_from_one_that_is_away(
    engine: FakeEngine, served: Served, settings: Settings
) -> None:
    engine.can_score = False

    with pytest.raises(NotScored, match="gives no log-probabilities"):
        sampler(settings, served.url).score([(1, 2)])
    with pytest.raises(SamplingError) as away:
        sampler(settings, "http://127.0.0.1:9").score([(1, 2)])

    assert not isinstance(away.value, NotScored)


def test_a_reply_with_nul_can_be_stored(
    settings: Settings, engine: FakeEngine, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "tokens", lambda body: ["no", "\x00", "thing"])
    asked = sampler(settings, served.url)

    [plain] = asked.chat(CONVERSATIONS[:1], SamplingParams())
    [measured] = asked.replies(CONVERSATIONS[:1], SamplingParams())

    assert plain == measured.text == "no\ufffdthing"
