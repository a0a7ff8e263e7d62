"""Config of SD-Zero."""

from typing import Literal

from adapters.spec.prompts import AnswerVerifier, PromptSettings, RolloutSpec, VerifierSpec


class SdZeroConfig(PromptSettings):
    """SD-Zero on prompts: the model learns to revise itself, and then to need no revision."""

    type: Literal["sd-zero"] = "sd-zero"
    verifier: VerifierSpec = AnswerVerifier()
    rollouts: RolloutSpec = RolloutSpec(group=1)
