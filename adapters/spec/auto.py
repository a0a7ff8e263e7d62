"""From what on `auto` takes a method for fit."""

from pydantic import Field

from adapters.spec.base import Settings, Share


class AutoSpec(Settings):
    """What there must be before a policy whose method is `auto` chooses a method."""

    thumbs: int = Field(default=300, ge=1)
    """`kto`: thumbs, up and down together, that no run of it has learnt."""
    minority: Share = 0.15
    """`kto`: part of all thumbs that must be of the rarer kind."""
    corrections: int = Field(default=50, ge=1)
    """`corrections`: replies that users have corrected since a run of it learnt them, if any did."""
    known: Share = 0.5
    """`sd-zero`: part of the prompts whose right answer, or whose tests, are known."""
    failing: Share = 0.2
    """`specs`: part of the champion's logged replies that break the contract."""
    extractable: Share = 0.5
    """`ttrl`: part of the champion's logged replies that give a short answer that can be compared."""
    replies: int = Field(default=8, ge=1)
    """With fewer logged replies of the champion nothing is said of their form."""
    prompts: int = Field(default=32, ge=1)
    """`ttrl`, `sd-zero` and `specs`: prompts to learn from."""
    many_prompts: int = Field(default=300, ge=1)
    """`sept`: prompts to learn from."""
