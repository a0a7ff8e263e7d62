"""Attention in blocks: the numbers of attention with the whole mask, and nothing of other samples."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adapters.spec import LoraSpec, Precision
from adapters.training import block_attention
from adapters.training.batch import lesson, pack
from adapters.training.block_attention import blocks_of
from adapters.training.logprobs import target_logits
from adapters.training.model import load_trainee
from adapters.types import TrainingSample

PREFIX = (5, 6, 7, 8, 9, 10)


def samples(lengths: Sequence[int], *, group: str | None = None) -> list[TrainingSample]:
    """Behind one prefix, of which the last tokens are a group's own where there is one."""
    drawn = [
        (*PREFIX, *(11 + (7 * number + place) % 40 for place in range(length)))
        for number, length in enumerate(lengths)
    ]
    return [replace(lesson(ids, len(PREFIX)), group=group) for ids in drawn]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts however short the row is, so that a tiny model will do."""
    monkeypatch.setattr(block_attention, "_WORTH_IT", 1)
    monkeypatch.setattr(block_attention, "_FEWEST_TOKENS", 3)
    monkeypatch.setattr(block_attention, "_MOST_TOKENS", 8)


def logits(model: Path, units: Sequence[TrainingSample]) -> tuple[Tensor, list[Tensor]]:
    """Of the units' targets, and the gradients of the adapter."""
    spec = LoraSpec(rank=4, alpha=8)
    trainee = load_trainee(model, spec=spec, seed=1, precision=Precision.FLOAT32)
    logits_NV = target_logits(trainee.model, pack(units))
    logits_NV.logsumexp(-1).sum().backward()
    return logits_NV.detach(), [p.grad for p in trainee.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("group", [None, "prompt"], ids=["strangers", "group"])
def test_a_row_in_blocks_gives_what_the_whole_row_gives(
    random_model: Path, group: str | None, request: pytest.FixtureRequest
) -> None:
    units = samples([4, 20, 9, 2, 2, 13], group=group)
    whole, expected = logits(random_model, units)

    request.getfixturevalue("eager")
    assert len(blocks_of(pack(units).mask_11TT[0, 0])) > 3
    found, gradients = logits(random_model, units)

    torch.testing.assert_close(found, whole)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.usefixtures("eager")
def test_no_sample_sees_another(random_model: Path) -> None:
    """Not even one that is too short for a block of its own, and shares the next one's."""
    first, short, *rest = samples([4, 1, 9, 12])
    mask_TT = pack([first, short, *rest]).mask_11TT[0, 0]
    begin = len(first.ids)
    assert any(b.start <= begin and b.stop > begin + 4 for b in blocks_of(mask_TT))
    together, _ = logits(random_model, [first, short, *rest])
    changed = [lesson((*unit.ids[:8], *reversed(unit.ids[8:])), len(PREFIX)) for unit in rest]
    beside_others, _ = logits(random_model, [first, short, *changed])
    count = first.trained_count + short.trained_count

    torch.testing.assert_close(together[:count], beside_others[:count])
    assert not torch.allclose(together[count:], beside_others[count:])


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.booleans())
def test_blocks_cover_the_row_and_each_sees_all_that_its_mask_has(
    lengths: list[int], is_group: bool
) -> None:
    mask_TT = pack(samples(lengths, group="g" if is_group else None)).mask_11TT[0, 0]
    count = mask_TT.shape[0]
    blocks = blocks_of(mask_TT)

    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])][: len(blocks)]
    assert not blocks or blocks[-1].stop == count
    looks = 0
    for block in blocks:
        seen = torch.cat([torch.arange(first, last) for first, last in block.seen])
        own = mask_TT[block.start : block.stop]
        causal = torch.ones(len(own), len(seen), dtype=torch.bool).tril()
        assert torch.equal(own[:, seen], causal if block.mask_QK is None else block.mask_QK)
        assert own.sum() == own[:, seen].sum()
        looks += len(own) * len(seen)
    assert not blocks or count**2 - looks >= 2**17


def test_a_short_row_is_not_cut() -> None:
    assert not blocks_of(pack(samples([10, 20, 30])).mask_11TT[0, 0])
    assert blocks_of(pack(samples([120] * 6)).mask_11TT[0, 0])
