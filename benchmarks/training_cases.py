"""What the trainers are given: samples cut from this repository's own documentation."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapters.training.advantages import dapo_weight, grpo_advantages
from adapters.types import Component, TrainingSample, reply_mask
from benchmarks.results import ROOT

SEED = 0
BATCH = 8
STEP = "a step is done"
"""What a contender says on stdout after each."""

Cut = Callable[[random.Random, Sequence[int]], list[TrainingSample]]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of training data."""

    cut: Cut
    """One step's samples from a stream of tokens."""
    aim: float
    """Everlearn's speed in multiples of TRL's."""
    rivals: tuple[str, ...] = ("trl-padded", "trl-padding-free")
    """The fastest of them is the baseline."""
    curve: str = "loss"
    """What of each step has to agree between the trainers."""


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


def _reinforced(draw: random.Random, tokens: Sequence[int]) -> list[TrainingSample]:
    """Rollouts of one prompt, some right and some wrong, by DAPO's mean over tokens."""
    rollouts = _rollouts(draw, tokens)
    rewards = [float(index % 3 == 0) for index in range(len(rollouts))]
    samples = []
    for rollout, advantage in zip(rollouts, grpo_advantages(rewards), strict=True):
        weight, mass = dapo_weight(rollout.trained_count)
        count = rollout.trained_count
        samples.append(
            dataclasses.replace(
                rollout,
                weights={Component.RL: (weight,) * count},
                mass=mass,
                advantages=(advantage,) * count,
            )
        )
    return samples


def reward(sample: TrainingSample) -> float:
    """What the rollout got: 1 or 0."""
    return float((sample.advantages or (0.0,))[0] > 0)


CASES = {
    "equal lengths": Case(_equal, aim=1.0),
    "varied lengths": Case(_varied, aim=2.0),
    "short chats": Case(_chats, aim=2.0),
    "long shared prompt": Case(_rollouts, aim=2.0),
    # The loss of a group is the same whatever the model says: it is the gradient that tells.
    "GRPO": Case(_reinforced, aim=2.0, rivals=("trl-grpo",), curve="grad_norm"),
}
