"""Config of SePT."""

import math
from typing import Literal

from pydantic import Field

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


class SeptRollouts(RolloutSpec):
    """What the policy is asked for in each step of SePT."""

    prompts_per_step: int = Field(default=32, ge=1)
    """Prompts of one step, drawn without repetition until all have had their turn."""
    group: int = Field(default=1, ge=1)
    """Rollouts of one prompt; the paper's 8 gain little."""
    steps: int = Field(default=100, ge=1)
    """Most steps: a rollout and an update of the policy each."""
    temperature: float = Field(default=0.9, gt=0.0, le=1.0)
    """Of the rollouts, at the start. The training's is 1: at 1 they are coupled, the control, whose
    expected gradient is zero, and above it they would flatten the model."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Length of one rollout."""


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
    rollouts: SeptRollouts = SeptRollouts()
    anneal: AnnealSpec = AnnealSpec()
    probe: ProbeSpec = ProbeSpec()
    training: SeptTraining = SeptTraining()

    def most_replies(self, count: int) -> int:
        """See `PromptSettings.most_replies`."""
        rollouts = self.rollouts.most_replies(count)
        if self.refresh == "offline":
            rollouts = count * self.rollouts.group
        looks = math.ceil(self.rollouts.steps / self.probe.every) + 1
        return rollouts + looks * min(self.probe.prompts, count)
