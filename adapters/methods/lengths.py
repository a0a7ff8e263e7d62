"""How many tokens prompts have: only the engine knows, and the trainer refuses what is too long."""

from collections.abc import Sequence

from adapters.methods.workbench import Workbench
from adapters.types import JSON, ChatMessage, SamplingParams


def prompt_lengths(
    conversations: Sequence[Sequence[ChatMessage]], bench: Workbench, *, name: str
) -> list[int | None]:
    """Tokens before the reply to each conversation; `name` is for `Workbench.once`.

    None where the engine refuses the conversation, as one too long for it.

    Raises:
        SamplingError: the engine failed, or tells no tokens.
    """

    def ask() -> JSON:
        found = bench.base.rollouts(conversations, SamplingParams(max_tokens=1))
        return [len(group[0].prompt_ids) if group else None for group in found]

    kept = bench.once(name, ask) if conversations else []
    assert isinstance(kept, list)
    return [None if length is None else int(str(length)) for length in kept]
