"""The mathematics of the loss components, against naive references and for any input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from torch import Tensor

from adapters.training import advantages, losses

FINITE = st.floats(-8, 8, width=32)
REWARDS = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=12)
BETA = st.floats(0, 1)


def rows(count: int = 2, width: int = 6) -> st.SearchStrategy[Tensor]:
    """Logits of `count` by 4 places by `width` words."""
    return hypothesis_numpy.arrays("float32", (count, 4, width), elements=FINITE).map(
        torch.from_numpy
    )


def top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    found = logits.log_softmax(-1).topk(k)
    return found.indices, found.values


@given(rows())
def test_reference_kl_is_never_negative_and_zero_at_the_reference(pair: Tensor) -> None:
    model, reference = pair

    assert (losses.reference_kl(model, reference) >= -1e-6).all()
    torch.testing.assert_close(losses.reference_kl(model, model), torch.zeros(4), atol=1e-6, rtol=0)


@given(rows())
def test_k3_is_never_negative_and_zero_at_the_reference(pair: Tensor) -> None:
    model, reference = pair.flatten(1)

    assert (losses.reference_kl_k3(model, reference) >= -1e-5).all()
    assert (losses.reference_kl_k3(model, model) == 0).all()


def test_k3_is_the_kl_on_average_over_the_models_samples() -> None:
    model, reference = torch.randn(2, 11, generator=torch.Generator().manual_seed(0)).log_softmax(1)

    expected = (model.exp() * (model - reference)).sum()
    over_all_tokens = (model.exp() * losses.reference_kl_k3(model, reference)).sum()

    torch.testing.assert_close(over_all_tokens, expected)


@given(rows(), BETA, st.integers(1, 6))
def test_distillation_is_never_negative_and_zero_at_the_teacher(
    pair: Tensor, beta: float, k: int
) -> None:
    student, teacher = pair

    assert (losses.distillation(student, *top(teacher, k), beta=beta) >= -1e-5).all()
    at_teacher = losses.distillation(teacher, *top(teacher, k), beta=beta)
    torch.testing.assert_close(at_teacher, torch.zeros(4), atol=2e-5, rtol=0)


@given(rows(), st.integers(1, 5))
def test_fewer_teacher_tokens_never_show_a_larger_forward_divergence(pair: Tensor, k: int) -> None:
    student, teacher = pair
    full = losses.divergence(student.log_softmax(-1), teacher.log_softmax(-1), beta=0.0)

    assert (
        losses.distillation(student, *top(teacher, k), beta=0.0) <= full * (1 + 1e-3) + 1e-4
    ).all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_mass_outside_the_teachers_tokens_is_one_bucket(beta: float) -> None:
    student, teacher = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(1)).double()
    ids, logprobs = top(teacher, 3)
    p, q = teacher.softmax(-1), student.softmax(-1)
    p_top, q_top = p.gather(1, ids), q.gather(1, ids)
    p_all = torch.cat([p_top, 1 - p_top.sum(1, keepdim=True)], 1)
    q_all = torch.cat([q_top, 1 - q_top.sum(1, keepdim=True)], 1)
    mixture = beta * p_all + (1 - beta) * q_all

    to_mixture = (p_all * (p_all / mixture).log()).sum(1), (q_all * (q_all / mixture).log()).sum(1)
    expected = {
        0.0: (p_all * (p_all / q_all).log()).sum(1),
        1.0: (q_all * (q_all / p_all).log()).sum(1),
    }.get(beta, beta * to_mixture[0] + (1 - beta) * to_mixture[1])

    found = losses.distillation(student, ids, logprobs, beta=beta)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_places_with_fewer_tokens_count_and_learn_as_if_alone(beta: float) -> None:
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(2), requires_grad=True)
    ids = torch.tensor([[1, 4], [2, 0]])
    logprobs = torch.tensor([[-0.5, -1.5], [-0.7, -torch.inf]])

    both = losses.distillation(logits, ids, logprobs, beta=beta)
    alone = losses.distillation(logits[1:], ids[1:, :1], logprobs[1:, :1], beta=beta)

    torch.testing.assert_close(both[1:], alone)
    (together,) = torch.autograd.grad(both.sum(), logits, retain_graph=True)
    (by_itself,) = torch.autograd.grad(alone.sum(), logits)
    assert together.isfinite().all()
    torch.testing.assert_close(together[1], by_itself[1])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_teacher_sure_of_itself_still_gives_a_finite_gradient(beta: float) -> None:
    logits = torch.tensor([[30.0, -30.0, 0.0]], requires_grad=True)

    loss = losses.distillation(logits, torch.tensor([[1]]), torch.tensor([[0.0]]), beta=beta)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)

    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def surrogate(logprobs: Tensor, advantages_: Tensor, old: Tensor, sampler: Tensor) -> Tensor:
    return losses.policy_gradient(
        logprobs,
        advantages_,
        old_N=old,
        sampler_N=sampler,
        clip_low=0.2,
        clip_high=0.3,
        importance_cap=2.0,
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "is_pushed"),
    [
        (1.0, 1.0, True),
        (1.29, 1.0, True),
        (1.31, 1.0, False),
        (0.5, 1.0, True),
        (0.81, -1.0, True),
        (0.79, -1.0, False),
        (1.5, -1.0, True),
    ],
)
def test_a_ratio_beyond_the_clip_no_longer_pushes_further_out(
    ratio: float, advantage: float, is_pushed: bool
) -> None:
    old = torch.tensor([-2.0])
    logprobs = (old + math.log(ratio)).requires_grad_()

    loss = surrogate(logprobs, torch.tensor([advantage]), old, old)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)

    torch.testing.assert_close(gradient[0], torch.tensor(-ratio * advantage if is_pushed else 0.0))


@pytest.mark.parametrize(("engine_gap", "weight"), [(0.0, 1.0), (math.log(1.5), 1.5), (3.0, 2.0)])
def test_importance_weight_is_truncated_and_carries_no_gradient(
    engine_gap: float, weight: float
) -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    old = logprobs.detach()

    loss = surrogate(logprobs, torch.tensor([1.0]), old, old - engine_gap)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)

    torch.testing.assert_close(loss.detach(), torch.tensor([-weight]))
    torch.testing.assert_close(gradient, torch.tensor([-weight]))


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 0.49), st.floats(0.01, 2))
def test_preference_loss_equals_the_naive_one(
    chosen: float, rejected: float, smoothing: float, beta: float
) -> None:
    def likelihood(x: float) -> float:
        return -math.log1p(math.exp(-x))

    margin = beta * (chosen - rejected)
    expected = -(1 - smoothing) * likelihood(margin) - smoothing * likelihood(-margin)
    found = losses.preference(
        torch.tensor([chosen - 3.0]),
        torch.tensor([rejected - 5.0]),
        reference_chosen_P=torch.tensor([-3.0]),
        reference_rejected_P=torch.tensor([-5.0]),
        beta=beta,
        label_smoothing=smoothing,
    )

    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(REWARDS, st.floats(-50, 50, width=32))
def test_advantages_do_not_change_when_all_rewards_shift(rewards: list[float], by: float) -> None:
    shifted = [reward + by for reward in rewards]

    for compute in (advantages.grpo_advantages, advantages.centred_advantages):
        tolerance = 1e-3 * (1 + max(map(abs, compute(rewards))))
        if min(rewards) == max(rewards) or advantages.is_informative(shifted):
            assert compute(shifted) == pytest.approx(compute(rewards), abs=tolerance)


@given(REWARDS)
def test_advantages_sum_to_zero_and_keep_the_order_of_rewards(rewards: list[float]) -> None:
    for compute in (advantages.grpo_advantages, advantages.centred_advantages):
        found = compute(rewards)

        assert sum(found) == pytest.approx(0, abs=1e-6 * (1 + max(map(abs, rewards))) * len(found))
        ranked = sorted(range(len(rewards)), key=rewards.__getitem__)
        assert [found[i] for i in ranked] == sorted(found)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1e9])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_group_of_equal_rewards_teaches_exactly_nothing(reward: float, size: int) -> None:
    assert advantages.grpo_advantages([reward] * size) == [0.0] * size
    assert advantages.centred_advantages([reward] * size) == [0.0] * size
    assert not advantages.is_informative([reward] * size)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        advantages.grpo_advantages([0.0, bad])
