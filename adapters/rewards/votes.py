"""The vote on the answer: what most of many replies say, and how many say it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """The outcome of N votes."""

    winner: int | None
    """The cluster that most votes are for; None for a tie, and where nobody answered."""
    agreement: float
    """Share of all votes, those without an answer too, that the leading cluster has; in 0..1."""
    answered: float
    """Share of all votes that have an answer, in 0..1."""
    answers: int
    """How many different answers there are."""

    @property
    def is_tie(self) -> bool:
        """Whether several clusters lead; TTRL's own code lets the first one win, by chance."""
        return self.winner is None and self.answers > 0


def tally(clusters: Sequence[int | None]) -> Tally:
    """Count votes, each for the cluster of its answer; None is no answer, which never wins.

    The order of the votes does not count.
    """
    counts = Counter(number for number in clusters if number is not None)
    if not counts:
        return Tally(None, 0.0, 0.0, 0)
    most = max(counts.values())
    leading = [number for number, count in counts.items() if count == most]
    winner = leading[0] if len(leading) == 1 else None
    total = len(clusters)
    return Tally(winner, most / total, counts.total() / total, len(counts))
