"""What the drift figures mean for the verdict: one check each, with a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from adapters.evaluation.drift import Drift
from adapters.evaluation.slices import Verdict
from adapters.spec import GateThresholds
from adapters.types import JSON


@dataclass(frozen=True, slots=True)
class Check:
    """One figure beside right and wrong, and what it says."""

    name: str
    champion: float | None
    """None where the figure is the challenger's alone."""
    challenger: float | None
    limit: float | None
    """The bound that the challenger's figure is held to; None: nothing to hold it to."""
    verdict: Verdict | None
    """None: not measured, or shown for information."""
    reason: str

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "name": self.name,
            "champion": self.champion,
            "challenger": self.challenger,
            "limit": self.limit,
            "verdict": self.verdict.value if self.verdict else None,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class PastDrift:
    """KL per token of an exam that was accepted; None where it was not measured."""

    target: float | None
    general: float | None


def check_drift(
    drift: Drift | None, past: Sequence[PastDrift], limits: GateThresholds
) -> tuple[Check, ...]:
    """One check for each figure. A figure that is missing says so and passes only if it may."""
    if drift is None:
        return (_missing("drift", "nothing was measured beside the answers", limits),)
    return (
        _check_kl(
            "KL on the documents",
            drift.target.kl,
            [found.target for found in past],
            limits.kl_ceiling,
            drift,
            limits,
            is_asked=drift.target.prompts > 0,
        ),
        _check_kl(
            "KL on the general suite",
            drift.general.kl,
            [found.general for found in past],
            limits.kl_general_ceiling,
            drift,
            limits,
            is_asked=drift.general.prompts > 0,
        ),
        _check_entropy(*drift.general.entropy, limits),
        _check_length(*drift.general.length, limits),
        _tell("distinct word pairs", *drift.general.distinct),
    )


def _check_kl(
    name: str,
    found: float | None,
    earlier: Sequence[float | None],
    ceiling: float,
    drift: Drift,
    limits: GateThresholds,
    *,
    is_asked: bool,
) -> Check:
    if not is_asked:
        return Check(name, None, None, None, None, "")
    if found is None:
        return _missing(name, drift.not_measured or "no prompt was sampled", limits)
    sentence = f"{name}: {found:.3g} nats per token"
    if found > ceiling:
        reason = f"{sentence}, beyond the ceiling of {ceiling:g}: it is another model now"
        return Check(name, None, found, ceiling, Verdict.REJECT, reason)
    known = [value for value in earlier if value is not None]
    if len(known) < limits.kl_exams:
        return Check(
            name, None, found, ceiling, Verdict.PROMOTE, f"{sentence}, ceiling {ceiling:g}"
        )
    usual = median(known)
    bound = min(ceiling, max(limits.kl_least, limits.kl_factor * usual))
    if found > bound:
        reason = (
            f"{sentence}, above {bound:.3g}: {limits.kl_factor:g} times what the line's "
            f"{len(known)} accepted exams moved (median {usual:.3g})"
        )
        return Check(name, None, found, bound, Verdict.INCONCLUSIVE, reason)
    return Check(name, None, found, bound, Verdict.PROMOTE, f"{sentence}, alarm above {bound:.3g}")


def _check_entropy(
    champion: float | None, challenger: float | None, limits: GateThresholds
) -> Check:
    name = "entropy on the general suite"
    if champion is None or challenger is None:
        return _missing(name, "the engine gives no log-probabilities", limits)
    sentence = f"{name}: {champion:.3g} -> {challenger:.3g} nats per token"
    if champion < limits.min_entropy:
        return Check(name, champion, challenger, None, Verdict.PROMOTE, sentence)
    bound = limits.min_entropy_share * champion
    if challenger < bound:
        reason = f"{sentence}: below {bound:.3g}, its replies have collapsed"
        return Check(name, champion, challenger, bound, Verdict.REJECT, reason)
    return Check(name, champion, challenger, bound, Verdict.PROMOTE, sentence)


def _check_length(
    champion: float | None, challenger: float | None, limits: GateThresholds
) -> Check:
    name = "length on the general suite"
    if champion is None or challenger is None:
        return _missing(name, "the engine does not tell the tokens of its replies", limits)
    sentence = f"{name}: {champion:.3g} -> {challenger:.3g} tokens per reply"
    change = limits.length_change_share
    longest = (1 + change) * champion
    if challenger > longest or challenger < (1 - change) * champion:
        reason = f"{sentence}: changed by more than {change:.0%}"
        return Check(name, champion, challenger, longest, Verdict.INCONCLUSIVE, reason)
    return Check(name, champion, challenger, longest, Verdict.PROMOTE, sentence)


def _tell(name: str, champion: float | None, challenger: float | None) -> Check:
    """Shown and not judged; whether a reply repeats itself is judged reply by reply, as form."""
    return Check(name, champion, challenger, None, None, "")


def _missing(name: str, why: str, limits: GateThresholds) -> Check:
    verdict = Verdict.INCONCLUSIVE if limits.require_drift else None
    return Check(name, None, None, None, verdict, f"{name}: not measured ({why})")
