"""How the library asks a model for text: the protocol, and the error of a failed request.

The implementation over the serving engine lives with its callers; nothing here does I/O.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adapters.types import ChatMessage, ProgressCallback, SamplingParams, TopK


class SamplingError(RuntimeError):
    """The engine could not complete a conversation; the message says why."""


class NotScored(SamplingError):
    """The engine gives no log-probabilities of given tokens; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion with what the engine says of it."""

    text: str
    finish_reason: str | None = None
    """`length` when it was cut off."""
    prompt_ids: tuple[int, ...] = ()
    """The conversation's tokens; empty from an engine that does not tell."""
    ids: tuple[int, ...] = ()
    likeliest: tuple[tuple[float, ...], ...] = ()
    """Per token, the log-probabilities (nats) of the likeliest tokens in its place."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Tokens to be scored: those of `ids` from place `start` (at least 1) on."""

    ids: tuple[int, ...]
    start: int


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

        Raises:
            SamplingError: a conversation could not be completed.
        """
        ...


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
        self, scorings: Sequence[Scoring], *, on_progress: ProgressCallback | None = None
    ) -> list[tuple[TopK, ...]]:
        """For each, what these weights find likeliest in the place of every scored token.

        Each place holds the token that stands there, too, however unlikely.

        Raises:
            NotScored: the engine can not.
            SamplingError: it did not answer.
        """
        ...
