"""What every adaptation method offers."""

from typing import Protocol

from adapters.methods.workbench import Assignment, Outcome, Workbench


class Method(Protocol):
    """Learns an assignment at a workbench: writes the lesson, tries, trains; one file each."""

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """Make weights of it, or say why there is no update.

        No sample has a prompt of `assignment.held_out`, the exam's, or nearly one. Everything that
        is asked of a model goes through `bench.once`, so that an attempt after a crash trains the
        same.

        Raises:
            SamplingError: the engine failed. A poor model is no error: what it writes is dropped.
        """
        ...
