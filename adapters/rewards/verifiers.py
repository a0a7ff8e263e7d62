"""Who says whether a reply is right."""

from collections.abc import Sequence
from typing import Protocol

from adapters.types import Attempt, Verdict


class Verifier(Protocol):
    """Judges replies; never raises for what a model or a user's service has said or done."""

    def verify(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """A verdict for each attempt, in their order."""
        ...
