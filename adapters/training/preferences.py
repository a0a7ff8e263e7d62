"""Pairs of replies in text to samples for DPO with its SFT term, and what became of them.

Rafailov et al., arXiv 2305.18290. Two texts that differ in a few tokens can be told apart by making
both unlikely, so the chosen one's own log-probability is reported beside the margin.
"""

from collections.abc import Sequence
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from adapters.spec import LossSpec
from adapters.training.batch import encode_messages, end_of_turn, plain_ids
from adapters.training.model import Trainee
from adapters.training.scoring import score_samples
from adapters.types import (
    ChatMessage,
    Component,
    PreferencePair,
    TextPair,
    TrainingSample,
    Unit,
    reply_mask,
)


def encode_pairs(
    pairs: Sequence[TextPair], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> list[Unit]:
    """Each pair as a unit of mass 1: a reply is trained with the end of its turn, which in many
    pairs is where the two differ. The SFT term is a mean over the chosen one's tokens.

    A pair with a reply longer than `max_tokens`, its prompt included, is left out: cut off, it
    would be neither of the two.
    """
    units = (_encode(pair, tokenizer, max_tokens) for pair in pairs)
    return [unit for unit in units if unit is not None]


def preferences(
    trainee: Trainee, units: Sequence[Unit], *, spec: LossSpec
) -> dict[str, dict[str, float]]:
    """What the present model makes of the pairs among `units`, under `preferences`; empty without.

    Log-probabilities are means per token, in nats; `margin` is DPO's, beta times the gap between
    the two log-ratios to the reference. A margin of tens of nats, or a chosen reply that became
    less likely than it was to the reference, says that too long was trained.
    """
    pairs = [unit for unit in units if isinstance(unit, PreferencePair)]
    if not pairs:
        return {}
    samples = [sample for pair in pairs for sample in (pair.chosen, pair.rejected)]
    now = score_samples(trainee, samples)
    reference = score_samples(trainee, samples, is_reference=True)
    ratios = [sum(a) - sum(b) for a, b in zip(now, reference, strict=True)]
    margins = [
        spec.dpo_beta * (chosen - rejected)
        for chosen, rejected in zip(ratios[::2], ratios[1::2], strict=True)
    ]
    found = {
        "chosen_logprob": fmean(map(fmean, now[::2])),
        "chosen_logprob_of_reference": fmean(map(fmean, reference[::2])),
        "rejected_logprob": fmean(map(fmean, now[1::2])),
        "rejected_logprob_of_reference": fmean(map(fmean, reference[1::2])),
        "margin": fmean(margins),
        "preferred": fmean(float(margin > 0) for margin in margins),
        "chosen_fell": fmean(float(ratio < 0) for ratio in ratios[::2]),
    }
    rounded = {name: round(value, 4) for name, value in found.items()}
    return {"preferences": {"pairs": float(len(pairs)), **rounded}}


def _encode(pair: TextPair, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Unit | None:
    chosen = _sample(pair.prompt, pair.chosen, tokenizer, pair.sft_weight)
    if pair.rejected is None:
        return chosen if len(chosen.ids) <= max_tokens else None
    rejected = _sample(pair.prompt, pair.rejected, tokenizer, 0.0)
    if max(len(chosen.ids), len(rejected.ids)) > max_tokens:
        return None
    return PreferencePair(chosen, rejected)


def _sample(
    prompt: Sequence[ChatMessage],
    reply: str,
    tokenizer: PreTrainedTokenizerBase,
    sft_weight: float,
) -> TrainingSample:
    head = encode_messages(prompt, tokenizer)
    end = end_of_turn(tokenizer)
    body = (*plain_ids(reply, tokenizer, end, add_special_tokens=False), end)
    weights = {Component.CE: (sft_weight / len(body),) * len(body)} if sft_weight else {}
    ids = (*head, *body)
    return TrainingSample(ids, reply_mask(len(head), len(ids)), weights=weights, mass=1.0)
