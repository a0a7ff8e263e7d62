"""Texts of invented facts, each with a question whose answer is a number: what the tiny model reads
rightly more often than not, and says rightly less often than that.

Sampled at temperature 1.8 it answers 32 % of those with four facts rightly, and greedily 92 %: a skill
that its own majority can sharpen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from adapters.evaluation.open_book import open_book
from tests.support.tiny_model.corpus import passage
from tests.support.tiny_model.world import make_topic


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A question about a text that it comes with."""

    prompt: str
    answer: str
    """In figures."""


def make_puzzles(seed: int, count: int, *, facts: int = 4) -> list[Puzzle]:
    """The same ones for the same seed; no two alike."""
    draw = Random(seed)
    found: dict[str, Puzzle] = {}
    while len(found) < count:
        topic = make_topic(draw, facts=facts)
        numbers = [fact for fact in topic.facts if fact.answer.isdigit()]
        if not numbers:
            continue
        text = passage(draw, topic)
        fact = draw.choice(numbers)
        prompt = open_book(text, draw.choice(fact.questions))
        found[prompt] = Puzzle(prompt, fact.answer)
    return list(found.values())


def share_solved(puzzles: Sequence[Puzzle], replies: Sequence[str]) -> float:
    """Share of the replies that say the number and no other."""
    right = [
        reply.strip().rstrip(".") == puzzle.answer
        for puzzle, reply in zip(puzzles, replies, strict=True)
    ]
    return sum(right) / len(right)
