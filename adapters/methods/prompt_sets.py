"""Which prompts and opinions a run learns from, and why the others are left out.

Two prompts are the same if the whole conversation is, but for white space and case: "3 + 5" and
"3 - 5" are as different as any two. Nobody's share of what a run learns is larger than the config
says, so that one who asks a lot, or rates a lot, does not alone decide what is learnt.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from adapters.corpus.instructions import find_suspects
from adapters.methods.workbench import Assignment
from adapters.spec import PromptSettings
from adapters.types import JSON, ChatMessage, Prompt

_T = TypeVar("_T")

REPEATED = "repeated"
NOTHING_ASKED = "nothing asked"
NOT_A_USERS = "no user's message at the end"
IN_EXAM = "asked in the exam"
ORDERS = "speaks to the learner"
BEYOND_SHARE = "beyond one user's share"


def key_of(messages: Sequence[ChatMessage]) -> str:
    """By what conversations are told apart."""
    return "\0".join(f"{each['role']}\0{plain(each['content'])}" for each in messages)


def plain(text: str) -> str:
    """The text in lower case, its words one space apart."""
    return " ".join(text.split()).casefold()


@dataclass(frozen=True, slots=True)
class Usable:
    """The prompts that a run may learn from, each once, in their order."""

    prompts: list[Prompt]
    given: int
    """How many there were."""
    left_out: Counter[str]
    """The others, by the reason."""

    def report(self) -> dict[str, JSON]:
        """For the run's report."""
        return {"prompts": len(self.prompts), "left_out": dict(self.left_out)}

    def why_too_few(self, least: int) -> str | None:
        """Why nothing is learnt; None where there are enough."""
        if len(self.prompts) >= least:
            return None
        return (
            f"{len(self.prompts)} of {self.given} prompts can be learnt from, and {least} are "
            "needed; send more, or lower min_prompts."
        )


def usable_prompts(assignment: Assignment, config: PromptSettings) -> Usable:
    """Those that somebody asked, that the exam does not ask, and no more of a user than may be."""
    left_out: Counter[str] = Counter()
    exam = frozenset(map(plain, assignment.held_out))
    seen: set[str] = set()
    kept: list[Prompt] = []
    for prompt in assignment.prompts:
        key = key_of(prompt.messages)
        if fault := fault_of(prompt, exam):
            left_out[fault] += 1
        elif key in seen:
            left_out[REPEATED] += 1
        else:
            seen.add(key)
            kept.append(prompt)
    prompts = shared_out(
        kept,
        lambda one: one.asked_by,
        share=config.prompts_per_user,
        seed=config.seed,
        left_out=left_out,
    )
    return Usable(prompts, len(assignment.prompts), +left_out)


def fault_of(prompt: Prompt, exam: frozenset[str]) -> str | None:
    """Why nothing is learnt from a prompt; `exam` are the held-out prompts as `plain` has them."""
    if not prompt.messages or prompt.messages[-1]["role"] != "user":
        return NOT_A_USERS
    last = prompt.messages[-1]["content"]
    if not last.strip():
        return NOTHING_ASKED
    if plain(last) in exam:
        return IN_EXAM
    if find_suspects(last, is_prompt=True):
        return ORDERS
    return None


def shared_out(
    items: Sequence[_T],
    user_of: Callable[[_T], str | None],
    *,
    share: float,
    seed: int,
    left_out: Counter[str],
) -> list[_T]:
    """The items, in their order, so that no user has more than `share` of those that are left.

    With so few users that it cannot be, all have at most the same number; one alone has all. Which
    of a user's items stay is drawn by the seed. An item of no user counts for nobody.
    """
    owned: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        if (user := user_of(item)) is not None:
            owned.setdefault(user, []).append(index)
    most = most_each(
        [len(indices) for indices in owned.values()],
        others=len(items) - sum(map(len, owned.values())),
        share=share,
    )
    dropped: set[int] = set()
    for user, indices in owned.items():
        spare = len(indices) - most
        if spare > 0:
            dropped.update(random.Random(f"{seed} {user}").sample(indices, spare))
    left_out[BEYOND_SHARE] += len(dropped)
    return [item for index, item in enumerate(items) if index not in dropped]


def most_each(counts: Sequence[int], *, others: int, share: float) -> int:
    """The largest number of items for each user that keeps all of them within the share.

    `counts` are the users' items, `others` those of nobody. Equal parts are always within it.
    """
    if not counts:
        return 0
    fair = max(share, 1.0 / (len(counts) + bool(others)))
    low, high = 1, max(counts)
    while low < high:  # what fits is an interval: the total is concave in the number
        most = (low + high + 1) // 2
        if most <= fair * (others + sum(min(count, most) for count in counts)) + 1e-9:
            low = most
        else:
            high = most - 1
    return low


def draws(count: int, size: int, steps: int, seed: int) -> Iterator[tuple[int, ...]]:
    """For each step the numbers, below `count`, of what it takes: none twice before all had a turn.

    A step takes `size` of them, or all if there are fewer.
    """
    shuffler = random.Random(seed)
    waiting: list[int] = []
    for _ in range(steps):
        taken: list[int] = []
        while len(taken) < min(size, count):
            if not waiting:
                waiting = list(range(count))
                shuffler.shuffle(waiting)
            number = next(each for each in reversed(waiting) if each not in taken)
            waiting.remove(number)
            taken.append(number)
        yield tuple(taken)
