"""Self-edits to tensors: encoding through the chat template, and packing without padding.

A batch is one row. Segments that begin with the same tokens (in a chat: the system prompt) share
them: the common prefix is computed once, each segment attends to it and to itself only. On short
segments that halves the work, and there is no padding that could be trained by mistake.
Not covered: models with recurrent layers, which see no attention mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adapters.types import SelfEdit


@dataclass(frozen=True, slots=True)
class Segment:
    """Token ids of one self-edit; those from index `trained_from` (at least 1) on are trained.

    An anchor is not learnt: on it the model is held to what the base would say.
    """

    ids: tuple[int, ...]
    trained_from: int
    is_anchor: bool = False

    @property
    def trained_count(self) -> int:
        """How many tokens carry loss."""
        return len(self.ids) - self.trained_from


@dataclass(frozen=True, slots=True)
class Batch:
    """Segments packed in one row of T tokens, N of them predicting a trained token."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    mask_11TT: Tensor  # bool, True where the row index may look at the column index
    predictors_N: Tensor  # index in T whose hidden state predicts the target
    targets_N: Tensor
    weights_N: Tensor  # share of each target in the loss of its step

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.input_ids_1T.to(device),
            self.position_ids_1T.to(device),
            self.mask_11TT.to(device),
            self.predictors_N.to(device),
            self.targets_N.to(device),
            self.weights_N.to(device),
        )


def encode(edit: SelfEdit, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> Segment:
    """Tokens of a self-edit, ending in exactly one end-of-text or end-of-turn.

    A prompt is rendered by the tokenizer's chat template, as the engine's chat endpoint does.
    An edit longer than `max_tokens` loses its tail, the end marker with it.
    """
    if edit.prompt is None:
        head: list[int] = []
        body = list(tokenizer(edit.text)["input_ids"])
        end = _required_eos(tokenizer)
    else:
        head = encode_prompt(edit.prompt, tokenizer)
        body = list(tokenizer(edit.text, add_special_tokens=False)["input_ids"])
        end = _end_of_turn(tokenizer)
    while body and body[-1] == end:
        body.pop()
    ids = (*head, *body, end)[:max_tokens]
    return Segment(ids, max(1, min(len(head), len(ids) - 1)))


def encode_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens before the reply when `prompt` is the only message of a chat."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def split_by_tokens(segments: Sequence[Segment], limit: int) -> Iterator[list[Segment]]:
    """Groups of at most `limit` tokens (one longer segment stands alone), shortest first."""
    group: list[Segment] = []
    total = 0
    for segment in sorted(segments, key=lambda s: (len(s.ids), s.ids)):
        if group and total + len(segment.ids) > limit:
            yield group
            group, total = [], 0
        group.append(segment)
        total += len(segment.ids)
    if group:
        yield group


def pack(segments: Sequence[Segment], *, weights: Sequence[float]) -> Batch:
    """One row of the segments behind their common prefix; `weights` is per trained token.

    The prefix stops before the first trained token's predictor of any segment, so that every
    prediction has its own hidden state.
    """
    shared = _common_prefix([s.ids[: s.trained_from - 1] for s in segments])
    ids = list(segments[0].ids[:shared])
    positions = list(range(shared))
    owners = [-1] * shared
    predictors: list[int] = []
    targets: list[int] = []
    token_weights: list[float] = []
    for owner, (segment, weight) in enumerate(zip(segments, weights, strict=True)):
        offset = len(ids) - shared
        ids.extend(segment.ids[shared:])
        positions.extend(range(shared, len(segment.ids)))
        owners.extend([owner] * (len(segment.ids) - shared))
        predictors.extend(range(offset + segment.trained_from - 1, offset + len(segment.ids) - 1))
        targets.extend(segment.ids[segment.trained_from :])
        token_weights.extend([weight] * segment.trained_count)
    return Batch(
        torch.tensor([ids]),
        torch.tensor([positions]),
        _attention_mask(torch.tensor(owners)),
        torch.tensor(predictors),
        torch.tensor(targets),
        torch.tensor(token_weights),
    )


def _common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all of them share."""
    first, last = min(sequences), max(sequences)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(same, min(len(first), len(last)))


def _attention_mask(owners_T: Tensor) -> Tensor:
    """Causal, to the shared prefix (owner -1) and the own segment only."""
    own_TT = (owners_T[:, None] == owners_T[None, :]) | (owners_T[None, :] == -1)
    return own_TT.tril()[None, None]


def _required_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise ValueError("the tokenizer names no end-of-text token; set eos_token in its config")
    return tokenizer.eos_token_id


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The first special token that the template writes after a reply; else the end of text."""
    reply = "~"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "-"}, {"role": "assistant", "content": reply}], tokenize=False
    )
    tail = tokenizer(str(text).rpartition(reply)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    return next((token for token in tail if token in special), _required_eos(tokenizer))
