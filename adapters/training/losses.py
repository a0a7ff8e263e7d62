"""Loss components, per token; the trainer applies weights and sums."""

from torch import Tensor


def cross_entropy(logprobs_N: Tensor) -> Tensor:
    """Negative log-likelihood of each target; shape N, in nats."""
    return -logprobs_N
