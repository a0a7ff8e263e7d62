"""What the trainers are given: samples cut from this repository's own documentation."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapters.types import Component, TrainingSample, reply_mask
from benchmarks.results import ROOT

SEED = 0
BATCH = 8

Cut = Callable[[random.Random, Sequence[int]], list[TrainingSample]]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of training data."""

    cut: Cut
    """One step's samples from a stream of tokens."""
    aim: float
    """Everlearn's speed in multiples of TRL's."""


def text() -> str:
    """Prose, the same for every contender at one commit."""
    return "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def steps_of(case: str, tokens: Sequence[int], count: int) -> list[list[TrainingSample]]:
    """The samples of each step; every trainer gets them in this order."""
    draw = random.Random(SEED)
    return [CASES[case].cut(draw, tokens) for _ in range(count)]


def _sample(ids: Sequence[int], trained_from: int, group: str | None = None) -> TrainingSample:
    """Weighted as TRL does: the step's loss is the mean over its trained tokens."""
    count = len(ids) - trained_from
    return TrainingSample(
        tuple(ids),
        reply_mask(trained_from, len(ids)),
        weights={Component.CE: (1.0,) * count},
        mass=float(count),
        group=group,
    )


def _piece(draw: random.Random, tokens: Sequence[int], length: int) -> Sequence[int]:
    start = draw.randrange(len(tokens) - length)
    return tokens[start : start + length]


def _equal(draw: random.Random, tokens: Sequence[int]) -> list[TrainingSample]:
    return [_sample(_piece(draw, tokens, 128), 1) for _ in range(BATCH)]


def _varied(draw: random.Random, tokens: Sequence[int]) -> list[TrainingSample]:
    lengths = [min(512, 8 + round(draw.lognormvariate(3.7, 0.9))) for _ in range(BATCH)]
    return [_sample(_piece(draw, tokens, length), 1) for length in lengths]


def _chats(draw: random.Random, tokens: Sequence[int]) -> list[TrainingSample]:
    """A system prompt, a question, a short answer: what SEAL's self-edits look like."""
    system = tokens[:24]
    samples = []
    for _ in range(BATCH):
        question = _piece(draw, tokens, draw.randint(8, 24))
        answer = _piece(draw, tokens, draw.randint(2, 16))
        ids = [*system, *question, *answer]
        samples.append(_sample(ids, len(system) + len(question)))
    return samples


def _rollouts(draw: random.Random, tokens: Sequence[int]) -> list[TrainingSample]:
    """Several answers to one long prompt."""
    prompt = _piece(draw, tokens, 384)
    return [
        _sample([*prompt, *_piece(draw, tokens, draw.randint(16, 48))], len(prompt), "prompt")
        for _ in range(BATCH)
    ]


CASES = {
    "equal lengths": Case(_equal, aim=1.0),
    "varied lengths": Case(_varied, aim=2.0),
    "short chats": Case(_chats, aim=2.0),
    "long shared prompt": Case(_rollouts, aim=2.0),
}
