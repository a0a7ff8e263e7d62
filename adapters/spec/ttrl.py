"""Config of TTRL."""

from typing import Literal

from adapters.spec.prompts import AnswerSpec, PolicyGradientSpec, PromptSettings, RolloutSpec


class TtrlConfig(PromptSettings):
    """TTRL on prompts: the majority of many replies stands in for the answer."""

    type: Literal["ttrl"] = "ttrl"
    answer: AnswerSpec = AnswerSpec()
    rollouts: RolloutSpec = RolloutSpec()
    gradient: PolicyGradientSpec = PolicyGradientSpec()
