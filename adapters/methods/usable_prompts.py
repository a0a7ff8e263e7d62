"""Which of an assignment's prompts a method may learn from."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from adapters.rewards.extraction import fold
from adapters.types import JSON, Prompt


@dataclass(frozen=True, slots=True)
class Usable:
    """Prompts to learn from, in their order, and an account of the others."""

    prompts: list[Prompt]
    left_out: Counter[str] = field(default_factory=Counter)

    def report(self) -> dict[str, JSON]:
        """For the run's report."""
        return {"prompts": len(self.prompts), "left_out": dict(self.left_out)}


def usable_prompts(prompts: Sequence[Prompt], held_out: Collection[str]) -> Usable:
    """Prompts that a user's message ends, each conversation once, none that the exam asks.

    Prompts are short and alike ("What is 3 + 5?", "What is 3 + 6?"), so they are told apart by their
    exact words; case and white space do not count.
    """
    exam = {fold(prompt) for prompt in held_out}
    usable = Usable([])
    seen: set[tuple[str, ...]] = set()
    for prompt in prompts:
        said = tuple(f"{each['role']}\0{fold(each['content'])}" for each in prompt.messages)
        if (reason := _fault_of(prompt, exam)) is not None:
            usable.left_out[reason] += 1
        elif said in seen:
            usable.left_out["repeated"] += 1
        else:
            seen.add(said)
            usable.prompts.append(prompt)
    return usable


def _fault_of(prompt: Prompt, exam: Collection[str]) -> str | None:
    if not prompt.messages or prompt.messages[-1]["role"] != "user":
        return "no user's message at the end"
    last = fold(prompt.messages[-1]["content"])
    if not last:
        return "empty"
    return "asked in the exam" if last in exam else None
