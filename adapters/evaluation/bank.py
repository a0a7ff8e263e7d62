"""The questions about one document, from whatever source, none of them twice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adapters.corpus.questions import cut_of
from adapters.rewards.answers import normalise
from adapters.types import ExamItem, ItemKind

_NEARLY_ALL = 0.9
_ORDER = {
    kind: place
    for place, kind in enumerate(
        (ItemKind.USER, ItemKind.TRAFFIC, ItemKind.MODEL, ItemKind.CLOZE, ItemKind.TASK)
    )
}


@dataclass(frozen=True, slots=True)
class _Known:
    core: str
    bag: frozenset[str]
    answers: frozenset[str]


class Bank:
    """The questions that are there already, and whether another is new."""

    def __init__(self, items: Iterable[ExamItem] = ()) -> None:
        self._known: list[_Known] = []
        for item in items:
            self.add(item)

    def add(self, item: ExamItem) -> bool:
        """Take a question in; False when one that is there asks nearly the same."""
        if self.repeats(item):
            return False
        self._known.append(_known(item))
        return True

    def repeats(self, item: ExamItem) -> bool:
        """Whether a question here asks this in the same words, or in nearly the same words (up to
        one in ten) with an accepted answer in common.

        One changed word with another answer is another question: "in 1902", "in 1903".
        """
        new = _known(item)
        return any(
            new.core == old.core
            or (is_nearly(new.bag, old.bag) and bool(new.answers & old.answers))
            for old in self._known
        )


def without_repeats(
    exam: Sequence[ExamItem], train: Sequence[ExamItem]
) -> tuple[list[ExamItem], list[ExamItem]]:
    """The items of any documents without those that repeat a better one of the same document.

    The exam goes before training, then users' questions before those of traffic, of the model and
    of the rules. What stays keeps its side and its order.
    """
    banks: dict[str | None, Bank] = {}
    kept: set[str] = set()
    for side in (exam, train):
        for item in sorted(side, key=lambda item: _ORDER.get(item.kind, len(_ORDER))):
            if banks.setdefault(item.document_id, Bank()).add(item):
                kept.add(item.id)
    return [item for item in exam if item.id in kept], [item for item in train if item.id in kept]


def core_of(prompt: str) -> str:
    """What a prompt asks, normalised, without the instruction and topic that the rules put on."""
    return normalise(cut_of(prompt))


def is_nearly(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two bags of words are the same up to one word in ten."""
    return len(one & other) >= _NEARLY_ALL * max(len(one), len(other))


def _known(item: ExamItem) -> _Known:
    core = core_of(item.prompt)
    answers = frozenset(normalise(answer) for answer in item.answers)
    return _Known(core, frozenset(core.split()), answers)
