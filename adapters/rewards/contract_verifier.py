"""Does a reply keep a contract? Its form alone counts, not what it says."""

from collections.abc import Sequence

from adapters.rewards.contracts import fault_of
from adapters.spec import ContractSpec
from adapters.types import Attempt, Verdict


class Contracts:
    """Verdicts by one contract."""

    def __init__(self, contract: ContractSpec) -> None:
        self._contract = contract

    def verify(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See `Verifier.verify`; the reason is where the form is broken."""
        faults = (fault_of(attempt.reply, self._contract) for attempt in attempts)
        return [Verdict(fault is None, fault or "") for fault in faults]
