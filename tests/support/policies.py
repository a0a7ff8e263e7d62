"""A policy on paper: it says one of a few words, and each training makes some likelier."""

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapters.lesson import Stage, Weights
from adapters.rewards.verifiers import Verifier
from adapters.spec import VerifierSpec
from adapters.types import JSON, ChatMessage, ProgressCallback, Rollout, SamplingParams

END = 0
"""The token that ends a reply."""


@dataclass
class WordPolicy:
    """Says one word of `words`, whose log-probabilities `odds` gives, then ends."""

    words: Sequence[str]
    odds: Mapping[str, float]
    """Unnormalised, by word."""
    is_truncated: bool = False
    asked: list[Sequence[ChatMessage]] = field(default_factory=list)

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> list[tuple[Rollout, ...]]:
        self.asked += conversations
        return [self._group(conversation, params, group) for conversation in conversations]

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        return [group[0].text for group in self.rollouts(conversations, params)]

    def _group(
        self, conversation: Sequence[ChatMessage], params: SamplingParams, group: int
    ) -> tuple[Rollout, ...]:
        said = "".join(message["content"] for message in conversation)
        total = sum(self.odds[word] for word in self.words)
        draw = random.Random(f"{params.seed}/{said}")
        drawn = draw.choices(self.words, [self.odds[word] for word in self.words], k=group)
        digest = hashlib.sha256(said.encode()).digest()
        prompt_ids = tuple(1000 + byte for byte in digest[:3])
        return tuple(
            Rollout(
                text=word,
                prompt_ids=prompt_ids,
                ids=(1 + list(self.words).index(word), END),
                logprobs=(math.log(self.odds[word] / total), 0.0),
                is_truncated=self.is_truncated,
            )
            for word in drawn
        )


@dataclass
class PolicyBench:
    """A workbench whose trainings move a `WordPolicy` by the advantages that they are given."""

    base: WordPolicy
    rate: float = 1.0
    budget: Callable[[], bool] = lambda: True
    judge: Verifier | None = None
    writer: WordPolicy = field(init=False)
    editor: WordPolicy = field(init=False)
    stages: list[str] = field(default_factory=list)
    trainings: list[tuple[Stage, Weights | None]] = field(default_factory=list)
    kept: dict[str, JSON] = field(default_factory=dict)
    served: list[Path] = field(default_factory=list)
    _policies: dict[Path, WordPolicy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writer = self.editor = self.base

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(name)
        yield

    def progress(self, done: int, total: int) -> None: ...

    def once(self, name: str, make: Callable[[], JSON]) -> JSON:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def has_budget(self) -> bool:
        return self.budget()

    def verifier(self, spec: VerifierSpec) -> Verifier:
        assert self.judge is not None
        return self.judge

    def train(
        self, stage: Stage, *, start: Weights | None = None, teacher: Weights | None = None
    ) -> Weights:
        before = self._policies.get(start.folder, self.writer) if start else self.base
        odds = {word: math.log(before.odds[word]) for word in before.words}
        for unit in stage.units:
            word = before.words[unit.ids[unit.trained_from] - 1]
            odds[word] += self.rate * unit.advantages[0] / len(stage.units)
        self.trainings.append((stage, start))
        weights = Weights(Path(f"trained-{len(self.trainings) - 1}"))
        moved = {word: math.exp(value) for word, value in odds.items()}
        self._policies[weights.folder] = WordPolicy(before.words, moved, before.is_truncated)
        return weights

    def policy_of(self, weights: Weights) -> WordPolicy:
        return self._policies[weights.folder]

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[WordPolicy]]:
        self.served += [each.folder for each in weights]
        yield [self._policies[each.folder] for each in weights]
