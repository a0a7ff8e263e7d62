"""Config of TTRL."""

from typing import Literal, Self

from pydantic import Field, model_validator

from adapters.spec.base import Settings, Share
from adapters.spec.prompts import AnswerSpec, PolicyGradientSpec, PromptSettings, RolloutSpec


class VoteSpec(Settings):
    """Which groups of replies are learnt from."""

    floor: Share = 0.2
    """Least share of the votes that the winner needs; below it the model does not know."""
    ceiling: Share = 0.9
    """Most share of the votes that it may have; above it there is nothing left to learn."""
    least_answered: Share = 0.5
    """A prompt whose replies hold an answer less often is not asked again."""


class StopSpec(Settings):
    """Alarms without labels; each compares the last steps with the first ones."""

    window: int = Field(default=3, ge=1)
    """Steps that are averaged."""
    entropy_floor: Share = 0.1
    """Stop when the entropy of a token falls below this part of what it was."""
    length_floor: Share = 0.1
    """Stop when replies become shorter than this part of what they were."""
    length_ceiling: float = Field(default=3.0, ge=1.0)
    """Stop when they become longer than this many times what they were."""
    plateau_steps: int = Field(default=8, ge=1)
    """Steps that are compared with as many before them, for the agreement."""
    plateau_gain: Share = 0.005
    """Stop when the mean agreement of the later ones is not higher by this much."""


class TtrlConfig(PromptSettings):
    """TTRL on prompts: the majority of many replies stands in for the answer."""

    type: Literal["ttrl"] = "ttrl"
    answer: AnswerSpec = AnswerSpec()
    rollouts: RolloutSpec = RolloutSpec()
    votes: int = Field(default=16, ge=2)
    """Replies that vote on each prompt; the first `rollouts.group` of them are trained."""
    vote: VoteSpec = VoteSpec()
    stops: StopSpec = StopSpec()
    reward: Literal["majority", "random"] = "majority"
    """`random` is a control and teaches nothing: a coin for each reply, with the same mean."""
    gradient: PolicyGradientSpec = PolicyGradientSpec()

    def most_replies(self, count: int) -> int:
        """See `PromptSettings.most_replies`."""
        return self.rollouts.most_replies(count, group=self.votes)

    @model_validator(mode="after")
    def _votes_cover_the_group(self) -> Self:
        if self.votes < self.rollouts.group:
            raise ValueError(
                f"votes ({self.votes}) must be at least rollouts.group ({self.rollouts.group}): "
                "what is trained is part of the vote; raise votes or lower rollouts.group"
            )
        return self
