"""The judge of an exam: the base model, once it has shown that it can be believed."""

from dataclasses import dataclass

from adapters.evaluation.judge import Calibration, Judge, calibrate, judge_digest
from adapters.sampling import Sampler
from adapters.spec import JudgeSpec
from adapters.types import JSON
from server.services import calibrations
from workers.context import WorkerContext


@dataclass(frozen=True, slots=True)
class Seat:
    """Who judges an exam's questions for the judge, and how far it is believed."""

    calibration: Calibration
    sampler: Sampler | None
    """None where the judge is not trusted: its questions are graded by match."""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON, for the report."""
        graded_by = "judge" if self.sampler is not None else "match"
        return {**self.calibration.to_json(), "graded_by": graded_by}


def seat_judge(context: WorkerContext, base: Sampler, *, base_hash: str) -> Seat:
    """The base model as judge, calibrated once, and again when model, prompt or thresholds change.

    Raises:
        SamplingError: the engine failed.
    """
    spec = context.settings.learning.judge
    digest = judge_digest(base_hash, spec)
    calibration = _known(context, digest) or _calibrated(context, base, digest, spec)
    return Seat(calibration, base if calibration.is_trusted else None)


def _known(context: WorkerContext, digest: str) -> Calibration | None:
    with context.database.look() as session:
        row = calibrations.latest(session, digest)
        if row is None:
            return None
        return Calibration(row.cases, row.agreed, row.false_right, row.false_wrong, row.is_trusted)


def _calibrated(context: WorkerContext, base: Sampler, digest: str, spec: JudgeSpec) -> Calibration:
    found = calibrate(Judge(base), spec)
    with context.database.unit_of_work() as session:
        calibrations.record(
            session,
            judge=digest,
            cases=found.cases,
            agreed=found.agreed,
            false_right=found.false_right,
            false_wrong=found.false_wrong,
            is_trusted=found.is_trusted,
        )
    return found
