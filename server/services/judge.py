"""The judge: challenger against champion, reply by reply, by tests that may be looked at any time. Pure.

Betting e-processes, after Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting" (JRSS-B 2024), and Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and safe
anytime-valid inference" (2023). For each signal, differences d of challenger and champion in
[-1, 1] come in one by one, and two gamblers bet against what may be true:

- *harm* bets against "the mean of d is at most the margin"; much wealth says: it is worse.
- *safe* bets against "the mean of d is at least the margin"; much wealth says: it is not worse.

Each bet is fixed before its difference is seen, so while the hypothesis holds, wealth is a
supermartingale, and by Ville's inequality the chance that it *ever* reaches 1/a is at most a. That is
why it costs nothing to look after every reply.

Not covered: differences whose mean drifts by what came before them, such as the turns of one
conversation, for which the bounds hold of the running mean only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

_CAUTION = 0.7
"""Part of the bet that grows wealth fastest on average; less of it makes bad luck cost less time."""
_CLIP = 0.9
"""Largest part of a bet's limit, so that no single difference can take all wealth."""
_CONFIDENCE_CLIP = 0.5
_PRIOR_VARIANCE = 0.25
"""Counts as one observation, so that the first bets are small."""
_HOPED = 20
"""Observations that the expectation to see no difference counts as, for those who bet on safety."""
_MOST_LOG_WEALTH = 700.0
"""Beyond, the number no longer fits; nothing hinges on it by then."""


class Verdict(StrEnum):
    """What shall become of a trial."""

    PROMOTE = "promote"
    ABORT = "abort"
    CONTINUE = "continue"


@dataclass(slots=True)
class _Gambler:
    """Wealth of one who bets that the mean of g is above 0, where g lies in [-low, high]."""

    low: float
    hope: float = 0.0
    """What g is expected to be before anything is seen, where something is expected."""
    log_wealth: float = 0.0
    count: int = 0
    total: float = 0.0
    spread: float = _PRIOR_VARIANCE
    """Sum of squared deviations from the running mean, the prior's included."""

    def take(self, g: float) -> None:
        self.log_wealth += math.log1p(self._bet() * g)
        self.count += 1
        self.total += g
        self.spread += (g - self._mean()) ** 2

    def e_value(self) -> float:
        return math.exp(min(self.log_wealth, _MOST_LOG_WEALTH))

    def _bet(self) -> float:
        """The share of wealth that grows it fastest, if what comes is like what came."""
        mean = self._mean()
        if mean <= 0:
            return 0.0
        variance = self.spread / (self.count + 1)
        return min(_CAUTION * mean / (variance + mean * mean), _CLIP / self.low)

    def _mean(self) -> float:
        if not self.hope:
            return self.total / (self.count + 1)
        return (self.total + _HOPED * self.hope) / (self.count + _HOPED)


@dataclass(slots=True)
class _Interval:
    """An empirical-Bernstein confidence sequence for a mean in [0, 1] (theorem 2 of the first paper)."""

    alpha: float
    count: int = 0
    total: float = 0.0
    spread: float = _PRIOR_VARIANCE
    weights: float = 0.0
    weighted: float = 0.0
    slack: float = 0.0
    low: float = 0.0
    high: float = 1.0

    def take(self, x: float) -> None:
        before = (self.total + 0.5) / (self.count + 1)
        variance = self.spread / (self.count + 1)
        self.count += 1
        t = self.count
        rate = 2 * math.log(2 / self.alpha) / (variance * t * math.log1p(t))
        weight = min(math.sqrt(rate), _CONFIDENCE_CLIP)
        self.weights += weight
        self.weighted += weight * x
        self.slack += (x - before) ** 2 * (-math.log1p(-weight) - weight)
        self.total += x
        self.spread += (x - (self.total + 0.5) / (self.count + 1)) ** 2
        centre = self.weighted / self.weights
        width = (math.log(2 / self.alpha) + self.slack) / self.weights
        # All of the intervals hold together, so their intersection does.
        self.low = max(self.low, centre - width)
        self.high = min(self.high, centre + width)


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison: what the signal said of the challenger, and of the champion beside it."""

    challenger: float
    champion: float


@dataclass(slots=True)
class Comparison:
    """One signal's evidence so far."""

    margin: float
    alpha: float
    pairs: int = 0
    challenger_total: float = 0.0
    champion_total: float = 0.0
    _harm: _Gambler = field(init=False)
    _safe: _Gambler = field(init=False)
    _interval: _Interval = field(init=False)

    def __post_init__(self) -> None:
        self._harm = _Gambler(low=1 + self.margin)
        self._safe = _Gambler(low=1 - self.margin, hope=self.margin)
        self._interval = _Interval(self.alpha)

    def take(self, pair: Pair) -> None:
        """Bet on one more pair; both of its values lie in [0, 1]."""
        difference = pair.challenger - pair.champion
        self.pairs += 1
        self.challenger_total += pair.challenger
        self.champion_total += pair.champion
        self._harm.take(difference - self.margin)
        self._safe.take(self.margin - difference)
        self._interval.take((difference + 1) / 2)

    @property
    def harm_e(self) -> float:
        """Evidence that the mean difference is above the margin; 1 says nothing."""
        return self._harm.e_value()

    @property
    def safe_e(self) -> float:
        """Evidence that the mean difference is below the margin; 1 says nothing."""
        return self._safe.e_value()

    def report(self) -> dict[str, Any]:
        """For people: how many pairs, both means, both e-values, and where the difference lies."""
        count = self.pairs
        return {
            "pairs": count,
            "challenger": round(self.challenger_total / count, 4) if count else None,
            "champion": round(self.champion_total / count, 4) if count else None,
            "margin": self.margin,
            "harm_e": _rounded(self.harm_e),
            "safe_e": _rounded(self.safe_e),
            "difference_low": round(2 * self._interval.low - 1, 4),
            "difference_high": round(2 * self._interval.high - 1, 4),
        }

    def to_json(self) -> dict[str, Any]:
        """All that is needed to go on later."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Comparison":
        """What :meth:`to_json` gave."""
        made = cls(state["margin"], state["alpha"])
        made.pairs = state["pairs"]
        made.challenger_total = state["challenger_total"]
        made.champion_total = state["champion_total"]
        made._harm = _Gambler(**state["_harm"])
        made._safe = _Gambler(**state["_safe"])
        made._interval = _Interval(**state["_interval"])
        return made


@dataclass(frozen=True, slots=True)
class Rules:
    """What a verdict asks for."""

    alpha: float
    min_replies: int
    """Of the challenger, before it may be promoted."""
    required: frozenset[str]
    """Signals that must be shown safe, whether or not they have data."""
    required_from: int = 20
    """Any other signal must be shown safe from this many pairs on; with fewer it can only abort."""


def decide(
    comparisons: Mapping[str, Comparison], *, replies: int, rules: Rules
) -> tuple[Verdict, str]:
    """The verdict on all signals together, and the reason in words.

    A wrong abort has the chance ``alpha`` at most, shared by the signals; so has a wrong promotion,
    since the one signal that is worse would have to be shown safe.
    """
    harmed = harmful(comparisons, rules.alpha)
    if harmed is not None:
        return Verdict.ABORT, harmed
    asked = [
        name
        for name, comparison in comparisons.items()
        if name in rules.required or comparison.pairs >= rules.required_from
    ]
    open_signals = [name for name in asked if comparisons[name].safe_e < 1 / rules.alpha]
    if open_signals:
        return Verdict.CONTINUE, f"not sure yet of: {', '.join(open_signals)}"
    if replies < rules.min_replies:
        return Verdict.CONTINUE, f"{replies} of {rules.min_replies} replies"
    return Verdict.PROMOTE, f"not worse after {replies} replies: {', '.join(asked)}"


def harmful(comparisons: Mapping[str, Comparison], alpha: float) -> str | None:
    """Which signal shows harm, in words; None while none does."""
    for name, comparison in comparisons.items():
        if comparison.harm_e >= len(comparisons) / alpha:
            report = comparison.report()
            return (
                f"{name}: {report['challenger']:.1%} against {report['champion']:.1%} "
                f"in {comparison.pairs} pairs (e = {report['harm_e']:g})"
            )
    return None


def in_time(arms: Sequence[tuple[bool, float]]) -> list[Pair]:
    """Pairs from replies in time order, each (is the challenger's, value).

    Whatever one arm says until the other has spoken too stands together, as its mean. No reply is
    used twice, and who is paired with whom does not depend on what was said.
    """
    pairs = []
    waiting: tuple[list[float], list[float]] = ([], [])
    for is_challenger, value in arms:
        waiting[is_challenger].append(value)
        champion, challenger = waiting
        if champion and challenger:
            pairs.append(Pair(_mean(challenger), _mean(champion)))
            waiting = ([], [])
    return pairs


def in_turn(challenger: Sequence[float], champion: Sequence[float]) -> list[Pair]:
    """Pairs one to one, first with first; what is left over on one side says nothing."""
    return [Pair(ours, theirs) for ours, theirs in zip(challenger, champion, strict=False)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
