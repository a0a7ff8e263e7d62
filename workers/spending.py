"""What a run's learning has cost so far, over all its attempts, and samplers that count it."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from adapters.sampling import MeasuringSampler, Reply, RolloutSampler
from adapters.spec import BudgetSpec
from adapters.types import ChatMessage, ProgressCallback, Rollout, SamplingParams, TopK
from server.core.clock import monotonic
from workers.lesson import write_json

_T = TypeVar("_T")

_COUNTING = threading.Lock()
"""Held while a file is read and written anew: an account is made for each count, and samplers are
asked from several threads."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens generated and trained, steps of the optimiser, seconds of training and of waiting for
    what the engine says."""

    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0

    def __add__(self, more: "Spent") -> "Spent":
        seconds = round(self.seconds + more.seconds, 3)
        return Spent(self.tokens + more.tokens, self.steps + more.steps, seconds)

    def is_within(self, budget: BudgetSpec) -> bool:
        """Whether no ceiling is reached."""
        ceilings = (budget.tokens, budget.steps, budget.seconds)
        figures = (self.tokens, self.steps, self.seconds)
        return all(
            ceiling is None or figure < ceiling
            for figure, ceiling in zip(figures, ceilings, strict=True)
        )


class Account:
    """What a run has spent, in a file of its folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def total(self) -> Spent:
        try:
            return Spent(**json.loads(self._path.read_text()))
        except FileNotFoundError:
            return Spent()

    def add(self, more: Spent) -> None:
        """Count what was spent, for the next attempt too; from any thread."""
        with _COUNTING:
            write_json(self._path, asdict(self.total + more))


class AnySampler(MeasuringSampler, RolloutSampler, Protocol):
    """A sampler that can do everything."""


@dataclass(frozen=True, slots=True)
class CountedSampler:
    """Another sampler, whose tokens and time are counted; of replies without ids the time only."""

    inner: AnySampler
    spend: Callable[[Spent], None]

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        """See :class:`adapters.sampling.Sampler`."""
        return self._counted(
            lambda: self.inner.chat(conversations, params, on_progress=on_progress), lambda _: 0
        )

    def replies(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[Reply]:
        """See :class:`adapters.sampling.MeasuringSampler`."""
        return self._counted(
            lambda: self.inner.replies(conversations, params, on_progress=on_progress),
            lambda replies: sum(len(reply.ids) for reply in replies),
        )

    def score(
        self, beginnings: Sequence[Sequence[int]], *, on_progress: ProgressCallback | None = None
    ) -> list[TopK]:
        """See :class:`adapters.sampling.MeasuringSampler`."""
        return self._counted(
            lambda: self.inner.score(beginnings, on_progress=on_progress), lambda _: 0
        )

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> list[tuple[Rollout, ...]]:
        """See :class:`adapters.sampling.RolloutSampler`."""
        return self._counted(
            lambda: self.inner.rollouts(
                conversations, params, group=group, on_progress=on_progress
            ),
            lambda groups: sum(len(rollout.ids) for each in groups for rollout in each),
        )

    def _counted(self, ask: Callable[[], _T], tokens_of: Callable[[_T], int]) -> _T:
        began = monotonic()
        found = ask()
        self.spend(Spent(tokens=tokens_of(found), seconds=monotonic() - began))
        return found
