"""Rollouts by transformers, beside the engine's: the same form, checked by the model itself."""

import math

import pytest
import torch

from adapters.types import ChatMessage, SamplingParams
from benchmarks.real_engine import TINY_MODEL
from benchmarks.torch_decoder import TorchSampler

torch.set_num_threads(1)  # small work on few cores: threads only wait for each other

PARAMS = SamplingParams(max_tokens=6, temperature=2.0, top_p=0.99, seed=3)


def ask(text: str) -> list[ChatMessage]:
    return [{"role": "user", "content": text}]


PROMPTS = [ask("Tell me about cats."), ask("Hi")]


@pytest.fixture(scope="module")
def sampler() -> TorchSampler:
    return TorchSampler.load(TINY_MODEL)


def test_a_rollout_is_what_the_model_says_of_it_at_temperature_one(sampler: TorchSampler) -> None:
    for group in sampler.rollouts(PROMPTS, PARAMS, group=2):
        assert len(group) == 2
        assert len({rollout.prompt_ids for rollout in group}) == 1
        for rollout in group:
            ids = [*rollout.prompt_ids, *rollout.ids]
            with torch.inference_mode():
                told = sampler.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            at = len(rollout.prompt_ids) - 1
            wanted = [told[at + n, token].item() for n, token in enumerate(rollout.ids)]
            assert rollout.logprobs == pytest.approx(wanted, abs=1e-4)
            assert all(map(math.isfinite, rollout.logprobs))
            assert 0 < len(rollout.ids) <= 6


def test_the_same_seed_draws_the_same_and_a_group_differs(sampler: TorchSampler) -> None:
    first = sampler.rollouts(PROMPTS, PARAMS, group=4)

    assert sampler.rollouts(PROMPTS, PARAMS, group=4) == first
    assert len({rollout.ids for rollout in first[0]}) > 1


def test_a_rollout_ends_with_its_last_token_and_says_when_it_was_cut(sampler: TorchSampler) -> None:
    longest = SamplingParams(max_tokens=40)
    [[whole], [other]] = sampler.rollouts(PROMPTS, longest)
    [[cut]] = sampler.rollouts(PROMPTS[:1], SamplingParams(max_tokens=2))

    end = sampler.model.generation_config.eos_token_id
    for rollout in (whole, other):
        assert rollout.is_truncated or rollout.ids.index(end) == len(rollout.ids) - 1
    assert cut.is_truncated
    assert cut.ids == whole.ids[:2]


def test_what_the_assistant_has_begun_is_gone_on_with(sampler: TorchSampler) -> None:
    begun = [*PROMPTS[0], {"role": "assistant", "content": "Cats are"}]
    [[fresh]] = sampler.rollouts(PROMPTS[:1], PARAMS)
    [[gone_on]] = sampler.rollouts([begun], PARAMS)

    prompt = sampler.tokenizer.decode(gone_on.prompt_ids)
    assert prompt.endswith("Cats are")
    assert prompt.startswith(sampler.tokenizer.decode(fresh.prompt_ids))
