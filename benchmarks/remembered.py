"""A decoder that asks the base model nothing greedy twice: its weights never change.

The same replay prompts and questions come up in every cell. Sampled replies are not kept: they are
meant to differ.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from adapters.lesson import Weights
from adapters.sampling import RolloutSampler
from adapters.types import ChatMessage, ProgressCallback, Rollout, SamplingParams
from benchmarks.decoders import Decoder


@dataclass
class RememberedSampler:
    """See :class:`adapters.sampling.RolloutSampler`; greedy replies are kept in a file, a line each."""

    sampler: RolloutSampler
    path: Path
    _known: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            rows = (json.loads(line) for line in self.path.read_text().splitlines() if line)
            self._known = {row["key"]: row["reply"] for row in rows}

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        if params.temperature > 0:
            return self.sampler.chat(conversations, params, on_progress=on_progress)
        keys = [_key(conversation, params) for conversation in conversations]
        new = {
            key: conversation
            for key, conversation in zip(keys, conversations, strict=True)
            if key not in self._known
        }
        if new:
            replies = self.sampler.chat(list(new.values()), params, on_progress=on_progress)
            self._keep(dict(zip(new, replies, strict=True)))
        return [self._known[key] for key in keys]

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> list[tuple[Rollout, ...]]:
        """As the sampler does; never kept."""
        return self.sampler.rollouts(conversations, params, group=group, on_progress=on_progress)

    def _keep(self, replies: dict[str, str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.writelines(
                json.dumps({"key": key, "reply": reply}) + "\n" for key, reply in replies.items()
            )
        self._known |= replies


class RememberingDecoder:
    """Another decoder whose base model is asked once."""

    def __init__(self, decoder: Decoder, path: Path) -> None:
        self.name = decoder.name
        self._decoder = decoder
        self._path = path
        self._base: RememberedSampler | None = None

    @property
    def base(self) -> RolloutSampler:
        """The untouched base model."""
        if self._base is None:
            self._base = RememberedSampler(self._decoder.base, self._path)
        return self._base

    def serving(self, weights: Sequence[Weights]) -> AbstractContextManager[list[RolloutSampler]]:
        """While it lasts, a sampler for each."""
        return self._decoder.serving(weights)


def _key(conversation: Sequence[ChatMessage], params: SamplingParams) -> str:
    asked = json.dumps([list(conversation), asdict(params)], sort_keys=True)
    return sha256(asked.encode()).hexdigest()
