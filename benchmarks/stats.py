"""Percentiles, and the moments at which an open-loop load sends."""

import math
import random
from collections.abc import Iterator, Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was really seen, never a mean of two.

    Args:
        values: in any order; not empty.
        percent: above 0, up to 100.

    Raises:
        ValueError: there are no values, or the percentage is out of range.
    """
    if not values or not 0 < percent <= 100:
        raise ValueError("a percentile needs values, and a percentage above 0 and up to 100")
    # The product first: 0.99 * 100 would be a little more than 99, and the rank one too high.
    rank = math.ceil(percent * len(values) / 100)
    return sorted(values)[rank - 1]


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Moments (seconds from the start) of a Poisson process: users who do not know of each other.

    They depend on nothing that the server does: a slow answer holds up no later question, so what
    waits is counted as waiting (no coordinated omission).

    Args:
        rate: mean number of requests per second.
    """
    if rate <= 0:
        raise ValueError("the rate must be above 0")
    source = random.Random(seed)
    moment = source.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += source.expovariate(rate)
