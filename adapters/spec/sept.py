"""Config of SePT."""

from typing import Literal, Self

from pydantic import Field, model_validator

from adapters.spec.base import Settings, Share
from adapters.spec.prompts import PromptSettings, PromptTraining, RolloutSpec


class SeptTraining(PromptTraining):
    """The optimiser of SePT: the paper's, with a rate for LoRA."""

    learning_rate: float = Field(default=5e-6, gt=0.0)
    """Constant. The paper trains all weights at 1e-7; LoRA takes ten times that and more."""
    batch_size: int = Field(default=16, ge=1)
    """Samples per optimiser step; half a step's rollouts, so that each is two updates."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """AdamW's decay on the LoRA matrices."""


class AnnealSpec(Settings):
    """How the temperature of the rollouts rises to 1, that of the training."""

    is_on: bool = True
    """False keeps it where it starts."""
    share: Share = 2 / 3
    """Part of all steps over which it rises, linearly; after that it is 1."""


class ProbeSpec(Settings):
    """Now and then the policy is sampled at temperature 1, to see whether it is still well."""

    every: int = Field(default=10, ge=1)
    """Steps between two looks; the first is before any step."""
    prompts: int = Field(default=16, ge=1)
    """Prompts of one look, always the same ones."""
    least_entropy: Share = 0.5
    """Part of the first look's entropy below which the learning stops."""
    most_length: float = Field(default=2.0, gt=1.0)
    """Times the first look's mean length above which the learning stops."""


class SeptConfig(PromptSettings):
    """SePT on prompts: the model imitates its own replies at a lower temperature."""

    type: Literal["sept"] = "sept"
    refresh: Literal["online", "offline"] = "online"
    """`online`: each step samples from the model as the step before has left it. `offline`, a
    control: one reply to each prompt, all sampled from the model as it was at the start."""
    rollouts: RolloutSpec = RolloutSpec(
        prompts_per_step=32, group=1, steps=100, temperature=0.9, max_new_tokens=512
    )
    """The training's own temperature is 1. Rollouts at 1 too are the coupled control."""
    anneal: AnnealSpec = AnnealSpec()
    probe: ProbeSpec = ProbeSpec()
    training: SeptTraining = SeptTraining()

    @model_validator(mode="after")
    def _is_not_hotter_than_the_training(self) -> Self:
        if self.rollouts.temperature > 1.0:
            raise ValueError(
                "rollouts.temperature must be at most 1, the training's: hotter rollouts flatten "
                "the model"
            )
        return self
