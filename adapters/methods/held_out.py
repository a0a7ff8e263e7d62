"""Keeps the exam's questions out of the lessons."""

from collections.abc import Iterable

from adapters.evaluation.bank import core_of, is_nearly


class HeldOut:
    """Recognises a prompt that the exam asks, also when it is worded nearly the same."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._cores = [core for prompt in prompts if (core := core_of(prompt))]
        self._bags = [frozenset(core.split()) for core in self._cores]
        self._known = frozenset(self._cores)

    def covers(self, prompt: str) -> bool:
        """Whether the exam asks this: the same words up to one in ten, whatever instruction or
        topic stands around them.
        """
        core = core_of(prompt)
        bag = frozenset(core.split())
        return core in self._known or any(is_nearly(bag, other) for other in self._bags)
