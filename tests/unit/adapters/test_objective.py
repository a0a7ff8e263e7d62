"""Samples to a loss: what is packed together stays apart, and every way of splitting is one loss."""

import dataclasses
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from adapters.spec import LossSpec
from adapters.training import losses
from adapters.training.batch import (
    RowCost,
    Unit,
    as_anchor,
    lesson,
    members,
    pack,
    split_by_tokens,
)
from adapters.training.logprobs import selective_logprobs, target_logits
from adapters.training.objective import component_losses, needs_reference
from adapters.training.trainer import microbatches
from adapters.types import Component, PreferencePair, TopK, TrainingSample, reply_mask

EXACT = {"atol": 1e-5, "rtol": 1e-5}
PROMPT = tuple(range(20, 40))


@pytest.fixture(scope="module")
def model(random_model: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(random_model).eval()


@pytest.fixture(scope="module")
def precise_model(random_model: Path) -> LlamaForCausalLM:
    """In float64, where what differs is no rounding."""
    return AutoModelForCausalLM.from_pretrained(random_model).eval().double()


@pytest.fixture(scope="module")
def reference(random_model: Path) -> LlamaForCausalLM:
    other = AutoModelForCausalLM.from_pretrained(random_model).eval()
    with torch.no_grad():
        for index, parameter in enumerate(other.parameters()):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=seeded(index)))
    return other


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_alone(model: LlamaForCausalLM, sample: TrainingSample) -> Tensor:
    """The plain way: the sequence by itself, all logits, then those that predict a target."""
    logits = model(torch.tensor([sample.ids])).logits[0]
    return logits[[i - 1 for i, flag in enumerate(sample.is_trained) if flag]]


def targets_of(sample: TrainingSample) -> Tensor:
    return torch.tensor([t for t, f in zip(sample.ids, sample.is_trained, strict=True) if f])


def rollout(
    seed: int, *, prompt: tuple[int, ...] = PROMPT, group: str | None = "g"
) -> TrainingSample:
    """A sampled answer with everything that any component could ask for."""
    draw = random.Random(seed)
    reply = tuple(draw.randrange(258) for _ in range(draw.randint(2, 9)))
    count = len(reply)

    def numbers(low: float, high: float) -> tuple[float, ...]:
        return tuple(draw.uniform(low, high) for _ in range(count))

    return TrainingSample(
        prompt + reply,
        reply_mask(len(prompt), len(prompt) + count),
        weights={Component.RL: numbers(0.1, 1), Component.REF_KL: numbers(0.1, 1)},
        mass=1.0,
        group=group,
        advantages=numbers(-1, 1),
        sampler_logprobs=numbers(-9, -1),
        old_logprobs=numbers(-9, -1),
        teacher=tuple(
            TopK(tuple(draw.sample(range(258), k)), tuple(math.log(0.9 / k) for _ in range(k)))
            for k in (draw.randint(1, 4) for _ in range(count))
        ),
    )


SAMPLE = st.builds(
    lambda shared, own, reply, group: TrainingSample(
        PROMPT[:shared] + tuple(own) + tuple(t for t, _ in reply) + (7,),
        (False,) * (shared + len(own)) + tuple(f for _, f in reply) + (True,),
        weights={Component.CE: (1.0,) * (sum(f for _, f in reply) + 1)},
        mass=1.0,
        group=group,
    ),
    st.integers(1, len(PROMPT)),
    st.lists(st.integers(0, 257), max_size=4),
    st.lists(st.tuples(st.integers(0, 257), st.booleans()), max_size=8),
    st.sampled_from([None, "a", "b"]),
)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(samples=st.lists(SAMPLE, min_size=1, max_size=6))
def test_packed_logits_equal_those_of_each_sequence_alone(
    precise_model: LlamaForCausalLM, samples: list[TrainingSample]
) -> None:
    batch = pack(samples)

    with torch.no_grad():
        packed = target_logits(precise_model, batch)
        for index, sample in enumerate(samples):
            own = batch.samples_N == index
            torch.testing.assert_close(
                packed[own], logits_alone(precise_model, sample), atol=1e-6, rtol=0
            )
            assert batch.targets_N[own].equal(targets_of(sample))


def test_rollouts_of_each_prompt_share_it_and_all_share_the_system_prompt() -> None:
    other = PROMPT[:8] + tuple(range(60, 75))
    samples = [rollout(seed, group="a") for seed in range(3)]
    samples += [rollout(seed, prompt=other, group="b") for seed in range(3)]

    row = pack(samples).input_ids_1T[0]

    own_tokens = sum(sample.trained_count + 1 for sample in samples)
    assert len(row) == 8 + (len(PROMPT) - 1 - 8) + (len(other) - 1 - 8) + own_tokens


def test_a_prompt_counts_once_against_the_limit_and_groups_stay_together() -> None:
    samples = [rollout(seed, group=f"g{seed % 2}") for seed in range(8)]

    batches = list(split_by_tokens(samples, 20 + 4 * 10))

    assert sum(map(len, batches)) == 8
    assert [len({s.group for s in batch}) for batch in batches] == [1] * len(batches)
    assert all(pack(batch).input_ids_1T.numel() <= 60 for batch in batches)
    assert len(batches) == 2


def test_rows_end_where_looking_at_each_other_costs_more_than_another_pass() -> None:
    cost = RowCost(per_look=0.01, per_row=10.0)
    units = [lesson(tuple(range(n, n + 20)), 1) for n in range(6)]
    sharing = [rollout(seed) for seed in range(6)]

    dear = list(split_by_tokens(units, 1000, cost))
    free = list(split_by_tokens(units, 1000))

    # A third one would be looked at by 40 others, and look at them: 2 x 40 x 20 x 0.01 = 16 > 10.
    assert [len(batch) for batch in dear] == [2, 2, 2]
    assert [len(batch) for batch in free] == [6]
    assert len(list(split_by_tokens(sharing, 1000, cost))) == 1


def naive_loss(
    model: LlamaForCausalLM, reference: LlamaForCausalLM, units: list[Unit], spec: LossSpec
) -> Tensor:
    """Each sequence by itself, each component as it is defined, no packing and no splitting."""
    total = torch.zeros(())
    for unit in units:
        for sample in members(unit):
            total = total + naive_sample_loss(model, reference, sample, spec)
        if isinstance(unit, PreferencePair):
            total = total + naive_pair_loss(model, reference, unit, spec)
    return total / sum(unit.mass for unit in units)


def naive_sample_loss(
    model: LlamaForCausalLM, reference: LlamaForCausalLM, sample: TrainingSample, spec: LossSpec
) -> Tensor:
    logits = logits_alone(model, sample)
    with torch.no_grad():
        base = logits_alone(reference, sample)
    chosen = selective_logprobs(logits, targets_of(sample))
    total = torch.zeros(())
    for component, weights in sample.weights.items():
        for n, weight in enumerate(weights):
            place = slice(n, n + 1)
            if component is Component.CE:
                loss = -chosen[place]
            elif component is Component.REF_KL:
                loss = losses.reference_kl(logits[place], base[place])
            elif component is Component.DISTILL:
                teacher = (sample.teacher or ())[n]
                ids, logprobs = torch.tensor([teacher.ids]), torch.tensor([teacher.logprobs])
                loss = losses.distillation(logits[place], ids, logprobs, beta=spec.distill_beta)
            else:
                old = (sample.old_logprobs or chosen.detach().tolist())[n]
                engine = (sample.sampler_logprobs or [old] * len(weights))[n]
                ratio = (chosen[n] - old).exp()
                gain = (sample.advantages or ())[n]
                clipped = ratio.clamp(1 - spec.clip_low, 1 + spec.clip_high)
                trust = min(math.exp(old - engine), spec.importance_cap)
                loss = -torch.min(ratio * gain, clipped * gain)[None] * trust
            total = total + weight * loss[0]
    return total


def naive_pair_loss(
    model: LlamaForCausalLM, reference: LlamaForCausalLM, pair: PreferencePair, spec: LossSpec
) -> Tensor:
    ratios = []
    for sample in members(pair):
        with torch.no_grad():
            base = selective_logprobs(logits_alone(reference, sample), targets_of(sample)).sum()
        own = selective_logprobs(logits_alone(model, sample), targets_of(sample)).sum()
        ratios.append(own - base)
    margin = spec.dpo_beta * (ratios[0] - ratios[1])
    return -pair.weight * margin.sigmoid().log()


def mixture() -> list[Unit]:
    """Every component, with and without what is optional, in one step."""
    bare = dataclasses.replace(rollout(3), old_logprobs=None, sampler_logprobs=None)
    pupil = dataclasses.replace(
        rollout(4), weights={Component.DISTILL: (0.5,) * rollout(4).trained_count}
    )
    chosen, rejected = (dataclasses.replace(rollout(s), weights={}) for s in (5, 6))
    tuned = dataclasses.replace(chosen, weights={Component.CE: (0.2,) * chosen.trained_count})
    return [
        lesson((*PROMPT, 1, 2, 3), 20),
        as_anchor(lesson((*PROMPT[:4], 9, 8), 4)),
        rollout(1),
        rollout(2, group=None),
        bare,
        pupil,
        PreferencePair(tuned, rejected, weight=0.8),
        PreferencePair(rejected, chosen),
    ]


@pytest.mark.parametrize("limit", [16, 70, 10_000])
def test_any_split_of_a_step_gives_the_naive_loss_and_gradient(
    model: LlamaForCausalLM, reference: LlamaForCausalLM, limit: int
) -> None:
    spec = LossSpec(distill_beta=0.3, dpo_beta=0.2)
    units = mixture()
    probe = model.model.layers[0].self_attn.q_proj.weight

    model.zero_grad()
    naive = naive_loss(model, reference, units, spec)
    naive.backward()
    expected = probe.grad.clone()
    model.zero_grad()
    total = 0.0
    for batch, is_reference_needed in microbatches(units, limit=limit, losses=spec):
        with torch.no_grad():
            base = target_logits(reference, batch) if is_reference_needed else None
        parts = component_losses(target_logits(model, batch), batch, spec, reference_NV=base)
        loss = sum(parts.values())
        loss.backward()
        total += float(loss.detach())

    assert total == pytest.approx(float(naive.detach()), rel=1e-5)
    torch.testing.assert_close(probe.grad, expected, **EXACT)
    model.zero_grad()


def test_reference_logprobs_that_are_given_spare_the_reference_pass(
    model: LlamaForCausalLM, reference: LlamaForCausalLM
) -> None:
    spec = LossSpec(reference_kl="k3")
    sample = rollout(1)
    with torch.no_grad():
        known = selective_logprobs(logits_alone(reference, sample), targets_of(sample))
    given = dataclasses.replace(sample, reference_logprobs=tuple(known.tolist()))
    pair = PreferencePair(dataclasses.replace(given, weights={}), given)
    results = []
    for unit in (given, sample):
        batch = pack([unit])
        with torch.no_grad():
            base = target_logits(reference, batch) if needs_reference(unit, spec) else None
            parts = component_losses(target_logits(model, batch), batch, spec, reference_NV=base)
        results.append(parts[Component.REF_KL])

    assert not needs_reference(given, spec)
    assert not needs_reference(pair, spec)
    assert needs_reference(given, LossSpec(reference_kl="full"))
    assert needs_reference(PreferencePair(sample, given), spec)
    torch.testing.assert_close(*results)


def test_what_is_missing_beside_given_reference_logprobs_is_computed(
    model: LlamaForCausalLM, reference: LlamaForCausalLM
) -> None:
    spec = LossSpec()
    samples = [dataclasses.replace(rollout(seed), weights={}) for seed in (1, 2)]
    with torch.no_grad():
        known = selective_logprobs(logits_alone(reference, samples[0]), targets_of(samples[0]))
        mixed = PreferencePair(
            dataclasses.replace(samples[0], reference_logprobs=tuple(known.tolist())), samples[1]
        )
        batch = pack([mixed])
        base, logits = target_logits(reference, batch), target_logits(model, batch)
        parts = component_losses(logits, batch, spec, reference_NV=base)
        expected = naive_pair_loss(model, reference, PreferencePair(*samples), spec)

    assert needs_reference(mixed, spec)
    torch.testing.assert_close(parts["dpo"], expected, **EXACT)


def test_tokens_between_the_trained_ones_are_seen_but_not_learnt(model: LlamaForCausalLM) -> None:
    """A conversation of several turns: the user's words in the middle are not the model's."""
    flags = (False, True, True, False, False, True)
    sample = TrainingSample((5, 6, 7, 8, 9, 10), flags, {Component.CE: (1.0,) * 3}, mass=3.0)

    batch = pack([sample])

    assert batch.targets_N.tolist() == [6, 7, 10]
    torch.testing.assert_close(target_logits(model, batch), logits_alone(model, sample), **EXACT)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_trained": (True, True, True)}, "not the first"),
        ({"is_trained": (False, False, False)}, "at least one"),
        ({"is_trained": (False, True)}, "one flag each"),
        ({"mass": 0.0}, "above 0"),
        ({"mass": math.nan}, "above 0"),
        ({"weights": {Component.CE: (1.0,)}}, "1 entries for 2"),
        ({"weights": {Component.CE: (1.0, math.inf)}}, "not finite"),
        ({"weights": {Component.RL: (1.0, 1.0)}}, "advantages"),
        ({"sampler_logprobs": (-1.0, math.nan)}, "sampler_logprobs holds"),
        ({"weights": {Component.DISTILL: (1.0, 1.0)}}, "teacher"),
        (
            {
                "weights": {Component.DISTILL: (1.0, 1.0)},
                "teacher": (TopK((1,), (0.5,)), TopK((1,), (-1.0,))),
            },
            "above 0 or not a number",
        ),
        (
            {
                "weights": {Component.DISTILL: (1.0, 1.0)},
                "teacher": (TopK((1, 1), (-1.0, -1.0)), TopK((1,), (-1.0,))),
            },
            "twice",
        ),
        (
            {
                "weights": {Component.DISTILL: (1.0, 1.0)},
                "teacher": (TopK((), ()), TopK((1,), (-1.0,))),
            },
            "at least one token",
        ),
    ],
)
def test_a_sample_that_cannot_be_trained_is_refused(
    changes: dict[str, object], reason: str
) -> None:
    good = TrainingSample((5, 6, 7), (False, True, True), {Component.CE: (1.0, 1.0)}, mass=2.0)

    with pytest.raises(ValueError, match=reason):
        dataclasses.replace(good, **changes)
