"""What form logged replies have, at a glance: enough to choose a method, not to grade by."""

import json
import re
from collections import Counter
from collections.abc import Sequence

from adapters.spec import ContractSpec, JsonSchemaContract, TagsContract, ToolCallContract

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?\s*%?\W{0,3}$")
_CHOICE = re.compile(r"(?:.{0,60}\b(?:answer|choice|option)\b.{0,20})?\(?\b[A-Z]\b\)?\W{0,3}$")
_WHOLE_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?\s*%?")
_LETTER = re.compile(r"\(?[A-Z]\)?\.?")
_BOXED = re.compile(r"\\boxed\s*\{")
_LINE_CHARS = 200
"""A last line longer than this is prose."""


def answer_kinds(replies: Sequence[str]) -> dict[str, float]:
    """Share of the replies that give a short answer, by its kind."""
    found = Counter(kind for kind in map(_answer_kind, replies) if kind is not None)
    return {kind: count / len(replies) for kind, count in sorted(found.items())}


def kind_of_answers(answers: Sequence[str]) -> str:
    """The kind that fits known answers best: `number`, `choice`, or `text` where they differ."""
    if answers and all(_WHOLE_NUMBER.fullmatch(answer.strip()) for answer in answers):
        return "number"
    if answers and all(_LETTER.fullmatch(answer.strip()) for answer in answers):
        return "choice"
    return "text"


def well_formed(replies: Sequence[str], contract: ContractSpec) -> float | None:
    """Upper bound on the share that keeps a contract; None where no cheap look can tell.

    Patterns of users are not run here: they may take for ever.
    """
    if not replies:
        return None
    match contract:
        case JsonSchemaContract() | ToolCallContract():
            kept = [_parses(reply) for reply in replies]
        case TagsContract():
            kept = [_has_tags(reply, contract.tags) for reply in replies]
        case _:
            return None
    return sum(kept) / len(kept)


def _answer_kind(reply: str) -> str | None:
    text = reply.strip()
    if not text:
        return None
    if _BOXED.search(text):
        return "math"
    if text[0] in "{[" and _parses(text):
        return "json"
    last = text.splitlines()[-1].strip()
    if len(last) > _LINE_CHARS:
        return None
    if _NUMBER.search(last):
        return "number"
    return "choice" if _CHOICE.fullmatch(last) else None


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _has_tags(text: str, tags: Sequence[str]) -> bool:
    place = 0
    for tag in tags:
        opened = text.find(f"<{tag}>", place)
        place = text.find(f"</{tag}>", opened)
        if opened < 0 or place < 0:
            return False
    return True
