"""KTO in the trainer: z0 from answers behind other prompts, one for the step, and what it teaches."""

from pathlib import Path

import pytest
import torch

from adapters.spec import LoraSpec, LossSpec, Precision, TrainingSpec
from adapters.training.batch import lesson
from adapters.training.many import Course, load_bank, train_many
from adapters.training.mismatch import kl_estimate
from adapters.training.model import Trainee, load_trainee
from adapters.training.scoring import score_samples
from adapters.training.trainer import StepReport, plan_steps, train
from adapters.types import Judged, TrainingSample, Unit, reply_mask

LORA = LoraSpec(rank=4, alpha=8)
SPEC = TrainingSpec(epochs=1, batch_size=4, learning_rate=1e-2, precision=Precision.FLOAT32)


def answer(prompt: tuple[int, ...], reply: tuple[int, ...]) -> TrainingSample:
    return TrainingSample(prompt + reply, reply_mask(len(prompt), len(prompt + reply)), {}, 1.0)


PROMPTS = ((20, 21, 22), (30, 31), (40, 41, 42, 43), (50, 51))
REPLIES = ((5, 6), (7, 8, 9, 10), (11,), (12, 13, 14))
LIKED = (True, False, True, False)
UNITS: list[Unit] = [
    Judged(answer(prompt, reply), is_liked)
    for prompt, reply, is_liked in zip(PROMPTS, REPLIES, LIKED, strict=True)
]


@pytest.fixture
def moved(random_model: Path) -> Trainee:
    """With an adapter that has learnt the answers, and so says them behind any prompt."""
    made = load_trainee(random_model, spec=LORA, seed=1, precision=Precision.FLOAT32)
    units = [
        lesson(prompt + reply, len(prompt)) for prompt, reply in zip(PROMPTS, REPLIES, strict=True)
    ]
    train(made, units, spec=SPEC.model_copy(update={"epochs": 8}), seed=0)
    return made


def total(trainee: Trainee, prompt: tuple[int, ...], reply: tuple[int, ...]) -> float:
    """log p(reply | prompt) under the present model, one sequence at a time."""
    with torch.no_grad():
        logits_TV = trainee.model(input_ids=torch.tensor([prompt + reply])).logits[0]
    logprobs_NV = logits_TV[len(prompt) - 1 : -1].log_softmax(dim=1)
    return float(logprobs_NV.gather(1, torch.tensor(reply)[:, None]).sum())


def log_ratio(trainee: Trainee, prompt: tuple[int, ...], reply: tuple[int, ...]) -> float:
    with trainee.model.disable_adapter():
        base = total(trainee, prompt, reply)
    return total(trainee, prompt, reply) - base


def naive_estimate(trainee: Trainee) -> float:
    answers = (REPLIES[-1], *REPLIES[:-1])
    ratios = [log_ratio(trainee, *pair) for pair in zip(PROMPTS, answers, strict=True)]
    return max(0.0, sum(ratios) / len(ratios))


def test_z0_is_the_mean_log_ratio_of_answers_behind_other_prompts(moved: Trainee) -> None:
    found = kl_estimate(moved, UNITS, microbatch_tokens=16)

    assert found > 0
    assert found == pytest.approx(naive_estimate(moved), abs=1e-5)
    assert kl_estimate(moved, UNITS[:1], microbatch_tokens=16) == 0.0


@pytest.mark.parametrize("microbatch_tokens", [16, 1024])
def test_the_steps_loss_is_the_papers_however_it_is_split(
    moved: Trainee, microbatch_tokens: int
) -> None:
    """Fails when z0 is that of a microbatch, or when a sign or a weight is swapped."""
    losses = LossSpec(kto_beta=0.3, kto_liked_weight=1.2, kto_disliked_weight=0.7)
    spec = SPEC.model_copy(update={"microbatch_tokens": microbatch_tokens})
    ((*step,),) = plan_steps(UNITS, [], 0, spec=spec, seed=0)
    order = [UNITS.index(unit) for unit in step]
    answers = [order[-1], *order[:-1]]
    ratios = [log_ratio(moved, PROMPTS[i], REPLIES[j]) for i, j in zip(order, answers, strict=True)]
    z0, expected = max(0.0, sum(ratios) / 4), 0.0
    for prompt, reply, is_liked in zip(PROMPTS, REPLIES, LIKED, strict=True):
        gap = 0.3 * (log_ratio(moved, prompt, reply) - z0)
        value = torch.tensor(gap if is_liked else -gap).sigmoid()
        expected += (1.2 if is_liked else 0.7) * float(1 - value)
    reports: list[StepReport] = []

    train(moved, UNITS, spec=spec, losses=losses, seed=0, on_step=reports.append)

    assert z0 > 0
    assert reports[0].loss == pytest.approx(expected / 4, abs=1e-5)
    assert set(reports[0].components) == {"kto"}


def test_liked_answers_become_likelier_and_disliked_ones_less(random_model: Path) -> None:
    trainee = load_trainee(random_model, spec=LORA, seed=0, precision=Precision.FLOAT32)
    samples = [unit.sample for unit in UNITS if isinstance(unit, Judged)]
    before = [sum(each) for each in score_samples(trainee, samples)]

    train(trainee, UNITS, spec=SPEC.model_copy(update={"epochs": 20}), seed=0)

    after = [sum(each) for each in score_samples(trainee, samples)]
    gains = [now - then for now, then in zip(after, before, strict=True)]
    assert [gain > 0 for gain in gains] == list(LIKED)


def test_a_bank_takes_no_judged_answers(random_model: Path) -> None:
    bank = load_bank(random_model, spec=LORA, seeds=[0], precision=Precision.FLOAT32)

    with pytest.raises(ValueError, match="train each alone"):
        train_many(bank, [Course(UNITS, SPEC, 0)])
