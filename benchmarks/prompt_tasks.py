"""Tasks of `make bench-learning-prompts`: prompts to learn from, others of the same kind, and of another.

All are made by rule, with the answers that code knows. A method that learns without answers does not
look at them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from adapters.spec import AnswerKind, AnswerSpec, ContractSpec, JsonSchemaContract, TagsContract
from adapters.types import Prompt
from tests.support.puzzles import make_puzzles

NUMBER = AnswerSpec(kind=AnswerKind.NUMBER)
JUST_THE_NUMBER = "Answer with just the number."
SUM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Tasks:
    """One kind of task, split once."""

    name: str
    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    """Of the same kind; none of them is trained."""
    other: tuple[Prompt, ...]
    """Of another kind."""
    answer: AnswerSpec = NUMBER
    contract: ContractSpec | None = None
    """The form that replies should have."""
    temperature: float = 1.0
    """At which replies are sampled that are counted."""


def reading(seed: int) -> Tasks:
    """Texts of four facts with a question, for the tiny model; the other kind has nine facts.

    Asked hot: the tiny model is surer of itself than a real one.
    """
    drawn = make_puzzles(1000 + seed, 192)
    prompts = [_prompt(each.prompt, each.answer, "reading") for each in drawn]
    short = make_puzzles(2000 + seed, 64, facts=9)
    others = [_prompt(each.prompt, each.answer, "long texts") for each in short]
    tasks = _split("reading", prompts, others, seed, train=128, held_out=64)
    return replace(tasks, temperature=1.8)


def tagged_sums(seed: int) -> Tasks:
    """ "Add 3 and 5 in tags."; the plain question is the other kind."""
    asked = [(a, b) for a in range(2, 12) for b in range(2, 12)]
    prompts = [_prompt(f"Add {a} and {b} in tags.", a + b, "tagged sums") for a, b in asked]
    others = [_prompt(f"What is {a} + {b}?", a + b, "sums") for a, b in asked]
    return _split("tagged sums", prompts, others, seed, contract=TagsContract())


def small_sums(seed: int) -> Tasks:
    """Sums for an instruct model, and the largest of three numbers as the other kind."""
    rng = Random(0)
    asked = [(a, b) for a in range(2, 22) for b in range(2, 22)]
    prompts = [_prompt(f"What is {a} + {b}? {JUST_THE_NUMBER}", a + b, "sums") for a, b in asked]
    threes = [rng.sample(range(1, 100), 3) for _ in range(len(prompts))]
    others = [_prompt(_largest(three), max(three), "largest") for three in threes]
    return _split("sums", prompts, others, seed)


def json_sums(seed: int) -> Tasks:
    """Sums whose answer is to be a JSON object, for an instruct model."""
    form = f"Reply with a JSON object like {json.dumps({'answer': 0})} and nothing else."
    asked = [(a, b) for a in range(2, 22) for b in range(2, 22)]
    prompts = [_prompt(f"What is {a} + {b}? {form}", a + b, "json sums") for a, b in asked]
    contract = JsonSchemaContract(json_schema=SUM_SCHEMA)
    return _split("json sums", prompts, small_sums(seed).held_out, seed, contract=contract)


def _largest(numbers: Sequence[int]) -> str:
    first, second, third = numbers
    return f"Which is the largest of {first}, {second} and {third}? {JUST_THE_NUMBER}"


def _prompt(text: str, answer: object, tag: str) -> Prompt:
    return Prompt(text, ({"role": "user", "content": text},), tag, (str(answer),))


def _split(
    name: str,
    prompts: Sequence[Prompt],
    others: Sequence[Prompt],
    seed: int,
    *,
    train: int = 64,
    held_out: int = 32,
    contract: ContractSpec | None = None,
) -> Tasks:
    drawn = Random(f"{name} {seed}").sample(list(prompts), train + held_out)
    other = Random(f"other than {name} {seed}").sample(list(others), held_out)
    return Tasks(name, tuple(drawn[:train]), tuple(drawn[train:]), tuple(other), contract=contract)
