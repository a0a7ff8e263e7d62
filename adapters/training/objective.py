"""The loss of one batch: its components, each on the targets it has a weight for, summed."""

from torch import Tensor

from adapters.spec import LossSpec
from adapters.training import losses as per_token
from adapters.training.batch import Batch, Part, members
from adapters.training.logprobs import selective_logprobs
from adapters.types import Component, Judged, PreferencePair, Unit

DPO = "dpo"
"""Name of the component that pairs have, beside those of their samples."""
KTO = "kto"
"""The same of judged answers."""


def needs_reference(unit: Unit, spec: LossSpec) -> bool:
    """Whether its loss takes a forward pass of the reference."""
    samples = members(unit)
    has_kl = any(Component.REF_KL in sample.weights for sample in samples)
    if has_kl and spec.reference_kl == "full":
        return True
    return (has_kl or isinstance(unit, PreferencePair | Judged)) and any(
        sample.reference_logprobs is None for sample in samples
    )


def component_losses(
    logits_NV: Tensor,
    batch: Batch,
    spec: LossSpec,
    *,
    reference_NV: Tensor | None,
    kl_estimate: float = 0.0,
) -> dict[str, Tensor]:
    """The weighted sum of each component that acts in the batch; scalars.

    `reference_NV` are the reference's logits, None if no unit of the batch needs them;
    `kl_estimate` is KTO's z0 of the whole step, in nats.
    """
    logprobs_N = _logprobs(logits_NV, batch, spec)
    reference_N = batch.reference_N
    if reference_NV is not None and (reference_N is None or bool(reference_N.isnan().any())):
        reference_N = selective_logprobs(reference_NV, batch.targets_N)
    result: dict[str, Tensor] = {}
    for component, part in batch.parts.items():
        match component:
            case Component.CE:
                loss_M = per_token.cross_entropy(part.of(logits_NV), part.of(batch.targets_N))
            case Component.RL:
                loss_M = _policy_gradient(logprobs_N, batch, spec)
            case Component.REF_KL if spec.reference_kl == "full":
                assert reference_NV is not None
                loss_M = per_token.reference_kl(part.of(logits_NV), part.of(reference_NV))
            case Component.REF_KL:
                assert reference_N is not None
                loss_M = per_token.reference_kl_k3(part.of(logprobs_N), part.of(reference_N))
            case Component.DISTILL:
                assert batch.teacher_ids_NK is not None
                assert batch.teacher_logprobs_NK is not None
                loss_M = per_token.distillation(
                    part.of(logits_NV),
                    part.of(batch.teacher_ids_NK),
                    part.of(batch.teacher_logprobs_NK),
                    beta=spec.distill_beta,
                    is_mixed=spec.distill_is_mixed,
                )
        result[component] = (loss_M * part.weights_M).sum()
    if batch.pairs_P2 is not None:
        assert reference_N is not None
        result[DPO] = _preference(logprobs_N, reference_N, batch, spec)
    if batch.judged_J is not None:
        assert reference_N is not None
        result[KTO] = _judged(logprobs_N, reference_N, batch, spec, kl_estimate)
    return result


def _logprobs(logits_NV: Tensor, batch: Batch, spec: LossSpec) -> Tensor:
    """Of each target; nothing where no component asks for them, since they cost a pass over V."""
    asking = {Component.RL} | ({Component.REF_KL} if spec.reference_kl == "k3" else set())
    has_answers = batch.pairs_P2 is not None or batch.judged_J is not None
    if not has_answers and batch.parts.keys().isdisjoint(asking):
        return logits_NV.new_empty(0)
    return selective_logprobs(logits_NV, batch.targets_N)


def _policy_gradient(logprobs_N: Tensor, batch: Batch, spec: LossSpec) -> Tensor:
    part = batch.parts[Component.RL]
    assert batch.advantages_N is not None
    logprobs_M = part.of(logprobs_N)
    old_M = _known(batch.old_N, part, otherwise=logprobs_M.detach())
    return per_token.policy_gradient(
        logprobs_M,
        part.of(batch.advantages_N),
        old_N=old_M,
        sampler_N=_known(batch.sampler_N, part, otherwise=old_M),
        clip_low=spec.clip_low,
        clip_high=spec.clip_high,
        importance_cap=spec.importance_cap,
    )


def _known(values_N: Tensor | None, part: Part, *, otherwise: Tensor) -> Tensor:
    """The part's values, and `otherwise` where a sample has none."""
    if values_N is None:
        return otherwise
    values_M = part.of(values_N)
    return values_M.where(~values_M.isnan(), otherwise)


def _preference(logprobs_N: Tensor, reference_N: Tensor, batch: Batch, spec: LossSpec) -> Tensor:
    assert batch.pairs_P2 is not None
    assert batch.pair_weights_P is not None
    chosen_P, rejected_P = batch.pairs_P2.unbind(dim=1)
    totals_S = _sum_by_sample(logprobs_N, batch.samples_N)
    references_S = _sum_by_sample(reference_N, batch.samples_N)
    loss_P = per_token.preference(
        totals_S[chosen_P],
        totals_S[rejected_P],
        reference_chosen_P=references_S[chosen_P],
        reference_rejected_P=references_S[rejected_P],
        beta=spec.dpo_beta,
        label_smoothing=spec.dpo_label_smoothing,
    )
    return (loss_P * batch.pair_weights_P).sum()


def _judged(
    logprobs_N: Tensor, reference_N: Tensor, batch: Batch, spec: LossSpec, kl_estimate: float
) -> Tensor:
    assert batch.judged_J is not None
    assert batch.is_liked_J is not None
    assert batch.judged_weights_J is not None
    loss_J = per_token.judged(
        _sum_by_sample(logprobs_N, batch.samples_N)[batch.judged_J],
        _sum_by_sample(reference_N, batch.samples_N)[batch.judged_J],
        batch.is_liked_J,
        kl_estimate=kl_estimate,
        beta=spec.kto_beta,
        liked_weight=spec.kto_liked_weight,
        disliked_weight=spec.kto_disliked_weight,
    )
    return (loss_J * batch.judged_weights_J).sum()


def _sum_by_sample(values_N: Tensor, samples_N: Tensor) -> Tensor:
    sums_S = values_N.new_zeros(int(samples_N.max()) + 1)
    return sums_S.index_add(0, samples_N, values_N)
