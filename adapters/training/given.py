"""Replies that are given as text, to samples: learnt as they stand, or judged for KTO."""

import dataclasses
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from adapters.training.batch import (
    encode_messages,
    end_of_turn,
    lesson,
    pack,
    plain_ids,
    split_by_tokens,
)
from adapters.training.distillation import Teacher
from adapters.training.logprobs import selective_logprobs
from adapters.types import Component, GivenReply, Judged, TrainingSample, Unit, reply_mask


def encode_replies(
    replies: Sequence[GivenReply], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> list[Unit]:
    """A unit of each, in order, an end of turn behind it; beyond `max_tokens` its tail is lost.

    One that is learnt has `ce`, weighted as `lesson` weighs; one that is liked or disliked has the
    sum of its tokens compared with the reference's, and no component of its own.

    Raises:
        ValueError: a prompt leaves no room for a reply.
    """
    end = end_of_turn(tokenizer)
    return [_unit(one, tokenizer, end, max_tokens) for one in replies]


def _unit(one: GivenReply, tokenizer: PreTrainedTokenizerBase, end: int, max_tokens: int) -> Unit:
    head = encode_messages(one.prompt, tokenizer)
    if len(head) >= max_tokens:
        raise ValueError(
            f"a prompt has {len(head)} tokens and leaves no room for a reply; raise "
            f"training.max_tokens (now {max_tokens})"
        )
    body = plain_ids(one.reply, tokenizer, end, add_special_tokens=False)
    ids = (*head, *body, end)[:max_tokens]
    if one.is_liked is None:
        return _weighted(lesson(ids, len(head)), one.weight)
    sample = TrainingSample(ids, reply_mask(len(head), len(ids)), weights={}, mass=1.0)
    return Judged(sample, one.is_liked, weight=one.weight)


def _weighted(sample: TrainingSample, weight: float) -> TrainingSample:
    """The sample counting `weight` times as much in the loss, and as much as before in its mean."""
    weights = tuple(weight * each for each in sample.weights[Component.CE])
    return dataclasses.replace(sample, weights={Component.CE: weights})


def judged_against(
    units: Sequence[Unit], teacher: Teacher, *, microbatch_tokens: int
) -> list[Unit]:
    """The units, the judged ones with the log-probabilities that the teacher gives their tokens.

    So the reference is whoever teaches: the base, or weights that the training is given.
    """
    judged = [unit for unit in units if isinstance(unit, Judged)]
    found: dict[int, tuple[float, ...]] = {}
    with torch.no_grad():
        for group in split_by_tokens(judged, microbatch_tokens):
            batch = pack(group)
            logprobs_N = selective_logprobs(teacher(batch).float().cpu(), batch.targets_N)
            for index, unit in enumerate(group):
                found[id(unit)] = tuple(logprobs_N[batch.samples_N == index].tolist())
    return [
        dataclasses.replace(
            unit, sample=dataclasses.replace(unit.sample, reference_logprobs=found[id(unit)])
        )
        if isinstance(unit, Judged)
        else unit
        for unit in units
    ]
