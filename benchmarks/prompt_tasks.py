"""Tasks of `make bench-learning-prompts`: prompts to learn from, others of the same kind, and of another.

All are made by rule, with the answers that code knows. A method that learns without answers does not
look at them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from adapters.spec import AnswerKind, AnswerSpec, ContractSpec, RegexContract
from adapters.types import Prompt
from tests.support.puzzles import make_puzzles

NUMBER = AnswerSpec(kind=AnswerKind.NUMBER)
JUST_THE_NUMBER = "Answer with just the number."
STATED = r"The answer is (?P<answer>\d+)\."
BARE = r"(?P<answer>-?\d+)"


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


def calm_reading(seed: int) -> Tasks:
    """The same, asked at temperature 1."""
    return replace(reading(seed), name="calm reading", temperature=1.0)


def stated(seed: int) -> Tasks:
    """The same, the answer to be said in a set sentence that no prompt asks for."""
    contract = RegexContract(pattern=STATED)
    return replace(calm_reading(seed), name="stated", contract=contract)


def gym_sums(seed: int) -> Tasks:
    """`chain_sum` of reasoning-gym: a sum or difference of two figures; the other kind is larger sums.

    Asked at 0.7: at 1 SmolLM2-135M is right one time in nine, at 0.7 one time in four.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed; it comes with the extra `bench`.
    """
    return _chain_sums("chain_sum", seed)


def bare_gym_sums(seed: int) -> Tasks:
    """The same, to be answered with the number alone, as about one reply in ten is.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed; it comes with the extra `bench`.
    """
    tasks = _chain_sums("bare chain_sum", seed, f" {JUST_THE_NUMBER}")
    return replace(tasks, contract=RegexContract(pattern=BARE))


def small_sums(seed: int) -> Tasks:
    """Sums for an instruct model, and the largest of three numbers as the other kind."""
    rng = Random(0)
    asked = [(a, b) for a in range(2, 22) for b in range(2, 22)]
    prompts = [_prompt(f"What is {a} + {b}? {JUST_THE_NUMBER}", a + b, "sums") for a, b in asked]
    threes = [rng.sample(range(1, 100), 3) for _ in range(len(prompts))]
    others = [_prompt(_largest(three), max(three), "largest") for three in threes]
    return _split("sums", prompts, others, seed)


def _chain_sums(name: str, seed: int, form: str = "") -> Tasks:
    from reasoning_gym import create_dataset  # an extra, and slow to import

    data = create_dataset(
        "chain_sum", size=1000, seed=0, min_terms=2, max_terms=2, min_digits=1, max_digits=1
    )
    asked = {item["question"]: item["answer"] for item in data}
    prompts = [_prompt(question + form, answer, "chain_sum") for question, answer in asked.items()]
    tasks = _split(name, prompts, small_sums(seed).held_out, seed)
    return replace(tasks, temperature=0.7)


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
) -> Tasks:
    drawn = Random(f"{name} {seed}").sample(list(prompts), train + held_out)
    other = Random(f"other than {name} {seed}").sample(list(others), held_out)
    return Tasks(name, tuple(drawn[:train]), tuple(drawn[train:]), tuple(other))
