"""Statistics of paired right-or-wrong answers: exact McNemar tests, a bootstrap, and power.

Only the pairs in which the two sides differ carry evidence: `gained` (wrong, then right) and
`lost` (right, then wrong). If nothing has changed, each such pair is a fair coin (McNemar 1947),
and the tests below sum its binomial tail exactly, because the counts here are small.
"""

import math
from functools import lru_cache
from operator import mul

import numpy as np

BOOTSTRAP_RESAMPLES = 10_000


def mcnemar_one_sided(*, gained: int, lost: int) -> float:
    """Exact probability of at least `gained` gains among the differing pairs by chance.

    Swap the arguments for the test of loss. 1.0 when no pair differs.
    """
    return _upper_tail(gained + lost, gained)


def mcnemar_two_sided(*, gained: int, lost: int) -> float:
    """Exact probability of a split at least this uneven, either way, by chance."""
    return min(1.0, 2.0 * _upper_tail(gained + lost, max(gained, lost)))


def bootstrap_interval(
    *, gained: int, lost: int, items: int, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of (challenger accuracy - champion accuracy), pairs resampled.

    Resampling pairs is drawing their three kinds (gained, lost, same), so it depends on the
    counts only. Returns (0.0, 0.0) without items.
    """
    if items == 0:
        return 0.0, 0.0
    shares = [gained / items, lost / items, (items - gained - lost) / items]
    draws = np.random.default_rng(seed).multinomial(items, shares, size=BOOTSTRAP_RESAMPLES)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / items, [tail, 1.0 - tail])
    return float(low), float(high)


def smallest_conclusive(alpha: float) -> int:
    """Fewest differing pairs, all in favour, for which the one-sided test reaches `alpha`."""
    pairs = 1
    while mcnemar_one_sided(gained=pairs, lost=0) > alpha:
        pairs += 1
    return pairs


def items_for_power(
    *, gained: int, lost: int, items: int, alpha: float, power: float, limit: int = 1000
) -> int | None:
    """About how many items would show the gain with probability `power`, if each item went on
    being gained or lost as often as in these; None when that is over `limit` or never.

    Exact for the sequence "differing pairs are binomial, gains among them are binomial". The
    power of an exact test zigzags a little with the number of items; this is one number on the
    zigzag that suffices, found by bisection.
    """
    if gained <= lost or items == 0:
        return None
    differing = (gained + lost) / items
    chance_at = [
        _tail(pairs, _critical(pairs, alpha), gained / (gained + lost))
        for pairs in range(limit + 1)
    ]

    def suffices(count: int) -> bool:
        weights = _binomial(count, differing)
        return float(sum(map(mul, weights, chance_at))) >= power

    if not suffices(limit):
        return None
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


@lru_cache(maxsize=4096)
def _upper_tail(pairs: int, at_least: int) -> float:
    """P(X >= at_least), X binomial with `pairs` fair coins; integers, so exact up to a rounding."""
    return sum(math.comb(pairs, k) for k in range(at_least, pairs + 1)) / (1 << pairs)


@lru_cache(maxsize=4096)
def _critical(pairs: int, alpha: float) -> int:
    """Fewest gains among `pairs` that reach `alpha`; pairs + 1 when none does."""
    ways, tail, least = 1, 1, pairs + 1  # ways to gain least - 1 of them, and at least so many
    while least > 0 and tail <= alpha * 2**pairs:
        least -= 1
        ways = ways * least // (pairs - least + 1)
        tail += ways
    return least


def _tail(pairs: int, at_least: int, probability: float) -> float:
    return float(sum(_binomial(pairs, probability)[at_least:]))


def _binomial(trials: int, probability: float) -> list[float]:
    """P(X = 0 .. trials)."""
    if probability >= 1.0:
        return [0.0] * trials + [1.0]
    k = np.arange(trials + 1)
    log_factorials = _log_factorials(trials)
    logs = log_factorials[trials] - log_factorials - log_factorials[::-1]
    logs += k * math.log(probability) + (trials - k) * math.log1p(-probability)
    return [float(value) for value in np.exp(logs)]


@lru_cache(maxsize=4096)
def _log_factorials(up_to: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, up_to + 1)))])
