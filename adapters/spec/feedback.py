"""Configs of the methods that learn from what users said of replies."""

from typing import Literal

from adapters.spec.prompts import PromptSettings


class CorrectionsConfig(PromptSettings):
    """Distillation of users' corrections: who sees the correction teaches who does not."""

    type: Literal["corrections"] = "corrections"


class KtoConfig(PromptSettings):
    """KTO on thumbs: liked replies become likelier than the base finds them, disliked ones less."""

    type: Literal["kto"] = "kto"
