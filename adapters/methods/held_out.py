"""Keeps the exam's questions out of the lessons."""

from collections.abc import Iterable

from adapters.corpus.questions import cut_of
from adapters.rewards.answers import normalise

_NEARLY_ALL = 0.9


class HeldOut:
    """Recognises a prompt that the exam asks, also when it is worded nearly the same."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._cores = [core for prompt in prompts if (core := _core(prompt))]
        self._bags = [frozenset(core.split()) for core in self._cores]
        self._known = frozenset(self._cores)

    def covers(self, prompt: str) -> bool:
        """Whether the exam asks this: the same words up to one in ten, whatever instruction or
        topic stands around them.
        """
        core = _core(prompt)
        bag = frozenset(core.split())
        return core in self._known or any(
            len(bag & other) >= _NEARLY_ALL * max(len(bag), len(other)) for other in self._bags
        )


def _core(prompt: str) -> str:
    """What a prompt asks, normalised, without the instruction and topic that the rules put on."""
    return normalise(cut_of(prompt))
