"""How likely the present model, or its reference, finds the trained tokens of given samples."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from adapters.training.batch import pack, split_by_tokens
from adapters.training.logprobs import selective_logprobs, target_logits
from adapters.training.model import Trainee, speaking_as
from adapters.types import TrainingSample


def score_samples(
    trainee: Trainee,
    samples: Sequence[TrainingSample],
    *,
    microbatch_tokens: int = 1024,
    is_reference: bool = False,
) -> list[tuple[float, ...]]:
    """Log-probabilities of each sample's trained tokens, in nats, without dropout.

    For `old_logprobs`, before the first of several steps on the same rollouts; with `is_reference`
    those of the trainee's reference, the model without its adapter unless it names another.
    """
    scores: dict[int, tuple[float, ...]] = {}
    was_training = trainee.model.training
    trainee.model.eval()
    voice = _reference_of(trainee) if is_reference else nullcontext()
    try:
        with torch.no_grad(), voice:
            for group in split_by_tokens(samples, microbatch_tokens):
                batch = pack(group).to(trainee.device)
                with trainee.autocast():
                    logits_NV = target_logits(trainee.model, batch)
                logprobs_N = selective_logprobs(logits_NV, batch.targets_N)
                for index, sample in enumerate(group):
                    own_M = logprobs_N[batch.samples_N == index]
                    scores[id(sample)] = tuple(own_M.tolist())
    finally:
        trainee.model.train(was_training)
    return [scores[id(sample)] for sample in samples]


def _reference_of(trainee: Trainee) -> AbstractContextManager[None]:
    if trainee.reference is None:
        voice: AbstractContextManager[None] = trainee.model.disable_adapter()
        return voice
    return speaking_as(trainee, trainee.reference)
