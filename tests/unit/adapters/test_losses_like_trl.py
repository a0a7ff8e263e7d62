"""The loss components against TRL's own trainers, whose loss functions are run as they stand."""

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.training import advantages, losses
from adapters.training.advantages import TokenWeight

LENGTHS = (3, 5, 1, 4)
SHAPE = (len(LENGTHS), max(LENGTHS))
MASK = torch.tensor([[i < n for i in range(SHAPE[1])] for n in LENGTHS]).int()
MOST_TOKENS = 8
EXACT = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def trl() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says about the versions of others
        from trl.experimental.gkd.gkd_trainer import GKDTrainer
        from trl.experimental.sdft import loss_utils
        from trl.trainer.dpo_trainer import DPOTrainer
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.kto_trainer import KTOTrainer
    return SimpleNamespace(
        dpo=DPOTrainer, grpo=GRPOTrainer, gkd=GKDTrainer, kto=KTOTrainer, sdft=loss_utils
    )


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alone() -> SimpleNamespace:
    """The accelerator of a single process."""
    return SimpleNamespace(
        num_processes=1,
        device=torch.device("cpu"),
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, **_: x,
    )


def grpo_loss(
    trl: SimpleNamespace, inputs: dict[str, Any], logprobs: Tensor, **settings: Any
) -> Tensor:
    """TRL's loss of a batch whose model gives these log-probabilities."""
    trainer = SimpleNamespace(
        accelerator=alone(),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=MOST_TOKENS,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, logprobs.detach(), None),
        **settings,
    )
    fixed = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1),
        "prompt_mask": torch.ones(len(LENGTHS), 1),
        "completion_ids": torch.zeros(SHAPE),
        "completion_mask": MASK,
        "num_items_in_batch": MASK.sum(),
    }
    return trl.grpo._compute_loss(trainer, None, fixed | inputs)


WEIGHTS = {
    "grpo": [advantages.grpo_weight(n) for n in LENGTHS],
    "dr_grpo": [advantages.dr_grpo_weight(MOST_TOKENS) for _ in LENGTHS],
    "dapo": [advantages.dapo_weight(n) for n in LENGTHS],
}


def weighted(per_token: Tensor, weights: list[TokenWeight]) -> Tensor:
    """A step's loss as `TrainingSample` defines it."""
    weight = torch.tensor([w.weight for w in weights])[:, None]
    return (per_token * weight * MASK).sum() / sum(w.mass for w in weights)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("kl", [0.0, 0.04])
def test_rl_and_k3_equal_grpo(trl: SimpleNamespace, loss_type: str, kl: float) -> None:
    logprobs = (random(*SHAPE, seed=0, scale=0.4) - 2).requires_grad_()
    old = logprobs.detach() + random(*SHAPE, seed=1, scale=0.3)
    sampler = old + random(*SHAPE, seed=2, scale=0.8)
    reference = logprobs.detach() + random(*SHAPE, seed=3, scale=0.3)
    gains = torch.tensor([1.5, -0.5, -1.0, 0.0])

    oracle = grpo_loss(
        trl,
        {
            "advantages": gains,
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
            "importance_sampling_ratio": (old - sampler).exp().clamp(max=2.0),
        },
        logprobs,
        loss_type=loss_type,
        beta=kl,
    )
    per_token = losses.policy_gradient(
        logprobs,
        gains[:, None],
        old_N=old,
        sampler_N=sampler,
        clip_low=0.2,
        clip_high=0.28,
        importance_cap=2.0,
    ) + kl * losses.reference_kl_k3(logprobs, reference)
    found = weighted(per_token, WEIGHTS[loss_type])

    torch.testing.assert_close(found, oracle, **EXACT)
    wanted, given = (torch.autograd.grad(loss, logprobs)[0] for loss in (oracle, found))
    torch.testing.assert_close(given, wanted, **EXACT)


def test_grpo_advantages_equal_those_of_torch() -> None:
    rewards = [0.0, 1.0, 0.25, 1.0]
    values = torch.tensor(rewards)

    expected = (values - values.mean()) / (values.std() + 1e-4)  # as GRPOTrainer scales a group

    assert advantages.grpo_advantages(rewards) == pytest.approx(expected.tolist(), abs=1e-5)
    centred = (values - values.mean()).tolist()
    assert advantages.centred_advantages(rewards) == pytest.approx(centred, abs=1e-6)


def dpo_loss(
    trl: SimpleNamespace, logprobs: Tensor, reference: Tensor, mask: Tensor, **settings: Any
) -> Tensor:
    """TRL's loss of a batch [chosen, rejected], one more column than there are predictions."""
    completion = torch.cat([torch.zeros(len(mask), 1).int(), mask], dim=1)
    outputs = SimpleNamespace(
        log_probs=logprobs * mask,
        entropy=torch.zeros(mask.shape),
        mean_logits=torch.zeros(mask.shape),
        is_top1=torch.zeros(mask.shape).bool(),
    )
    trainer = SimpleNamespace(
        accelerator=alone(),
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        args=SimpleNamespace(),
        _total_train_tokens=0,
        _metrics={"eval": defaultdict(list)},
        **settings,
    )
    chosen, rejected = (reference * mask).sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return trl.dpo._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


def test_preference_with_its_sft_term_equals_dpo(trl: SimpleNamespace) -> None:
    logprobs = (random(*SHAPE, seed=4) - 2).requires_grad_()
    reference = logprobs.detach() + random(*SHAPE, seed=5, scale=0.5)

    oracle = dpo_loss(
        trl,
        logprobs,
        reference,
        MASK,
        loss_types=["sigmoid", "sft"],
        loss_weights=[1.0, 0.7],
        beta=0.3,
        label_smoothing=0.0,
    )
    chosen, rejected = (logprobs * MASK).sum(1).chunk(2)
    reference_chosen, reference_rejected = (reference * MASK).sum(1).chunk(2)
    pairs = losses.preference(
        chosen,
        rejected,
        reference_chosen_P=reference_chosen,
        reference_rejected_P=reference_rejected,
        beta=0.3,
    )
    sft = -(logprobs * MASK)[:2].sum() / MASK[:2].sum()

    torch.testing.assert_close(pairs.mean() + 0.7 * sft, oracle, **EXACT)


def test_label_smoothing_equals_that_of_trl(trl: SimpleNamespace) -> None:
    """TRL has it in AOT, which is DPO where a batch is one pair."""
    logprobs, reference = random(2, SHAPE[1], seed=6) - 2, random(2, SHAPE[1], seed=7) - 2
    mask = MASK[:2]

    oracle = dpo_loss(
        trl,
        logprobs,
        reference,
        mask,
        loss_types=["aot"],
        loss_weights=[1.0],
        beta=0.3,
        label_smoothing=0.1,
    )
    totals, references = (logprobs * mask).sum(1), (reference * mask).sum(1)
    found = losses.preference(
        totals[:1],
        totals[1:],
        reference_chosen_P=references[:1],
        reference_rejected_P=references[1:],
        beta=0.3,
        label_smoothing=0.1,
    )

    torch.testing.assert_close(found.mean(), oracle, **EXACT)


KTO_IDS, MISMATCHED_IDS = 1, 2
"""Input ids by which TRL's two calls of the model are told apart."""


def kto_loss(
    trl: SimpleNamespace,
    logprobs: Tensor,
    reference: Tensor,
    mismatched: Tensor,
    mismatched_reference: Tensor,
    **settings: Any,
) -> Tensor:
    """TRL's loss of the batch whose answers and mismatched answers have these log-probabilities."""

    def model(input_ids: Tensor, **_: object) -> SimpleNamespace:
        is_own = bool((input_ids == KTO_IDS).all())
        zeros = torch.zeros(SHAPE)
        return SimpleNamespace(
            log_probs=(logprobs if is_own else mismatched) * MASK, entropy=zeros, mean_logits=zeros
        )

    trainer = SimpleNamespace(
        accelerator=alone(),
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        args=SimpleNamespace(),
        _tp_size=1,
        _total_train_tokens=0,
        _metrics={"eval": defaultdict(list)},
        **settings,
    )
    trainer._compute_kl_logps = lambda *args: trl.kto._compute_kl_logps(trainer, *args)
    completion = torch.cat([torch.zeros(len(MASK), 1).int(), MASK], dim=1)
    inputs = {
        "input_ids": torch.full_like(completion, KTO_IDS),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "KL_input_ids": torch.full_like(completion, MISMATCHED_IDS),
        "KL_attention_mask": torch.ones_like(completion),
        "KL_completion_mask": completion,
        "label": torch.tensor(LIKED),
        "ref_logps": (reference * MASK).sum(1),
        "ref_KL_logps": (mismatched_reference * MASK).sum(1),
    }
    return trl.kto._compute_loss(trainer, model, inputs, return_outputs=False)


LIKED = (True, False, True, False)


@pytest.mark.parametrize("drift", [0.4, -0.4], ids=["z0 above 0", "z0 clamped"])
def test_judged_equals_kto(trl: SimpleNamespace, drift: float) -> None:
    logprobs = (random(*SHAPE, seed=12) - 2).requires_grad_()
    reference = logprobs.detach() + random(*SHAPE, seed=13, scale=0.5)
    mismatched = random(*SHAPE, seed=14) - 2
    mismatched_reference = mismatched - drift

    oracle = kto_loss(
        trl,
        logprobs,
        reference,
        mismatched,
        mismatched_reference,
        beta=0.3,
        desirable_weight=1.2,
        undesirable_weight=0.7,
    )
    ratios = ((mismatched - mismatched_reference) * MASK).sum(1)
    found = losses.judged(
        (logprobs * MASK).sum(1),
        (reference * MASK).sum(1),
        torch.tensor(LIKED),
        kl_estimate=max(0.0, float(ratios.mean())),
        beta=0.3,
        liked_weight=1.2,
        disliked_weight=0.7,
    ).mean()

    torch.testing.assert_close(found, oracle, **EXACT)
    wanted, given = (torch.autograd.grad(loss, logprobs)[0] for loss in (oracle, found))
    torch.testing.assert_close(given, wanted, **EXACT)


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
def test_divergence_equals_gkd(trl: SimpleNamespace, beta: float) -> None:
    student, teacher = random(6, 13, seed=8), random(6, 13, seed=9)

    oracle = trl.gkd.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="none")
    found = losses.divergence(student.log_softmax(1), teacher.log_softmax(1), beta=beta)

    torch.testing.assert_close(found, oracle[0].sum(-1), **EXACT)


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 4])
def test_distillation_with_its_tail_equals_sdft(trl: SimpleNamespace, beta: float, k: int) -> None:
    """SDFT takes the student's likeliest tokens, so both are given one set of tokens."""
    student, teacher = random(6, 13, seed=10, scale=2.0), random(6, 13, seed=11, scale=2.0)
    teacher = teacher.requires_grad_(False)
    student.requires_grad_()
    ids = student.topk(k).indices

    oracle = trl.sdft.compute_topk_self_distillation_loss(
        student,
        teacher,
        distillation_topk=k,
        distillation_alpha=beta,
        distillation_add_tail=True,
    )
    found = losses.distillation(student, ids, teacher.log_softmax(1).gather(1, ids), beta=beta)

    torch.testing.assert_close(found, oracle, **EXACT)
    wanted, given = (torch.autograd.grad(loss.sum(), student)[0] for loss in (oracle, found))
    torch.testing.assert_close(given, wanted, **EXACT)
