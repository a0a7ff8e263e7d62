"""Distillations to samples: what the teacher would have said at each token of the student's reply.

The teacher is the base model with its adapter off, or with that of an earlier training, and it sees
more in its prompt (Shenfeld et al., SDFT, arXiv 2601.19897; OPCD, arXiv 2602.12275; SD-Zero, arXiv
2604.12002). It does not change during a training, so it is asked once, before it, and only its most
likely tokens are kept.
"""

import dataclasses
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adapters.training.batch import (
    Batch,
    encode_messages,
    end_of_turn,
    lesson,
    pack,
    plain_ids,
    split_by_tokens,
)
from adapters.types import Component, Distillation, TopK, TrainingSample

Teacher: TypeAlias = Callable[[Batch], Tensor]
"""Logits of whoever teaches, for each target of a batch; shape N x V."""

_LIKELY_SHARED = 64
"""Teacher prompts that begin with the same so many tokens most likely show the same text."""


def distill(
    distillations: Sequence[Distillation],
    tokenizer: PreTrainedTokenizerBase,
    teacher: Teacher,
    *,
    max_tokens: int,
    top_k: int,
    microbatch_tokens: int,
) -> list[TrainingSample]:
    """A sample for `distill` of each, in order, weighted as `lesson` weighs.

    A reply loses its tail where it would make either sequence longer than `max_tokens`: both end
    at the same token. Behind one that is given as text stands an end of turn; what the teacher
    thinks of that is learnt like everything else, so a reply that was broken off teaches nobody to
    break off. One that is given in tokens ends as it was sampled.

    Raises:
        ValueError: a prompt leaves no room for a reply. It is never cut: a teacher that does not
            see all of its text teaches what is not in it.
    """
    pairs = [_encode(one, tokenizer, max_tokens=max_tokens) for one in distillations]
    asked = [asking for _, asking in pairs]
    places = _most_likely(asked, teacher, top_k=top_k, microbatch_tokens=microbatch_tokens)
    return [
        dataclasses.replace(
            student,
            weights={Component.DISTILL: student.weights[Component.CE]},
            teacher=seen,
        )
        for (student, _), seen in zip(pairs, places, strict=True)
    ]


def _encode(
    one: Distillation, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[TrainingSample, TrainingSample]:
    """Student and teacher, with the same tokens trained."""
    asked = one.teacher_prompt
    if one.teacher_prefix:
        asked = (*asked, {"role": "assistant", "content": one.teacher_prefix})
    heads = [encode_messages(one.prompt, tokenizer), encode_messages(asked, tokenizer)]
    for head, whose in zip(heads, ("student", "teacher"), strict=True):
        if len(head) >= max_tokens:
            raise ValueError(
                f"a {whose}'s prompt has {len(head)} tokens and leaves no room for a reply; raise "
                f"training.max_tokens (now {max_tokens}), or make the chunks of documents smaller"
            )
    reply = _reply_ids(one, tokenizer)[: max_tokens - max(map(len, heads))]
    student, teacher = (lesson((*head, *reply), len(head)) for head in heads)
    return student, dataclasses.replace(teacher, group=_beginning(heads[1]))


def _reply_ids(one: Distillation, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    if one.reply_ids:
        return one.reply_ids
    end = end_of_turn(tokenizer)
    return (*plain_ids(one.reply, tokenizer, end, add_special_tokens=False), end)


def _beginning(head: Sequence[int]) -> str:
    return sha256(repr(head[:_LIKELY_SHARED]).encode()).hexdigest()[:16]


def _most_likely(
    samples: Sequence[TrainingSample], teacher: Teacher, *, top_k: int, microbatch_tokens: int
) -> list[tuple[TopK, ...]]:
    """The teacher's `top_k` most likely tokens at each trained token of each sample."""
    found: dict[int, tuple[TopK, ...]] = {}
    with torch.no_grad():
        for group in split_by_tokens(samples, microbatch_tokens):
            batch = pack(group)
            logprobs_NV = teacher(batch).float().log_softmax(dim=1)
            logprobs_NK, ids_NK = logprobs_NV.topk(min(top_k, logprobs_NV.shape[1]), dim=1)
            for index, sample in enumerate(group):
                own_M = (batch.samples_N == index).to(ids_NK.device)
                rows = zip(ids_NK[own_M].tolist(), logprobs_NK[own_M].tolist(), strict=True)
                found[id(sample)] = tuple(
                    TopK(tuple(ids), tuple(min(0.0, each) for each in logprobs))
                    for ids, logprobs in rows
                )
    return [found[id(sample)] for sample in samples]
