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

A run without new documents (after a deletion, or to learn again) needs no gain, or a document
could never be forgotten; it must show no loss.

Not covered: replies cut at the length limit (a reply here is only its text), and safety.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from adapters.evaluation.exam import Answer
from adapters.evaluation.general import slice_of
from adapters.evaluation.metrics import items_for_power, smallest_conclusive
from adapters.evaluation.pairing import Pair, PairingError, check_documents, pair_answers
from adapters.evaluation.slices import SliceResult, Verdict, count_slice
from adapters.spec import GateThresholds
from adapters.types import JSON, ExamItem

__all__ = ["Decision", "PairingError", "SliceResult", "Verdict", "decide"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, the worst of all judged slices, with one sentence for each of them."""

    verdict: Verdict
    reasons: tuple[str, ...]
    slices: tuple[SliceResult, ...]
    further_items: int | None
    """The most that any inconclusive slice needs, where that can be computed."""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON, for the database and the API."""
        rows: list[JSON] = [result.to_json() for result in self.slices]
        return {
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "slices": rows,
            "further_items": self.further_items,
        }


def decide(
    items: Sequence[ExamItem],
    champion: Sequence[Answer],
    challenger: Sequence[Answer],
    *,
    new_documents: Collection[str],
    earlier_documents: Collection[str],
    thresholds: GateThresholds | None = None,
) -> Decision:
    """Compare two versions on the same items.

    `new_documents` are the ids that the champion has not learnt, `earlier_documents` those that
    it has; items without a document are the general suite.

    Raises:
        PairingError: an item has not exactly one answer from each side, an answer has no item,
            an id stands twice, or an item's document is in neither or both of the lists.
    """
    limits = thresholds or GateThresholds()
    pairs = pair_answers(items, champion, challenger)
    check_documents(items, new_documents, earlier_documents)
    if not items:
        return Decision(Verdict.INCONCLUSIVE, ("nothing was asked",), (), None)
    judged = [
        *_judge_new(pairs, new_documents, limits),
        *_judge_earlier(pairs, earlier_documents, limits),
        *_judge_general(pairs, limits),
        *_judge_form(pairs, limits),
    ]
    verdicts = {result.verdict for result, _ in judged}
    if Verdict.REJECT in verdicts:
        verdict = Verdict.REJECT
    elif Verdict.INCONCLUSIVE in verdicts:
        verdict = Verdict.INCONCLUSIVE
    else:
        verdict = Verdict.PROMOTE
    further = [result.further_items for result, _ in judged if result.further_items is not None]
    return Decision(
        verdict=verdict,
        reasons=tuple(reason for _, reason in judged if reason),
        slices=tuple(result for result, _ in judged),
        further_items=max(further, default=None),
    )


# A slice and the sentence about it; the sentence is empty for a slice that is not judged.
_Judged: TypeAlias = tuple[SliceResult, str]


def _judge_new(pairs: list[Pair], new: Collection[str], limits: GateThresholds) -> list[_Judged]:
    if not new:
        return []
    chosen = [pair for pair in pairs if pair.item.document_id in new]
    overall = _judge_gain(count_slice("new documents", (pair.is_right for pair in chosen)), limits)
    return [overall, *((result, "") for result in _per_document(chosen, new))]


def _judge_earlier(
    pairs: list[Pair], earlier: Collection[str], limits: GateThresholds
) -> list[_Judged]:
    chosen = [pair for pair in pairs if pair.item.document_id in earlier]
    if not chosen:
        return []
    share, at_least = limits.document_margin_share, limits.document_margin_items
    documents = _per_document(chosen, earlier)
    together = count_slice("earlier documents", (pair.is_right for pair in chosen))
    margin = max(at_least, _part(limits.earlier_margin_share, together.items))
    return [
        _judge_loss(together, margin, limits),
        *(
            _judge_loss(
                result,
                max(at_least, _part(share, result.items)),
                limits,
                tests=len(documents),
            )
            for result in documents
        ),
    ]


def _judge_general(pairs: list[Pair], limits: GateThresholds) -> list[_Judged]:
    chosen = [pair for pair in pairs if pair.item.document_id is None]
    overall = count_slice("general suite", (pair.is_right for pair in chosen))
    if overall.items < limits.min_general_items:
        return [_too_few(overall, limits.min_general_items)]
    parts = sorted({slice_of(pair.item.id) for pair in chosen} - {""})
    return [
        _judge_loss(overall, _part(limits.general_margin_share, overall.items), limits),
        *((count_slice(f"general: {part}", _right_in(chosen, part)), "") for part in parts),
    ]


def _judge_form(pairs: list[Pair], limits: GateThresholds) -> list[_Judged]:
    result = count_slice("form", (pair.is_sound for pair in pairs))
    return [_judge_loss(result, _part(limits.form_margin_share, result.items), limits)]


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
    result: SliceResult, margin: int, limits: GateThresholds, *, tests: int = 1
) -> _Judged:
    """`tests` is how many slices are judged alike, each then at alpha / tests (Bonferroni)."""
    sentence = result.describe()
    if result.p_loss <= limits.alpha / tests:
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
    blind = "; so few right at first that no loss could show" if result.champion <= margin else ""
    return _settle(result, Verdict.PROMOTE), f"{sentence}, margin {margin}{blind}"


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


def _per_document(pairs: list[Pair], documents: Iterable[str]) -> list[SliceResult]:
    results = (
        count_slice(
            f"document {document}",
            (pair.is_right for pair in pairs if pair.item.document_id == document),
        )
        for document in sorted(documents)
    )
    return [result for result in results if result.items]


def _right_in(pairs: list[Pair], part: str) -> Iterable[tuple[bool, bool]]:
    return (pair.is_right for pair in pairs if slice_of(pair.item.id) == part)
