"""The promotion gate: from paired answers to promote, reject or inconclusive, with reasons.

Pure. Every judgement compares two answers to the same item, so an item that both sides get
right, or both wrong, says nothing, and the order of items does not matter.

The two kinds of judgement:

- New documents need a *gain*: the one-sided exact McNemar test must reach alpha. No net gain at
  all is a rejection; a gain that chance could explain is inconclusive.
- Everything else must show *no loss*: the net loss must stay within a margin, and must not be
  significant. A significant loss is a rejection, also within the margin, because margins granted
  version after version would add up. A loss beyond the margin that chance could explain is
  inconclusive, which does not promote either.

Why a margin on the count and not a proof of non-inferiority: with 40 general items even two lost
ones leave an interval that reaches 15 points of loss, so a proof would refuse nearly everything.
At 40 items and the default margin of 4 the margin does the work (a significant loss takes 5
items, none gained); on a suite of hundreds the test does. A document's own margin is loose
(a quarter, at least one item), because among many documents some lose two items by chance in
every version; it is there to see a collapse, and the tight margin is on all of them together.

The mode `non_inferiority` asks for that proof all the same: the lower confidence bound of the
difference (Tango's) must be above the margin, on every earlier document, on all together and on
the general suite. Every one must pass, so those tests need no correction (intersection-union). The
tests of harm do: each earlier document is another chance of a false alarm, and Holm's procedure
keeps the chance of any at alpha.

Beside what is right, the gate looks at the form of replies (broken down, cut off, refused) and at
how far the challenger has drifted from the base (`drift`). What the engine can not measure is
said, and passes only because `require_drift` is off.

A run without new documents (after a deletion, or to learn again) needs no gain, or a document
could never be forgotten; it must show no loss.

A run that learnt from prompts must show a gain on held-out prompts in the same way, unless nobody
can say which reply to them is right; and no loss on those of earlier runs.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from adapters.evaluation.drift import Drift
from adapters.evaluation.drift_checks import Check, PastDrift, check_drift
from adapters.evaluation.exam import Answer
from adapters.evaluation.form import is_refusal
from adapters.evaluation.general import slice_of
from adapters.evaluation.intervals import holm, items_for_bound
from adapters.evaluation.metrics import items_for_power, smallest_conclusive
from adapters.evaluation.pairing import (
    Pair,
    PairingError,
    check_documents,
    check_prompts,
    pair_answers,
)
from adapters.evaluation.slices import SliceResult, Verdict, count_slice
from adapters.spec import GateThresholds
from adapters.types import JSON, ExamItem

__all__ = [
    "Check",
    "Decision",
    "HeldOutPrompts",
    "Need",
    "PairingError",
    "SliceResult",
    "Verdict",
    "decide",
]

_NEW = "new documents"
_EARLIER = "earlier documents"
GENERAL = "general suite"
NEW_PROMPTS = "new prompts"
_EARLIER_PROMPTS = "earlier prompts"
_DOCUMENT = "document "


@dataclass(frozen=True, slots=True)
class HeldOutPrompts:
    """Ids of the items that are held-out prompts, by the run that learns or learnt from their like."""

    new: frozenset[str] = frozenset()
    """Of this run's."""
    earlier: frozenset[str] = frozenset()
    """Of runs that the champion comes from."""
    is_learning: bool = True
    """Whether this run learns from prompts at all."""
    must_gain: bool = True
    """Whether it must answer more of its own rightly; if not, only no fewer."""


@dataclass(frozen=True, slots=True)
class Need:
    """Questions that an inconclusive slice lacks."""

    slice: str
    items: int
    """About how many more, in all."""
    documents: tuple[str, ...]
    """Ids of the documents that they could be about; none for the general suite."""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {"slice": self.slice, "items": self.items, "documents": list(self.documents)}

    def __str__(self) -> str:
        about = f" (about {', '.join(self.documents)})" if self.documents else ""
        what = "prompts" if self.is_of_prompts else "questions"
        return f"{self.slice}: about {self.items} more {what}{about}"

    @property
    def is_of_prompts(self) -> bool:
        """Whether it is held-out prompts that are lacking; nobody can write those."""
        return self.slice in (NEW_PROMPTS, _EARLIER_PROMPTS)


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, the worst of all judged slices, with one sentence for each of them."""

    verdict: Verdict
    reasons: tuple[str, ...]
    slices: tuple[SliceResult, ...]
    further_items: int | None
    """The most that any inconclusive slice needs, where that can be computed."""
    needs: tuple[Need, ...] = ()
    """What to ask more of, where the gate could not tell."""
    checks: tuple[Check, ...] = ()
    """What was compared beside right and wrong."""
    drift: Drift | None = None
    """None: nothing was measured."""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON, for the database and the API."""
        rows: list[JSON] = [result.to_json() for result in self.slices]
        return {
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "slices": rows,
            "further_items": self.further_items,
            "needs": [need.to_json() for need in self.needs],
            "checks": [check.to_json() for check in self.checks],
            "drift": self.drift.to_json() if self.drift else None,
        }


def decide(
    items: Sequence[ExamItem],
    champion: Sequence[Answer],
    challenger: Sequence[Answer],
    *,
    new_documents: Collection[str],
    earlier_documents: Collection[str],
    thresholds: GateThresholds | None = None,
    drift: Drift | None = None,
    past: Sequence[PastDrift] = (),
    prompts: HeldOutPrompts | None = None,
) -> Decision:
    """Compare two versions on the same items.

    `new_documents` are the ids that the champion has not learnt, `earlier_documents` those that
    it has; `prompts` says the same of the items that are prompts. All others are the general
    suite. `drift` is what was measured of the same replies, `past` the KL of the line's accepted
    exams.

    Raises:
        PairingError: an item has not exactly one answer from each side, an answer has no item,
            an id stands twice, or an item's document, or a prompt, is in neither or both of the
            lists.
    """
    limits = thresholds or GateThresholds()
    pairs = pair_answers(items, champion, challenger)
    check_documents(items, new_documents, earlier_documents)
    check_prompts(items, *((prompts.new, prompts.earlier) if prompts else ((), ())))
    if not items:
        return Decision(Verdict.INCONCLUSIVE, ("nothing was asked",), (), None)
    judged = [
        *_judge_new(pairs, new_documents, limits),
        *_judge_prompts(pairs, prompts, limits),
        *_judge_earlier(pairs, earlier_documents, limits),
        *_judge_general(pairs, limits),
        *_judge_form(pairs, limits, drift),
    ]
    checks = check_drift(drift, past, limits)
    verdicts = {result.verdict for result, _ in judged} | {check.verdict for check in checks}
    if Verdict.REJECT in verdicts:
        verdict = Verdict.REJECT
    elif Verdict.INCONCLUSIVE in verdicts:
        verdict = Verdict.INCONCLUSIVE
    else:
        verdict = Verdict.PROMOTE
    slices = tuple(result for result, _ in judged)
    sentences = [reason for _, reason in judged] + [check.reason for check in checks]
    further = [result.further_items for result in slices if result.further_items is not None]
    return Decision(
        verdict=verdict,
        reasons=tuple(filter(None, sentences)),
        slices=slices,
        further_items=max(further, default=None),
        needs=tuple(_needs(slices, new_documents, earlier_documents)),
        checks=checks,
        drift=drift,
    )


def _needs(
    slices: Iterable[SliceResult], new: Collection[str], earlier: Collection[str]
) -> Iterator[Need]:
    for result in slices:
        if not result.further_items:
            continue
        if result.name == _NEW:
            documents = tuple(sorted(new))
        elif result.name == _EARLIER:
            documents = tuple(sorted(earlier))
        else:
            document = result.name.removeprefix(_DOCUMENT)
            documents = () if document == result.name else (document,)
        yield Need(result.name, result.further_items, documents)


# A slice and the sentence about it; the sentence is empty for a slice that is not judged.
_Judged: TypeAlias = tuple[SliceResult, str]


def _judge_new(pairs: list[Pair], new: Collection[str], limits: GateThresholds) -> list[_Judged]:
    if not new:
        return []
    chosen = [pair for pair in pairs if pair.item.document_id in new]
    overall = _judge_gain(_count(_NEW, (pair.is_right for pair in chosen), limits), limits)
    return [overall, *((result, "") for result in _per_document(chosen, new, limits))]


def _judge_earlier(
    pairs: list[Pair], earlier: Collection[str], limits: GateThresholds
) -> list[_Judged]:
    chosen = [pair for pair in pairs if pair.item.document_id in earlier]
    if not chosen:
        return []
    share, at_least = limits.document_margin_share, limits.document_margin_items
    documents = _per_document(chosen, earlier, limits)
    harmed = holm([result.p_loss for result in documents], limits.alpha)
    together = _count(_EARLIER, (pair.is_right for pair in chosen), limits)
    margin = max(at_least, _part(limits.earlier_margin_share, together.items))
    return [
        _judge_loss(together, margin, limits),
        *(
            _judge_loss(result, max(at_least, _part(share, result.items)), limits, is_harmed=harm)
            for result, harm in zip(documents, harmed, strict=True)
        ),
    ]


def _judge_prompts(
    pairs: list[Pair], prompts: HeldOutPrompts | None, limits: GateThresholds
) -> Iterator[_Judged]:
    if prompts is None:
        return
    new, earlier = (
        _count(name, (pair.is_right for pair in pairs if pair.item.id in ids), limits)
        for name, ids in ((NEW_PROMPTS, prompts.new), (_EARLIER_PROMPTS, prompts.earlier))
    )
    if prompts.is_learning and prompts.must_gain:
        yield _judge_gain(new, limits)
    for kept in (earlier,) if prompts.must_gain else (new, earlier):
        if kept.items:
            margin = _part(limits.earlier_margin_share, kept.items)
            yield _judge_loss(kept, max(limits.document_margin_items, margin), limits)


def _judge_general(pairs: list[Pair], limits: GateThresholds) -> list[_Judged]:
    chosen = [pair for pair in pairs if pair.item.is_general]
    overall = _count(GENERAL, (pair.is_right for pair in chosen), limits)
    if overall.items < limits.min_general_items:
        return [_too_few(overall, limits.min_general_items)]
    parts = sorted({slice_of(pair.item.id) for pair in chosen} - {""})
    return [
        _judge_loss(overall, _part(limits.general_margin_share, overall.items), limits),
        *((_count(f"general: {part}", _right_in(chosen, part), limits), "") for part in parts),
    ]


def _judge_form(
    pairs: list[Pair], limits: GateThresholds, drift: Drift | None
) -> Iterator[_Judged]:
    """Whether replies broke down, were cut off, or refuse what is asked of everyone.

    Judged by the margin in both modes: these are alarms, not abilities.
    """
    limits = limits.model_copy(update={"mode": "margin"})
    sound = _count("form", (pair.is_sound for pair in pairs), limits)
    yield _judge_loss(sound, _part(limits.form_margin_share, sound.items), limits)
    if drift is not None and drift.cut:
        ended = ((not before, not after) for before, after in drift.cut.values())
        whole = _count("not cut off", ended, limits)
        yield _judge_loss(whole, _part(limits.finish_margin_share, whole.items), limits)
    general = [pair for pair in pairs if pair.item.is_general]
    if general:
        answered = (
            (not is_refusal(pair.champion.reply), not is_refusal(pair.challenger.reply))
            for pair in general
        )
        willing = _count("not refused", answered, limits)
        yield _judge_loss(willing, _part(limits.refusal_margin_share, willing.items), limits)


def _judge_gain(result: SliceResult, limits: GateThresholds) -> _Judged:
    needed = max(limits.min_new_items, smallest_conclusive(limits.alpha))
    if result.items < needed:
        return _too_few(result, needed)
    sentence = f"{result.describe()}, p = {result.p_gain:.2g}"
    if result.gained <= result.lost:
        return _settle(result, Verdict.REJECT), f"{sentence}: nothing gained"
    if result.p_gain <= limits.alpha:
        return _settle(result, Verdict.PROMOTE), sentence
    further = _further(result, result.gained, result.lost, limits)
    return (
        _settle(result, Verdict.INCONCLUSIVE, further),
        f"{sentence}: chance could explain it{_more(further)}",
    )


def _judge_loss(
    result: SliceResult, margin: int, limits: GateThresholds, *, is_harmed: bool | None = None
) -> _Judged:
    """`is_harmed` is the finding of a test that was corrected for its many alike."""
    sentence = result.describe()
    if is_harmed is None:
        is_harmed = result.p_loss <= limits.alpha
    if is_harmed:
        return (
            _settle(result, Verdict.REJECT),
            f"{sentence}: a loss that chance does not explain (p = {result.p_loss:.2g})",
        )
    if result.lost - result.gained > margin:
        further = _further(result, result.lost, result.gained, limits)
        return (
            _settle(result, Verdict.INCONCLUSIVE, further),
            f"{sentence}: more than the {margin} that may be lost, but chance could explain it "
            f"(p = {result.p_loss:.2g}){_more(further)}",
        )
    if limits.mode == "non_inferiority" and result.items:
        return _judge_bound(result, margin / result.items, limits)
    blind = "; so few right at first that no loss could show" if result.champion <= margin else ""
    return _settle(result, Verdict.PROMOTE), f"{sentence}, margin {margin}{blind}"


def _judge_bound(result: SliceResult, margin: float, limits: GateThresholds) -> _Judged:
    """Whether the bound proves that no more than the margin, a share of the items, is lost."""
    lower = -1.0 if result.lower is None else result.lower
    sentence = f"{result.describe()}, lower bound {lower:+.3f}"
    if lower > -margin:
        return _settle(result, Verdict.PROMOTE), f"{sentence}, margin {-margin:+.3f}"
    total = items_for_bound(
        gained=result.gained,
        lost=result.lost,
        items=result.items,
        margin=margin,
        alpha=limits.alpha,
        power=limits.power,
    )
    further = None if total is None else max(1, total - result.items)
    return (
        _settle(result, Verdict.INCONCLUSIVE, further),
        f"{sentence}: a loss beyond {-margin:+.3f} is not ruled out{_more(further)}",
    )


def _too_few(result: SliceResult, needed: int) -> _Judged:
    further = needed - result.items
    return (
        _settle(result, Verdict.INCONCLUSIVE, further),
        f"{result.describe()}: too few items to tell; {further} more are needed",
    )


def _further(
    result: SliceResult, favourable: int, unfavourable: int, limits: GateThresholds
) -> int | None:
    total = items_for_power(
        gained=favourable,
        lost=unfavourable,
        items=result.items,
        alpha=limits.alpha,
        power=limits.power,
    )
    return None if total is None else max(1, total - result.items)


def _settle(result: SliceResult, verdict: Verdict, further_items: int | None = None) -> SliceResult:
    return replace(result, verdict=verdict, further_items=further_items)


def _more(further: int | None) -> str:
    return "" if further is None else f"; about {further} more items would tell"


def _part(share: float, items: int) -> int:
    return math.floor(share * items + 1e-9)  # 0.1 * 30 must count as 3


def _count(name: str, outcomes: Iterable[tuple[bool, bool]], limits: GateThresholds) -> SliceResult:
    return count_slice(name, outcomes, alpha=limits.alpha)


def _per_document(
    pairs: list[Pair], documents: Iterable[str], limits: GateThresholds
) -> list[SliceResult]:
    results = (
        _count(
            f"{_DOCUMENT}{document}",
            (pair.is_right for pair in pairs if pair.item.document_id == document),
            limits,
        )
        for document in sorted(documents)
    )
    return [result for result in results if result.items]


def _right_in(pairs: list[Pair], part: str) -> Iterable[tuple[bool, bool]]:
    return (pair.is_right for pair in pairs if slice_of(pair.item.id) == part)
