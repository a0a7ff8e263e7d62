"""Brings the two answers to each item together, and refuses what does not fit one to one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from adapters.evaluation.exam import Answer
from adapters.evaluation.form import is_sound
from adapters.types import ExamItem, ItemKind

_T = TypeVar("_T")


class PairingError(ValueError):
    """Items and answers do not belong together one to one; the message names the first id."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One item with both answers; the properties read (champion, challenger)."""

    item: ExamItem
    champion: Answer
    challenger: Answer

    @property
    def is_right(self) -> tuple[bool, bool]:
        return self.champion.is_correct, self.challenger.is_correct

    @property
    def is_sound(self) -> tuple[bool, bool]:
        return is_sound(self.champion.reply), is_sound(self.challenger.reply)


def pair_answers(
    items: Sequence[ExamItem], champion: Sequence[Answer], challenger: Sequence[Answer]
) -> list[Pair]:
    """Each item with the two answers to it, matched by id, in the order of the items.

    Raises:
        PairingError: an item has not exactly one answer from each side, an answer has no item,
            or an id stands twice.
    """
    known = _by_id("the items", [(item.id, item) for item in items])
    sides = []
    for who, answers in (("the champion", champion), ("the challenger", challenger)):
        side = _by_id(who, [(answer.item_id, answer) for answer in answers])
        if missing := sorted(known.keys() - side.keys()):
            raise PairingError(f"{who} has no answer to item {missing[0]}")
        if stray := sorted(side.keys() - known.keys()):
            raise PairingError(f"{who} answers {stray[0]}, which is not among the items")
        sides.append(side)
    return [Pair(item, sides[0][id_], sides[1][id_]) for id_, item in known.items()]


def check_documents(
    items: Sequence[ExamItem], new: Collection[str], earlier: Collection[str]
) -> None:
    """Raises PairingError unless every item's document is in exactly one of the two lists."""
    if both := sorted(set(new) & set(earlier)):
        raise PairingError(f"document {both[0]} is called both new and earlier")
    for item in items:
        document = item.document_id
        if document is not None and document not in new and document not in earlier:
            raise PairingError(f"item {item.id}: document {document} is neither new nor earlier")


def check_prompts(
    items: Sequence[ExamItem], new: Collection[str], earlier: Collection[str]
) -> None:
    """Raises PairingError unless the two lists have every item that is a prompt in one of them."""
    if both := sorted(set(new) & set(earlier)):
        raise PairingError(f"prompt {both[0]} is called both new and earlier")
    asked = {item.id for item in items if item.kind is ItemKind.PROMPT}
    if stray := sorted(asked ^ {*new, *earlier}):
        raise PairingError(f"prompt {stray[0]} is not both asked and either new or earlier")


def _by_id(where: str, entries: list[tuple[str, _T]]) -> dict[str, _T]:
    result: dict[str, _T] = {}
    for id_, entry in entries:
        if id_ in result:
            raise PairingError(f"item {id_} stands twice among {where}")
        result[id_] = entry
    return result
