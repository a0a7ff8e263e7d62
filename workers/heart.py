"""A run's sign of life: a thread that renews the lease and brings news of a cancel."""

import threading
from types import TracebackType
from typing import Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from server.core.clock import monotonic
from server.core.errors import LeaseLost
from server.db.session import Database
from server.services import runs
from server.services.runs import Claim

log = structlog.get_logger(__name__)


class RunCancelled(Exception):
    """Somebody asked for the run to stop."""


class Heart:
    """Beats while a run is worked at; :meth:`check` raises where the work has to stop.

    The stage's progress travels with the beat, so a run costs the database one small write per
    ``every_s`` however fast it advances. Losing the lease stops the work as a cancel does: whoever
    took the run over must not find a second trainer beside it.
    """

    def __init__(self, database: Database, claim: Claim, *, every_s: float, lease_s: float) -> None:
        self._database = database
        self._claim = claim
        self._every_s = every_s
        self._lease_s = lease_s
        self._wake = threading.Event()
        self._is_over = False
        self._stop_reason: Exception | None = None
        self._stage: str | None = None
        self._done = 0
        self._total = 0
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over = True
        self._wake.set()
        self._thread.join()

    def begin(self, stage: str, *, total: int = 0) -> None:
        """Enter a stage; it is written at once, so that a watcher sees every stage."""
        self._stage, self._done, self._total = stage, 0, total
        with self._database.unit_of_work() as session:
            runs.add_event(session, self._claim.run_id, self._claim.attempt, "stage", stage=stage)
        self._wake.set()
        self.check()

    def progress(self, done: int, total: int) -> None:
        """How far the stage is; raises when the work has to stop."""
        self._done, self._total = done, total
        self.check()

    def check(self) -> None:
        """Raise RunCancelled or LeaseLost when the run has to stop."""
        if self._stop_reason is not None:
            raise self._stop_reason

    def confirm(self) -> None:
        """Ask the database, before something is changed that the run's next owner relies on.

        A worker that was stopped for longer than its lease learns of it at its next beat only.

        Raises:
            RunCancelled, LeaseLost: the work has to stop.
        """
        self.check()
        with self._database.unit_of_work() as session:
            runs.assert_owned(session, self._claim)

    def _beat(self) -> None:
        renewed_at = monotonic()
        while not self._is_over and self._stop_reason is None:
            try:
                self._renew()
                renewed_at = monotonic()
            except SQLAlchemyError as error:
                # A database that is away for a moment must not end a training. Once the lease has
                # run out unrenewed, another worker may have the run.
                log.warning("heartbeat_failed", run_id=self._claim.run_id, error=str(error))
                if monotonic() - renewed_at > self._lease_s:
                    self._stop_reason = LeaseLost(self._claim.run_id, self._claim.attempt)
            except Exception as error:  # without a beat the work must not go on
                self._stop_reason = error
            self._wake.wait(self._every_s)
            self._wake.clear()

    def _renew(self) -> None:
        with self._database.unit_of_work() as session:
            is_cancelled = runs.heartbeat(
                session, self._claim, stage=self._stage, done=self._done, total=self._total
            )
        if is_cancelled:
            self._stop_reason = RunCancelled()
