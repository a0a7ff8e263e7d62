"""Loss components, per token or per pair; the trainer applies weights and sums.

Shapes: N targets, V words of the vocabulary, K of a teacher's tokens, P pairs, J judged answers.
All in nats.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from adapters.training.logprobs import selective_logprobs

_ABSENT = -1e4
"""Log-probability of what cannot be: its exponential is exactly 0, and it has no infinity's NaNs."""
_LEAST_TAIL = math.log(1e-7)
"""Log of the least mass outside a teacher's tokens: less, in float32, is 1 minus rounding."""


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-likelihood of each target; shape N, in nats."""
    return -selective_logprobs(logits_NV, targets_N)


def policy_gradient(
    logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    old_N: Tensor,
    sampler_N: Tensor,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
) -> Tensor:
    """PPO's clipped surrogate per token, corrected for the engine that sampled; shape N.

    Two policies lie behind a token: `old_N`, ours when it was sampled, against which the ratio is
    clipped, and `sampler_N`, the engine's in its own arithmetic, against which `old_N` is weighed
    by a truncated importance weight (TIS). Only `logprobs_N` carries gradient.
    """
    ratio_N = (logprobs_N - old_N.detach()).exp()
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    surrogate_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    return -surrogate_N * (old_N - sampler_N).detach().exp().clamp(max=importance_cap)


def reference_kl(logits_NV: Tensor, reference_logits_NV: Tensor) -> Tensor:
    """KL(reference || model) over the whole vocabulary, per token; shape N, in nats, never < 0.

    Zero, gradient included, as long as the model says what the reference says.
    """
    reference_NV = reference_logits_NV.float().log_softmax(dim=1)
    return (reference_NV.exp() * (reference_NV - logits_NV.float().log_softmax(dim=1))).sum(dim=1)


def reference_kl_k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(model || reference) from the sampled token; N, never < 0."""
    gap_N = reference_N.detach() - logprobs_N
    return gap_N.exp() - gap_N - 1


def preference(
    chosen_P: Tensor,
    rejected_P: Tensor,
    *,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO's sigmoid loss from the log-probabilities of whole answers; shape P.

    With label smoothing it is conservative DPO: that share of the labels is taken to be flipped.
    """
    margin_P = beta * ((chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P))
    flipped_P = label_smoothing * logsigmoid(-margin_P)
    return -(1 - label_smoothing) * logsigmoid(margin_P) - flipped_P


def judged(
    totals_J: Tensor,
    references_J: Tensor,
    is_liked_J: Tensor,
    *,
    kl_estimate: float,
    beta: float,
    liked_weight: float,
    disliked_weight: float,
) -> Tensor:
    """KTO's loss (Ethayarajh et al., arXiv 2402.01306, equation 7) of whole answers; shape J.

    lambda - value, where the value of a liked answer is lambda sigmoid(beta (r - z0)), of a disliked
    one lambda sigmoid(beta (z0 - r)); r is the log-ratio to the reference, and z0, `kl_estimate`,
    how far the model has moved from it on answers that do not belong to their prompts.
    """
    gap_J = (totals_J - references_J) - kl_estimate
    signed_J = gap_J.where(is_liked_J, -gap_J)
    weights_J = gap_J.new_full((), liked_weight).where(is_liked_J, disliked_weight)
    return weights_J * (1 - (beta * signed_J).sigmoid())


def distillation(
    logits_NV: Tensor,
    teacher_ids_NK: Tensor,
    teacher_logprobs_NK: Tensor,
    *,
    beta: float,
    is_mixed: bool = False,
) -> Tensor:
    """Divergence between teacher and student over the teacher's K tokens and all others; shape N.

    The others are one bucket that holds what the K tokens leave of the probability, so neither
    distribution is renormalised and mass that the student puts elsewhere is seen. A place with
    fewer than K tokens is filled up with log-probability -inf. `beta` is as in `divergence`, or with
    `is_mixed` as in `mixed_divergence`.
    """
    is_absent_NK = teacher_logprobs_NK == -torch.inf
    teacher_NK = teacher_logprobs_NK.float().masked_fill(is_absent_NK, _ABSENT)
    rest_N1 = (-torch.expm1(teacher_NK.logsumexp(dim=1, keepdim=True).clamp(max=0.0))).log()
    teacher_NK = torch.cat([teacher_NK, rest_N1.clamp(min=_LEAST_TAIL)], dim=1)
    ids_NK = teacher_ids_NK.where(~is_absent_NK, teacher_ids_NK[:, :1])
    student_NK = _student_buckets(logits_NV.float(), ids_NK, is_absent_NK)
    compare = mixed_divergence if is_mixed else divergence
    return compare(student_NK, teacher_NK, beta=beta)


def mixed_divergence(student_NK: Tensor, teacher_NK: Tensor, *, beta: float) -> Tensor:
    """(1 - beta) KL(teacher || student) + beta KL(student || teacher) over K, from logs; shape N.

    SD-Zero's (He et al., arXiv 2604.12002), with beta 0.5; its ends are those of `divergence`.
    """
    forward_N, reverse_N = _kl(teacher_NK, student_NK), _kl(student_NK, teacher_NK)
    return (1 - beta) * forward_N + beta * reverse_N


def divergence(student_NK: Tensor, teacher_NK: Tensor, *, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of two distributions over K, from their logs; shape N.

    `beta` 0 is KL(teacher || student), 1 is KL(student || teacher), both by convention; between
    them, beta KL(teacher || mixture) + (1 - beta) KL(student || mixture), where the mixture has
    beta of the teacher. Never below 0, and 0 only for equals.
    """
    if beta == 0.0:
        return _kl(teacher_NK, student_NK)
    if beta == 1.0:
        return _kl(student_NK, teacher_NK)
    mixture_NK = torch.logaddexp(student_NK + math.log1p(-beta), teacher_NK + math.log(beta))
    return beta * _kl(teacher_NK, mixture_NK) + (1 - beta) * _kl(student_NK, mixture_NK)


def _kl(p_NK: Tensor, q_NK: Tensor) -> Tensor:
    return (p_NK.exp() * (p_NK - q_NK)).sum(dim=1)


def _student_buckets(logits_NV: Tensor, ids_NK: Tensor, is_absent_NK: Tensor) -> Tensor:
    """Log-probabilities of the K tokens and of all others together; shape N x (K + 1).

    The others are summed, not what is left of 1: a mass of 1e-6 would be mostly rounding.
    """
    head_NK = logits_NV.gather(1, ids_NK).masked_fill(is_absent_NK, _ABSENT)
    others_N1 = logits_NV.scatter(1, ids_NK, _ABSENT).logsumexp(dim=1, keepdim=True)
    all_N1 = torch.logaddexp(head_NK.logsumexp(dim=1, keepdim=True), others_N1)
    student_NK = (head_NK - all_N1).masked_fill(is_absent_NK, _ABSENT)
    return torch.cat([student_NK, (others_N1 - all_N1).clamp(min=_LEAST_TAIL)], dim=1)
