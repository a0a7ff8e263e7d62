"""How the library asks a model for text: the protocol, and the error of a failed request.

The implementation over the serving engine lives with its callers; nothing here does I/O.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from adapters.types import ChatMessage, ProgressCallback, Rollout, SamplingParams, TopK

REFUSED = "refused"
"""Why there is no reply to a conversation: the engine does not take it."""

WHY_REFUSED = "refused by the engine, such as too long ones"
"""By which prompts of that kind are counted in a run's report."""


class SamplingError(RuntimeError):
    """The engine could not complete a conversation; the message says why."""


class NotScored(SamplingError):
    """The engine does not tell what is likely after given tokens; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion with what the engine says of it."""

    text: str
    finish_reason: str | None = None
    """`length` when it was cut off; `REFUSED` when the engine does not take the conversation."""
    prompt_ids: tuple[int, ...] = ()
    """The conversation's tokens; empty from an engine that does not tell."""
    ids: tuple[int, ...] = ()
    likeliest: tuple[TopK, ...] = ()
    """Per token, what was likeliest in its place."""


class Sampler(Protocol):
    """Generates with one fixed set of weights; the serving engine in production."""

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        """One completion per conversation, in their order.

        A conversation whose last message is the assistant's is gone on with, in the same turn. One
        that the engine refuses has the empty text where `params.may_be_refused`.

        Raises:
            SamplingError: a conversation could not be completed.
        """
        ...


class RolloutSampler(Sampler, Protocol):
    """A sampler whose completions can be trained on as they were sampled."""

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> list[tuple[Rollout, ...]]:
        """`group` completions of each conversation, in their order; each its own draw of the seed.

        Of a conversation that the engine refuses, as one too long for it, there are none.

        Raises:
            SamplingError: a conversation could not be completed, or the engine tells no tokens.
        """
        ...


@runtime_checkable
class MeasuringSampler(Sampler, Protocol):
    """A sampler that tells more than the text."""

    def replies(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[Reply]:
        """One completion per conversation, in their order.

        Raises:
            SamplingError: a conversation could not be completed.
        """
        ...

    def score(
        self, beginnings: Sequence[Sequence[int]], *, on_progress: ProgressCallback | None = None
    ) -> list[TopK]:
        """What these weights find likeliest after each beginning, in tokens, in their order.

        Raises:
            NotScored: the engine can not tell.
            SamplingError: it did not answer.
        """
        ...
