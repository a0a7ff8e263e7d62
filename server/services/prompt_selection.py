"""Which of many prompts a run learns from, and which it is asked in its exam; pure.

What is left out is counted by reason. One user must not decide alone what is learnt, and no prompt
that is asked in an exam may be taught, in whatever company it came.
"""

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from adapters.types import ChatMessage, Opinion, Prompt
from server.services.prompts import is_drawn, turn_key

SAID_TWICE = "said twice"
EARLIER_TURN = "an earlier turn of the same conversation"
HELD_OUT = "the same as a held-out prompt"
GENERAL = "nearly the same as a question of the general suite"
FLOODED = "beyond one user's share"
BEYOND = "beyond the newest that one run takes"

_WORD = re.compile(r"\w+")

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that might be learnt from, with what was said of the reply to it."""

    prompt: Prompt
    is_gate: bool
    """Whether it was drawn for exams when it came."""
    is_uploaded: bool = False
    opinion: Opinion | None = None
    liked_at: datetime | None = None
    """When somebody said last whether the reply was liked."""
    corrected_at: datetime | None = None
    reply: str = ""
    """What was said to it, where it came in traffic."""
    version: str = ""
    """The version that said so."""

    @property
    def key(self) -> str:
        """By which two prompts ask the same."""
        return turn_key(self.prompt.messages)

    def is_held_out(self, rules: "Rules") -> bool:
        """Whether it is only ever asked."""
        return self.is_gate or is_drawn(self.key, rules.held_out)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a run chooses."""

    held_out: float
    """Share of all prompts, by hash."""
    per_user: float
    """Most of the prompts, or opinions, that one end user may have given."""
    most: int
    asked: frozenset[str] = frozenset()
    """Word keys of what the general suite asks."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen, in the order of the candidates."""

    train: tuple[Candidate, ...]
    held_out: tuple[Candidate, ...]
    opinions: tuple[Candidate, ...]
    left_out: dict[str, int]


def words_key(text: str) -> str:
    """By which a prompt is nearly another: its words alone."""
    return " ".join(_WORD.findall(text.casefold()))


def choose(
    prompts: Sequence[Candidate],
    judged: Sequence[Candidate],
    rules: Rules,
    left_out: Counter[str] | None = None,
) -> Selection:
    """Choose among candidates, the best first: what was sent for learning, then the newest.

    Args:
        judged: replies that somebody judged; those on held-out prompts teach nothing.
        left_out: what was left out before, to be added to.
    """
    counts: Counter[str] = Counter() if left_out is None else left_out
    single = _without_earlier_turns(_once(prompts, counts), counts)
    held = [each for each in single if each.is_held_out(rules)]
    # One text may be on both sides of the split: by other words before it, or another's upload.
    held_keys = {each.key for each in held}
    free = [each for each in single if not each.is_held_out(rules)]
    train = _taught(free, held_keys, rules, counts)
    said = [each for each in judged if not each.is_held_out(rules)]
    opinions = _taught(said, held_keys, rules, counts)
    return Selection(
        train=tuple(_newest(_shared(train, rules.per_user, counts), rules.most, counts)),
        held_out=tuple(held[: rules.most]),
        opinions=tuple(_newest(_shared(opinions, rules.per_user, counts), rules.most, counts)),
        left_out={reason: count for reason, count in counts.items() if count},
    )


def cap_of(counts: Collection[int], share: float) -> int:
    """How many one user may give so that nobody gives more than `share` of what all give then.

    Where there are too few users for that, each may give as much as the others.
    """
    if len(counts) < 2:
        return max(counts, default=0)
    fair = max(share, 1 / len(counts))
    cap = max(counts)
    while cap > 1 and cap > fair * sum(min(count, cap) for count in counts) + 1e-9:
        cap -= 1
    return cap


def _once(candidates: Iterable[Candidate], counts: Counter[str]) -> list[Candidate]:
    """Every conversation once."""
    found: dict[Hashable, Candidate] = {}
    for each in candidates:
        key = _conversation(each.prompt.messages)
        if key in found:
            counts[SAID_TWICE] += 1
        else:
            found[key] = each
    return list(found.values())


def _without_earlier_turns(
    candidates: Sequence[Candidate], counts: Counter[str]
) -> list[Candidate]:
    """Of a conversation of several turns only the last one of each asker."""
    begun = {
        (each.prompt.asked_by, _conversation(each.prompt.messages[:end]))
        for each in candidates
        for end in range(1, len(each.prompt.messages))
    }
    kept = [
        each
        for each in candidates
        if each.is_uploaded
        or (each.prompt.asked_by, _conversation(each.prompt.messages)) not in begun
    ]
    counts[EARLIER_TURN] += len(candidates) - len(kept)
    return kept


def _taught(
    candidates: Iterable[Candidate], held_keys: set[str], rules: Rules, counts: Counter[str]
) -> list[Candidate]:
    kept: list[Candidate] = []
    for each in candidates:
        if each.key in held_keys:
            counts[HELD_OUT] += 1
        elif words_key(each.prompt.messages[-1]["content"]) in rules.asked:
            counts[GENERAL] += 1
        else:
            kept.append(each)
    return kept


def _shared(candidates: Sequence[Candidate], share: float, counts: Counter[str]) -> list[Candidate]:
    """No end user with more than a share. What was sent for learning was meant to be learnt."""
    asked = Counter(each.prompt.asked_by for each in candidates if not each.is_uploaded)
    cap = cap_of(list(asked.values()), share)
    taken: Counter[str | None] = Counter()
    kept: list[Candidate] = []
    for each in candidates:
        if not each.is_uploaded:
            if taken[each.prompt.asked_by] == cap:
                counts[FLOODED] += 1
                continue
            taken[each.prompt.asked_by] += 1
        kept.append(each)
    return kept


def _newest(items: Sequence[Item], most: int, counts: Counter[str]) -> Sequence[Item]:
    counts[BEYOND] += max(0, len(items) - most)
    return items[:most]


def _conversation(messages: Sequence[ChatMessage]) -> Hashable:
    return tuple(
        (message["role"], " ".join(message["content"].split()).casefold()) for message in messages
    )
