"""From rewards to advantages, and from lengths to token weights: what tells GRPO's kin apart.

Pure functions over one group, the G rollouts of one prompt. The weights go into a
`TrainingSample` as its `rl` weight per token and its mass.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_STD_FLOOR = 1e-4
"""Added to a group's standard deviation, so that nearly equal rewards do not blow up."""


class TokenWeight(NamedTuple):
    """Weight of each of a sequence's trained tokens, and the sequence's part of the divisor."""

    weight: float
    mass: float


def grpo_advantages(rewards_G: Sequence[float]) -> list[float]:
    """Rewards less their mean, over their standard deviation (with G - 1); all 0 if all equal.

    Raises:
        ValueError: a reward is not finite.
    """
    centred_G = centred_advantages(rewards_G)
    if not any(centred_G):
        return centred_G
    scale = statistics.stdev(rewards_G) + _STD_FLOOR
    return [advantage / scale for advantage in centred_G]


def centred_advantages(rewards_G: Sequence[float]) -> list[float]:
    """Rewards less their mean, as Dr. GRPO has it; all exactly 0 if all are equal.

    Without the division an easy or hard prompt does not count more than one in between.

    Raises:
        ValueError: a reward is not finite.
    """
    if not all(map(math.isfinite, rewards_G)):
        raise ValueError("a reward is not finite; drop that rollout or give it a reward")
    if not rewards_G or min(rewards_G) == max(rewards_G):
        return [0.0] * len(rewards_G)
    mean = statistics.fmean(rewards_G)
    return [reward - mean for reward in rewards_G]


def is_informative(rewards_G: Sequence[float]) -> bool:
    """Whether the group teaches anything; DAPO's dynamic sampling leaves the others out."""
    return len(rewards_G) > 1 and min(rewards_G) < max(rewards_G)


def grpo_weight(trained_count: int) -> TokenWeight:
    """Mean over a sequence's tokens, then over sequences: a long one's tokens count less."""
    return TokenWeight(1.0 / trained_count, 1.0)


def dr_grpo_weight(max_new_tokens: int) -> TokenWeight:
    """The same constant for every token, whatever the length: no reward for being long."""
    return TokenWeight(1.0 / max_new_tokens, 1.0)


def dapo_weight(trained_count: int) -> TokenWeight:
    """Mean over all tokens of the step."""
    return TokenWeight(1.0, float(trained_count))
