"""Intervals of a difference of two shares of the same items, and Holm's procedure.

The bound is Tango's score interval (Stat. Med. 17, 1998: "Equivalence test and confidence interval
for the difference in proportions for the paired-sample design"): the differences that the score
test, with the nuisance estimated under that difference, does not reject. Unlike Wald's it stands
also when nothing was lost or the items are few. Its test of "no difference" is McNemar's.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

_STEPS = 60


def lower_bound(*, gained: int, lost: int, items: int, alpha: float) -> float:
    """One-sided lower confidence bound, at 1 - alpha, of (challenger's share - champion's).

    `gained` and `lost` of `items` pairs differ. -1.0 without items: nothing is known.
    """
    if items == 0:
        return -1.0
    critical = NormalDist().inv_cdf(1.0 - alpha)
    low, high = -1.0, (gained - lost) / items
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _score(gained, lost, items, middle) > critical:
            low = middle
        else:
            high = middle
    return high


def score_interval(
    *, gained: int, lost: int, items: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Two-sided Tango interval of the difference; (-1.0, 1.0) without items."""
    alpha = (1.0 - confidence) / 2.0
    low = lower_bound(gained=gained, lost=lost, items=items, alpha=alpha)
    high = -lower_bound(gained=lost, lost=gained, items=items, alpha=alpha)
    return low, high


def items_for_bound(
    *, gained: int, lost: int, items: int, margin: float, alpha: float, power: float
) -> int | None:
    """About how many items would put the bound above -`margin`, with probability `power`.

    Normal approximation; half a gain and half a loss are added, so that nothing seen is not taken
    for nothing there. None where the loss seen is beyond the margin: more items will not help.
    """
    if items == 0 or margin + (gained - lost) / items <= 0:
        return None
    gains, losses = (gained + 0.5) / (items + 1), (lost + 0.5) / (items + 1)
    spread = gains + losses - (gains - losses) ** 2
    normal = NormalDist()
    reach = normal.inv_cdf(1.0 - alpha) + normal.inv_cdf(power)
    return math.ceil(spread * (reach / (margin + (gained - lost) / items)) ** 2)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (J. Am. Stat. Assoc. 22, 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses fall, the chance of any false fall being at most alpha (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    falls = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        falls[index] = True
    return falls


def _score(gained: int, lost: int, items: int, difference: float) -> float:
    """Tango's statistic of "the true difference is this one"."""
    linear = (2 * items - gained + lost) * difference - gained - lost
    constant = -lost * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8 * items * constant))
    losses = max(0.0, (root - linear) / (4 * items))  # likeliest share lost, given the difference
    variance = items * (2 * losses + difference * (1 - difference))
    distance = gained - lost - items * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)
