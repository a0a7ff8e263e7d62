"""Intervals of a mean over passages, questions and seeds, by a bootstrap that respects them.

Questions on one passage are right or wrong together, and all passages share a seed's luck. So each
draw takes passages with replacement, questions within each, and seeds, the same for all passages.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Table: TypeAlias = Sequence[Sequence[Sequence[float]]]
"""By passage, by seed, by question; all passages have the same seeds."""

DRAWS = 2000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(table: Table, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The mean over all entries, questions weighing alike, and its percentile interval.

    Raises:
        ValueError: there is nothing to average, or seeds are missing.
    """
    seeds = {len(passage) for passage in table}
    if not table or len(seeds) != 1 or seeds == {0} or not all(p[0] for p in table):
        raise ValueError("an interval needs passages with questions, all asked with the same seeds")
    source = random.Random(seed)
    means = sorted(_draw(table, source) for _ in range(draws))
    tail = round(draws * (1 - _LEVEL) / 2)
    mean = _mean([value for passage in table for run in passage for value in run])
    return Interval(mean, means[tail], means[draws - 1 - tail])


def differences(after: Table, before: Table) -> list[list[list[float]]]:
    """`after` minus `before`, entry by entry; a `before` of one seed goes with every seed."""
    return [
        [
            [a - b for a, b in zip(run, first[min(number, len(first) - 1)], strict=True)]
            for number, run in enumerate(passage)
        ]
        for passage, first in zip(after, before, strict=True)
    ]


def _draw(table: Table, source: random.Random) -> float:
    seeds = len(table[0])
    runs = source.choices(range(seeds), k=seeds)
    total, count = 0.0, 0
    for passage in source.choices(table, k=len(table)):
        asked = len(passage[0])
        for question in source.choices(range(asked), k=asked):
            for run in runs:
                total += passage[run][question]
                count += 1
    return total / count


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
