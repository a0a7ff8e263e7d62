"""Rollouts: sampled tokens with their log-probabilities, whatever happens to the engine meanwhile."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from adapters.sampling import REFUSED, SamplingError
from adapters.types import ChatMessage, SamplingParams
from server.core.settings import EngineSettings, LearningSettings, Settings
from server.engine.control import EngineLoad, open_control
from tests.support.fake_engine import ChatForm, FakeEngine, Served, serve
from workers import turns
from workers.courtesy import Courtesy, Manners
from workers.sampler import LEARNING_PRIORITY, EngineSampler

TRY = "smollm2@try.run_1.1.0123456789ab"
PARAMS = SamplingParams(max_tokens=6, temperature=1.0, seed=5)


def ask(text: str) -> list[ChatMessage]:
    return [{"role": "user", "content": text}]


PROMPTS = [ask(f"Question {number}") for number in range(8)]


class Eventful(FakeEngine):
    """Something happens to it when it has been asked so many times."""

    def __init__(self) -> None:
        super().__init__()
        self.base = "smollm2@base"
        self.answered: list[int] = []
        """Seeds of the requests that were answered."""
        self.lost_after: int | None = None
        """Chats after which it is another process, which knows no adapter."""
        self.dies_after: int | None = None
        """Chats after which it fails, and says that it is not well."""
        self.is_well = True
        self.order: list[str] = []

    async def _chat(self, request: Request) -> Response:
        if len(self.bodies) == self.lost_after:
            self.lost_after = None
            self.lose_adapters()
        if len(self.bodies) == self.dies_after:
            self.dies_after, self.is_well, self.refuses_chat = None, False, 500
        self.order.append("chat")
        answer = await super()._chat(request)
        if answer.status_code == 200:
            self.answered.append((await request.json()).get("seed"))
        return answer

    async def _unload(self, request: Request) -> Response:
        self.order.append("unload")
        return await super()._unload(request)

    async def _health(self, request: Request) -> Response:
        if self.is_well:
            return Response()
        self.is_well, self.refuses_chat = True, None  # its successor
        return Response(status_code=503)


@pytest.fixture
def engine() -> Eventful:
    return Eventful()


@pytest.fixture
def served(engine: Eventful) -> Iterator[Served]:
    with serve(engine.app()) as served:
        yield served


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and pauses as short as the fake engine's replies."""
    monkeypatch.setattr(turns, "PAUSE_S", 0.01)
    monkeypatch.setattr(turns, "LOOK_S", 0.01)
    monkeypatch.setattr(turns, "HEALED_WITHIN_S", 1.0)


@pytest.fixture
def patient(settings: Settings, served: Served) -> Settings:
    engine = EngineSettings(url=served.url, start_timeout_s=20)
    return settings.model_copy(update={"engine": engine})


def sampler(settings: Settings, **given: Any) -> EngineSampler:
    return EngineSampler(settings, "smollm2@base", **given)


def test_a_rollout_tells_its_tokens_as_they_were_sampled(
    patient: Settings, engine: Eventful
) -> None:
    [[rollout]] = sampler(patient).rollouts(PROMPTS[:1], PARAMS)

    assert rollout.text.startswith("smollm2@base")
    assert rollout.prompt_ids == (1, 2, 3, 4, 5, 6, 7)
    assert rollout.ids == (0, 1, 2, 3, 4, 5)
    assert rollout.logprobs == (-0.25, -0.5, -0.75, -1.0, -1.25, -1.5)
    assert not rollout.is_truncated
    [body] = engine.bodies
    assert (body["priority"], body["top_logprobs"]) == (LEARNING_PRIORITY, 0)
    # What a model's generation_config might set would make it another policy.
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)


def test_a_rollout_that_was_cut_off_says_so(patient: Settings, engine: Eventful) -> None:
    engine.ends_by = "length"

    [[rollout]] = sampler(patient).rollouts(PROMPTS[:1], PARAMS)

    assert rollout.is_truncated


def test_a_group_is_of_one_prompt_and_each_has_its_own_draw(
    patient: Settings, engine: Eventful
) -> None:
    equal = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    seen: list[tuple[int, int]] = []

    groups = sampler(patient).rollouts(
        equal, PARAMS, group=3, on_progress=lambda *done: seen.append(done)
    )
    first = drawn(engine)
    engine.bodies.clear()
    sampler(patient).rollouts(equal, PARAMS, group=3)

    assert [len(group) for group in groups] == [3, 3, 3]
    assert seen[-1] == (9, 9)
    assert len({seed for seeds in first.values() for seed in seeds}) == 9
    assert drawn(engine) == first  # the same call draws the same


def test_a_prompt_that_the_engine_refuses_has_no_rollouts(
    patient: Settings, engine: Eventful
) -> None:
    engine.context = 1000
    asked = [PROMPTS[0], ask("word " * 400), PROMPTS[1]]

    groups = sampler(patient).rollouts(asked, PARAMS, group=2)
    alone = sampler(patient).rollouts(asked[1:2], PARAMS)

    assert [len(group) for group in groups] == [2, 0, 2]
    assert alone == [()]


def test_a_reply_to_a_prompt_that_may_be_refused_is_empty(
    patient: Settings, engine: Eventful
) -> None:
    engine.context = 1000
    asked = [PROMPTS[0], ask("word " * 400)]
    params = replace(PARAMS, may_be_refused=True)

    texts = sampler(patient).chat(asked, params)
    replies = sampler(patient).replies(asked, params)

    assert [bool(text) for text in texts] == [True, False]
    assert [reply.finish_reason for reply in replies] == ["stop", REFUSED]
    with pytest.raises(SamplingError, match="maximum context length"):
        sampler(patient).chat(asked, PARAMS)


def test_an_engine_that_refuses_whatever_is_asked_ends_the_call(
    patient: Settings, engine: Eventful
) -> None:
    engine.refuses_chat = 400

    with pytest.raises(SamplingError, match="refuses to chat"):
        sampler(patient).rollouts(PROMPTS, PARAMS)


def test_neighbouring_seeds_have_no_draw_in_common(patient: Settings, engine: Eventful) -> None:
    for seed in range(3):
        params = SamplingParams(max_tokens=6, temperature=1.0, seed=seed)
        sampler(patient).rollouts(PROMPTS[:2], params, group=4)

    assert len({body["seed"] for body in engine.bodies}) == 24


def test_without_a_seed_the_engine_draws_as_it_likes(patient: Settings, engine: Eventful) -> None:
    sampler(patient).rollouts(PROMPTS[:1], SamplingParams(temperature=1.0), group=2)

    assert ["seed" in body for body in engine.bodies] == [False, False]


def without_ids(choice: dict[str, Any]) -> None:
    del choice["token_ids"]


def one_too_few(choice: dict[str, Any]) -> None:
    choice["logprobs"]["content"].pop()


def others(choice: dict[str, Any]) -> None:
    choice["logprobs"]["content"][0]["token"] = "token_id:77"


def words(choice: dict[str, Any]) -> None:
    choice["logprobs"]["content"][0]["token"] = "the"


def unknown(choice: dict[str, Any]) -> None:
    choice["logprobs"]["content"][0]["logprob"] = -9999.0


def above_one(choice: dict[str, Any]) -> None:
    choice["logprobs"]["content"][0]["logprob"] = 0.5


def none(choice: dict[str, Any]) -> None:
    choice["logprobs"] = None


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without_ids, "no token ids"),
        (one_too_few, "5 log-probabilities of 6 tokens"),
        (none, "0 log-probabilities of 6 tokens"),
        (others, "of other tokens"),
        (words, "without ids"),
        (unknown, "does not know the log-probability"),
        (above_one, "does not know the log-probability"),
    ],
)
def test_a_reply_that_lacks_something_is_no_rollout(
    patient: Settings,
    engine: Eventful,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Any,
    complaint: str,
) -> None:
    whole = ChatForm._choice

    def spoilt(form: ChatForm, index: int) -> dict[str, Any]:
        choice = whole(form, index)
        spoil(choice)
        return choice

    monkeypatch.setattr(ChatForm, "_choice", spoilt)

    with pytest.raises(SamplingError, match=complaint):
        sampler(patient).rollouts(PROMPTS[:1], PARAMS)


def test_a_conversation_that_the_assistant_has_begun_is_gone_on_with(
    patient: Settings, engine: Eventful
) -> None:
    begun = [*ask("What is 3 + 5?"), {"role": "assistant", "content": "It is"}]
    asked = sampler(patient)

    asked.chat([begun], PARAMS)
    asked.replies([begun], PARAMS)
    asked.rollouts([begun], PARAMS)
    asked.rollouts([ask("What is 3 + 5?")], PARAMS)

    marks = [
        (body.get("continue_final_message"), body.get("add_generation_prompt"))
        for body in engine.bodies
    ]
    assert marks == [(True, False)] * 3 + [(None, None)]


def test_an_engine_that_was_restarted_gets_the_adapter_again_and_only_the_rest(
    patient: Settings, engine: Eventful, tmp_path: Path
) -> None:
    engine.lost_after = 10
    trial = EngineSampler(patient, TRY, folder=tmp_path)
    trial.load()

    groups = trial.rollouts(PROMPTS, PARAMS, group=4)

    assert [len(group) for group in groups] == [4] * 8
    assert engine.loads == [TRY, TRY]
    assert engine.adapters == {TRY: str(tmp_path)}
    assert set(Counter(engine.answered).values()) == {1}  # nothing was answered twice
    assert len(engine.answered) == 32
    assert trial.unload()
    assert engine.adapters == {}


def test_an_adapter_that_the_next_engine_will_not_take_is_an_error(
    patient: Settings, engine: Eventful, tmp_path: Path
) -> None:
    trial = EngineSampler(patient, TRY, folder=tmp_path)
    engine.refuses_load = 400

    with pytest.raises(SamplingError, match="does not take"):
        trial.rollouts(PROMPTS[:1], PARAMS)


def test_an_engine_that_ends_in_the_middle_is_waited_for(
    patient: Settings, engine: Eventful
) -> None:
    engine.dies_after = 5

    groups = sampler(patient).rollouts(PROMPTS, PARAMS, group=2)

    assert [len(group) for group in groups] == [2] * 8
    assert set(Counter(engine.answered).values()) == {1}


def test_an_engine_that_is_well_and_fails_again_is_an_error(
    patient: Settings, engine: Eventful
) -> None:
    engine.refuses_chat = 500

    with pytest.raises(SamplingError, match="the engine is dead"):
        sampler(patient).rollouts(PROMPTS[:1], PARAMS)

    assert engine.order == ["chat"] * 2


def test_weights_that_nobody_can_give_back_are_an_error(
    patient: Settings, engine: Eventful
) -> None:
    with pytest.raises(SamplingError, match="does not exist"):
        EngineSampler(patient, "smollm2@v9.0a1b2c3d").rollouts(PROMPTS[:1], PARAMS)


def test_the_champion_is_healed_by_the_gateway_and_waited_for(
    patient: Settings, engine: Eventful
) -> None:
    name = "smollm2@v1.0a1b2c3d"
    engine.adapters[name] = "/v1"
    engine.lost_after = 4
    has_ended = Event()

    def heal() -> None:
        while not has_ended.wait(0.05):
            engine.adapters.setdefault(name, "/v1")

    with ThreadPoolExecutor(1) as gateway:
        healing = gateway.submit(heal)
        try:
            groups = EngineSampler(patient, name).rollouts(PROMPTS, PARAMS)
        finally:
            has_ended.set()
        healing.result()

    assert len(groups) == 8
    assert engine.lost_after is None


def polite(settings: Settings, **learning: Any) -> Settings:
    given = {"rollout_concurrency": 6, "rollouts_beside_users": 2, "users_gone_s": 60.0}
    return settings.model_copy(update={"learning": LearningSettings(**{**given, **learning})})


def test_while_users_are_there_few_rollouts_are_in_flight(
    patient: Settings, engine: Eventful
) -> None:
    engine.users, engine.token_s = 3, 0.002

    sampler(polite(patient)).rollouts(PROMPTS, PARAMS)

    assert engine.most_running == 2
    assert len(engine.answered) == 8


def test_when_users_come_the_youngest_rollouts_leave_and_are_asked_again(
    patient: Settings, engine: Eventful
) -> None:
    engine.token_s = 0.02

    def come(done: int, total: int) -> None:
        engine.users = 1

    asked = sampler(polite(patient))
    groups = asked.rollouts(PROMPTS, PARAMS, group=2, on_progress=come)

    assert [len(group) for group in groups] == [2] * 8
    assert engine.most_running > 2
    assert engine.cancelled > 0
    assert asked.was_cut
    seeds = Counter(body["seed"] for body in engine.bodies)
    assert len(seeds) == 16  # what was asked again drew the same
    assert engine.cancelled == sum(seeds.values()) - 16


def test_when_users_are_gone_all_come_back(patient: Settings, engine: Eventful) -> None:
    engine.users, engine.token_s = 1, 0.005

    def go(done: int, total: int) -> None:
        engine.users = 0
        engine.most_running = max(engine.running, engine.most_running)

    sampler(polite(patient, users_gone_s=0.05)).rollouts(PROMPTS, PARAMS, group=4, on_progress=go)

    assert engine.most_running > 2


def test_an_engine_that_does_not_tell_its_load_is_used_to_the_full(
    patient: Settings, engine: Eventful
) -> None:
    engine.users, engine.tells_load, engine.token_s = 3, False, 0.005

    sampler(polite(patient)).rollouts(PROMPTS, PARAMS)

    assert engine.most_running > 2


def test_samplers_that_share_manners_are_no_users_to_each_other(
    patient: Settings, engine: Eventful
) -> None:
    engine.token_s = 0.01
    settings = polite(patient)
    shared = Courtesy(Manners.of(settings.learning))
    pair = [sampler(settings, courtesy=shared) for _ in range(2)]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: one.rollouts(PROMPTS, PARAMS, group=2), pair))

    assert engine.most_running > 2
    assert shared.aborted == engine.cancelled == 0


def test_a_run_can_be_stopped_while_users_hold_it_up(patient: Settings, engine: Eventful) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    engine.hanging_model = "smollm2@base"
    engine.users = 1
    asked = sampler(polite(patient))

    with pytest.raises(Stop):
        asked.rollouts(PROMPTS, PARAMS, on_progress=stop)
    assert asked.was_cut


def test_a_name_is_unloaded_only_when_what_was_asked_under_it_has_ended(
    patient: Settings, engine: Eventful, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    trial = EngineSampler(patient, TRY, folder=tmp_path)
    trial.load()
    with pytest.raises(Stop):
        trial.rollouts(PROMPTS, PARAMS, group=8, on_progress=stop)

    assert trial.unload()

    assert engine.order[-2:] == ["chat", "unload"]
    # Requests that were on their way when it stopped may have come in since; one was asked to wait.
    assert [body["max_tokens"] for body in engine.bodies].count(1) == 1
    assert engine.bodies[-1]["max_tokens"] == 1


async def test_the_load_is_that_of_all_engines_behind_an_address(
    engine: Eventful, served: Served
) -> None:
    engine.users = 3
    async with open_control(EngineSettings(), served.url) as control:
        load = await control.load()
        engine.finished = {"stop": 5, "length": 2, "abort": 9}
        counting = await control.load()
        engine.tells_load = False
        silent = await control.load()

    assert load == EngineLoad(running=3, waiting=0, finished=None)
    assert counting == EngineLoad(running=3, waiting=0, finished=7)
    assert silent is None


def drawn(engine: FakeEngine) -> dict[str, list[int]]:
    """The seeds by prompt."""
    seeds: dict[str, list[int]] = {}
    for body in engine.bodies:
        seeds.setdefault(body["messages"][0]["content"], []).append(body["seed"])
    return {prompt: sorted(found) for prompt, found in seeds.items()}
