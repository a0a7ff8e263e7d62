"""How the library asks a model for text: the protocol, and the error of a failed request.

The implementation over the serving engine lives with its callers; nothing here does I/O.
"""

from collections.abc import Sequence
from typing import Protocol

from adapters.types import ChatMessage, ProgressCallback, SamplingParams


class SamplingError(RuntimeError):
    """The engine could not complete a conversation; the message says why."""


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
