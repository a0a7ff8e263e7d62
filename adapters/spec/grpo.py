"""Config of GRPO with a verifier."""

from typing import Literal

from adapters.spec.prompts import (
    AnswerVerifier,
    PolicyGradientSpec,
    PromptSettings,
    RolloutSpec,
    VerifierSpec,
)


class GrpoConfig(PromptSettings):
    """GRPO on prompts: replies that a verifier calls right are reinforced."""

    type: Literal["grpo"] = "grpo"
    verifier: VerifierSpec = AnswerVerifier()
    """Who says whether a reply is right."""
    rollouts: RolloutSpec = RolloutSpec()
    gradient: PolicyGradientSpec = PolicyGradientSpec()

    def most_replies(self, count: int) -> int:
        """See `PromptSettings.most_replies`."""
        return self.rollouts.most_replies(count)
