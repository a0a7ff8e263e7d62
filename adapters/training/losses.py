"""Loss components, per token; the trainer applies weights and sums."""

from torch import Tensor

from adapters.training.logprobs import selective_logprobs


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-likelihood of each target; shape N, in nats."""
    return -selective_logprobs(logits_NV, targets_N)


def reference_kl(logits_NV: Tensor, reference_logits_NV: Tensor) -> Tensor:
    """KL(reference || model) over the whole vocabulary, per token; shape N, in nats, never < 0.

    Zero, gradient included, as long as the model says what the reference says.
    """
    reference_NV = reference_logits_NV.float().log_softmax(dim=1)
    return (reference_NV.exp() * (reference_NV - logits_NV.float().log_softmax(dim=1))).sum(dim=1)
