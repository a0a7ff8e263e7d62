"""Do two answers say the same? By kind, and for votes: which of them belong together.

Answers are compared by what they are worth: "1/2", "0.5" and "50 %" are one number, JSON is compared
by value, formulas as mathematics, labels and texts in any case. An answer that its kind cannot read
equals nothing, not even itself: nothing can be won by saying nothing.

TTRL's own code counts votes by text, so that `1/2` and `0.5` split a majority. Here answers are
gathered into clusters first. Equality of formulas is what math-verify proves under a time limit, and
need not be transitive; a cluster holds whatever is linked, so the order of the votes never counts.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations

from adapters.rewards.amounts import amount_of, plain_text
from adapters.rewards.extraction import (
    choice_of,
    fold,
    labels_in,
)
from adapters.rewards.formulas import are_formulas_equal
from adapters.rewards.json_values import read_json, write_json
from adapters.spec import AnswerKind, AnswerSpec

_MOST_FORMULAS = 32
"""Different formulas of one vote that are compared as mathematics; the rarer ones are by text."""


def are_equal(a: str, b: str, spec: AnswerSpec) -> bool:
    """Whether two answers are the same; either may be a known one, worded by a person."""
    key, other = _key(a, spec), _key(b, spec)
    if key is None or other is None:
        return False
    return key == other or _are_formulas_equal(key, other)


def cluster(answers: Sequence[str | None], spec: AnswerSpec) -> list[int | None]:
    """For each answer the number of its cluster, counted by first appearance; None for no answer.

    Which answers share a cluster does not depend on their order.
    """
    keys = [None if answer is None else _key(answer, spec) for answer in answers]
    leaders = _leaders([key for key in keys if key is not None])
    numbers: dict[Hashable, int] = {}
    return [None if key is None else numbers.setdefault(leaders[key], len(numbers)) for key in keys]


def _leaders(keys: Sequence[Hashable]) -> dict[Hashable, Hashable]:
    """One key for all that are linked."""
    leaders = {key: key for key in keys}

    def find(key: Hashable) -> Hashable:
        while leaders[key] != key:
            key = leaders[key]
        return key

    for one, other in combinations(_compared(keys), 2):
        first, second = find(one), find(other)
        if first != second and _are_formulas_equal(one, other):
            leaders[second] = first
    return {key: find(key) for key in leaders}


def _compared(keys: Sequence[Hashable]) -> Iterator[Hashable]:
    """The formulas worth comparing, in an order of their own: the most frequent first."""
    counts = {key: keys.count(key) for key in dict.fromkeys(keys)}
    order = sorted(counts, key=lambda key: (-counts[key], str(key)))
    formulas = [key for key in order if _formula(key) is not None]
    yield from formulas[:_MOST_FORMULAS]


def _are_formulas_equal(key: Hashable, other: Hashable) -> bool:
    one, two = _formula(key), _formula(other)
    if one is None or two is None or (_is_amount(key) and _is_amount(other)):
        return False
    return are_formulas_equal(one, two)


def _formula(key: Hashable) -> str | None:
    return key[1] if isinstance(key, tuple) and key[0] == "formula" else None


def _is_amount(key: Hashable) -> bool:
    formula = _formula(key)
    return formula is not None and amount_of(formula) is not None


def _key(answer: str, spec: AnswerSpec) -> Hashable | None:
    """What equal answers have in common; None for what the kind cannot read."""
    if not answer.strip():
        return None
    match spec.kind:
        case AnswerKind.NUMBER:
            return amount_of(answer)
        case AnswerKind.MATH:
            return _math_key(answer)
        case AnswerKind.CHOICE:
            return choice_of(answer)
        case AnswerKind.LABEL:
            found = labels_in(answer, spec.labels)
            return found.pop() if len(found) == 1 else None
        case AnswerKind.JSON:
            return _json_key(answer)
        case AnswerKind.REGEX | AnswerKind.TEXT:
            return fold(answer).strip(" .!?\"'`*") or None


def _math_key(answer: str) -> Hashable | None:
    amount = amount_of(answer)
    if amount is not None:
        return ("formula", str(amount))
    formula = " ".join(answer.strip().strip("$").split())
    return ("formula", formula) if plain_text(formula).strip() else None


def _json_key(answer: str) -> Hashable | None:
    try:
        return write_json(read_json(answer))
    except ValueError:
        return None
