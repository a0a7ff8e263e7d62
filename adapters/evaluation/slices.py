"""Slices of an exam: paired counts of right answers, their statistics, and how they are told."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from adapters.evaluation.intervals import lower_bound
from adapters.evaluation.metrics import bootstrap_interval, mcnemar_one_sided
from adapters.types import JSON


class Verdict(StrEnum):
    """What should become of the challenger."""

    PROMOTE = "promote"
    """It has shown what was asked of it."""
    REJECT = "reject"
    """It has shown harm, or that it has learnt nothing."""
    INCONCLUSIVE = "inconclusive"
    """The items cannot tell; the champion stays."""


@dataclass(frozen=True, slots=True)
class SliceResult:
    """One row of the slice table: the same items, answered by both sides."""

    name: str
    items: int
    champion: int
    """Right answers of the champion (sound replies in the slice "form")."""
    challenger: int
    gained: int
    """Wrong by the champion, right by the challenger."""
    lost: int
    p_gain: float
    p_loss: float
    interval: tuple[float, float]
    """95 % paired bootstrap interval of the difference in accuracy."""
    verdict: Verdict | None = None
    """None: shown for information, not judged."""
    further_items: int | None = None
    """When inconclusive: about how many more items would decide it; None: unknown."""
    lower: float | None = None
    """One-sided lower confidence bound of the difference in accuracy, at the gate's level."""

    def describe(self) -> str:
        """The counts in words: "new documents: 1 of 12 -> 9 of 12"."""
        return f"{self.name}: {self.champion} of {self.items} -> {self.challenger} of {self.items}"

    def to_json(self) -> dict[str, JSON]:
        """One row of the slice table."""
        return {
            "name": self.name,
            "items": self.items,
            "champion": self.champion,
            "challenger": self.challenger,
            "gained": self.gained,
            "lost": self.lost,
            "p_gain": self.p_gain,
            "p_loss": self.p_loss,
            "interval": list(self.interval),
            "verdict": self.verdict.value if self.verdict else None,
            "further_items": self.further_items,
            "lower": self.lower,
        }


def count_slice(
    name: str, pairs: Iterable[tuple[bool, bool]], *, alpha: float = 0.05
) -> SliceResult:
    """The counts and statistics of (champion is right, challenger is right) pairs."""
    outcomes = list(pairs)
    gained = sum(after and not before for before, after in outcomes)
    lost = sum(before and not after for before, after in outcomes)
    return SliceResult(
        name=name,
        items=len(outcomes),
        champion=sum(before for before, _ in outcomes),
        challenger=sum(after for _, after in outcomes),
        gained=gained,
        lost=lost,
        p_gain=mcnemar_one_sided(gained=gained, lost=lost),
        p_loss=mcnemar_one_sided(gained=lost, lost=gained),
        interval=bootstrap_interval(gained=gained, lost=lost, items=len(outcomes)),
        lower=lower_bound(gained=gained, lost=lost, items=len(outcomes), alpha=alpha),
    )
