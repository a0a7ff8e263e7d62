"""KTO's z0: how far the model has moved from its reference, on answers behind prompts not theirs."""

from collections.abc import Sequence
from statistics import fmean

from adapters.training.model import Trainee
from adapters.training.scoring import score_samples
from adapters.types import Judged, TrainingSample, Unit


def kl_estimate(trainee: Trainee, units: Sequence[Unit], *, microbatch_tokens: int) -> float:
    """z0 of a step, in nats, never below 0 (Ethayarajh et al., arXiv 2402.01306, section 4.1).

    Each judged answer is put behind the prompt of the one after it; z0 is the mean of the
    log-ratios of these pairs. It is a threshold: no gradient goes through it, and no dropout. A
    step with a single judged answer has no other prompt, and its z0 is 0.
    """
    samples = [unit.sample for unit in units if isinstance(unit, Judged)]
    if len(samples) < 2:
        return 0.0
    answers = [samples[-1], *samples[:-1]]
    pairs = [_behind(*each) for each in zip(samples, answers, strict=True)]
    model, reference = (
        score_samples(
            trainee, pairs, microbatch_tokens=microbatch_tokens, is_reference=is_reference
        )
        for is_reference in (False, True)
    )
    ratios = (sum(own) - sum(other) for own, other in zip(model, reference, strict=True))
    return max(0.0, fmean(ratios))


def _behind(prompt: TrainingSample, answer: TrainingSample) -> TrainingSample:
    """The trained part of `answer` behind what comes before that of `prompt`."""
    head, start = prompt.ids[: prompt.trained_from], answer.trained_from
    return TrainingSample(
        head + answer.ids[start:],
        (False,) * len(head) + answer.is_trained[start:],
        weights={},
        mass=1.0,
    )
