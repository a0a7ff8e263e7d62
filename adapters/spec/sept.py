"""Config of SePT."""

from typing import Literal

from adapters.spec.prompts import PromptSettings, RolloutSpec


class SeptConfig(PromptSettings):
    """SePT on prompts: the model imitates its own replies at a lower temperature."""

    type: Literal["sept"] = "sept"
    rollouts: RolloutSpec = RolloutSpec(group=1, temperature=0.9)
