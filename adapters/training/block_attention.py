"""Attention over a packed row in blocks, on CPU: tokens are held against those that they may see.

PyTorch's kernel for CPU computes all T x T products and then applies the mask; in a long packed row
most of them are of tokens of different samples. Here the row is cut in blocks, and each is given the
shared prefix and its own samples only. The same numbers up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "sdpa_in_blocks"
_FEWEST_TOKENS = 64
_MOST_TOKENS = 128
"""Of a block: with fewer, calls cost more than the products that they save."""
_WORTH_IT = 2**17
"""Products of tokens that have to be saved, in each head, before a row is cut."""


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens of a row, one after another, and what they see."""

    start: int
    stop: int
    seen: tuple[tuple[int, int], ...]
    """Ranges of the row, from and to, in order."""
    mask_QK: Tensor | None
    """Of the block's tokens and those of `seen`, bool; None: each sees itself and all before it."""


_blocks: ContextVar[Sequence[Block]] = ContextVar("blocks", default=())


def attend_in_blocks(model: PreTrainedModel) -> None:
    """Have the model do so wherever `row_of` says what its row is, and elsewhere as by default."""
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)


@contextmanager
def row_of(mask_11TT: Tensor) -> Iterator[None]:
    """While it lasts, a model that attends in blocks is given one row, whose mask this is."""
    token = _blocks.set(blocks_of(mask_11TT[0, 0]))
    try:
        yield
    finally:
        _blocks.reset(token)


def blocks_of(mask_TT: Tensor) -> Sequence[Block]:
    """The row in blocks; none where cutting it does not pay.

    They begin where a sample begins, as far as that gives no tiny ones.
    """
    count = mask_TT.shape[0]
    if count * count < _WORTH_IT:
        return ()
    begins = (~mask_TT.diagonal(-1)).nonzero().flatten().add(1).tolist()
    cuts = [0]
    for begin in (*begins, count):
        if begin - cuts[-1] < _FEWEST_TOKENS and begin != count:
            continue
        while begin - cuts[-1] > _MOST_TOKENS:
            cuts.append(cuts[-1] + _MOST_TOKENS)
        cuts.append(begin)
    blocks = [_block(mask_TT, *ends) for ends in pairwise(cuts)]
    looks = sum((b.stop - b.start) * sum(last - first for first, last in b.seen) for b in blocks)
    return blocks if count * count - looks >= _WORTH_IT else ()


def _block(mask_TT: Tensor, start: int, stop: int) -> Block:
    rows_QT = mask_TT[start:stop]
    edge = torch.zeros(1, dtype=torch.int8, device=mask_TT.device)
    edges = rows_QT.any(0).to(torch.int8).diff(prepend=edge, append=edge)
    firsts = (edges == 1).nonzero().flatten().tolist()
    lasts = (edges == -1).nonzero().flatten().tolist()
    seen = tuple(zip(firsts, lasts, strict=True))
    mask_QK = torch.cat([rows_QT[:, first:last] for first, last in seen], 1)
    is_causal = mask_QK.shape[0] == mask_QK.shape[1] and torch.equal(
        mask_QK, torch.ones_like(mask_QK).tril()
    )
    return Block(start, stop, seen, None if is_causal else mask_QK)


def _attend(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """One layer's attention; shape B x T x H x D. There are G heads of keys and values."""
    blocks = _blocks.get()
    if not blocks:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BHTD, key_BGTD, value_BGTD, attention_mask, dropout, scaling, **options
        )
        return found
    repeats = query_BHTD.shape[1] // key_BGTD.shape[1]
    key_BHTD, value_BHTD = repeat_kv(key_BGTD, repeats), repeat_kv(value_BGTD, repeats)
    outputs = [
        scaled_dot_product_attention(
            query_BHTD[:, :, block.start : block.stop],
            _only(key_BHTD, block.seen),
            _only(value_BHTD, block.seen),
            attn_mask=block.mask_QK,
            dropout_p=dropout,
            scale=scaling,
            is_causal=block.mask_QK is None,
        )
        for block in blocks
    ]
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _only(states_BHTD: Tensor, seen: Sequence[tuple[int, int]]) -> Tensor:
    parts = [states_BHTD[:, :, first:last] for first, last in seen]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
