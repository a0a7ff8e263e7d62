"""What learning asks of the engine is no interaction, costs no key, and counts as nobody's request."""

from collections.abc import Sequence

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from adapters.types import SamplingParams
from server.core.settings import Settings
from server.db import ApiKey
from server.services import keys
from server.services.keys import Limits
from tests.support.fake_engine import FakeEngine, Served
from tests.support.world import KEY, World, wait_for
from workers.sampler import EngineSampler

PARAMS = SamplingParams(max_tokens=6, temperature=1.0, seed=5)


@pytest.fixture
def sampler(world: World, served_engine: Served, settings: Settings) -> EngineSampler:
    return EngineSampler(settings, "smollm2@base", [served_engine.url])


def test_a_rollout_leaves_no_trace_with_users(
    world: World, engine: FakeEngine, sampler: EngineSampler
) -> None:
    with world.database.unit_of_work() as session:
        _, secret = keys.create_key(session, "budgeted", ["chat"], limits=Limits(token_budget=99))
    user = world.client(secret)
    learning = [{"role": "user", "content": "a prompt of learning's own"}]

    user.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "mine"}])
    groups = sampler.rollouts([learning], PARAMS, group=5)
    user.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "more"}])

    assert len(groups[0]) == 5
    asked = [body["messages"][0]["content"] for body in engine.bodies]
    assert asked.count("a prompt of learning's own") == 5
    assert len(world.interactions(2)) == 2
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=world.gateway.url, headers=headers) as client:
        metrics = text_string_to_metric_families(client.get("/metrics").text)
        told = [sample for family in metrics for sample in family.samples]
    assert total(told, "everlearn_requests_total") == 2
    assert total(told, "everlearn_tokens_total") == 2 * 13
    wait_for(lambda: used(world) > 0)
    assert used(world) <= 2 * 13


def total(samples: Sequence[Sample], name: str) -> float:
    return sum(sample.value for sample in samples if sample.name == name)


def used(world: World) -> int:
    with world.database.unit_of_work() as session:
        return sum(key.tokens_used for key in session.query(ApiKey))


def test_users_go_first_at_the_engine(
    world: World, engine: FakeEngine, sampler: EngineSampler
) -> None:
    sampler.rollouts([[{"role": "user", "content": "learning"}]], PARAMS)
    world.client().chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "a user"}],
        extra_body={"priority": -5},
    )

    priorities = {body["messages"][0]["content"]: body.get("priority", 0) for body in engine.bodies}
    assert priorities["a user"] < priorities["learning"]
