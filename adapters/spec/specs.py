"""Config of SPECS."""

from typing import Literal, Self

from pydantic import Field, model_validator

from adapters.spec.base import Share
from adapters.spec.prompts import (
    ContractSpec,
    JsonSchemaContract,
    PolicyGradientSpec,
    PromptSettings,
    PromptTraining,
    RolloutSpec,
    VerifierSpec,
)


class ColdStartTraining(PromptTraining):
    """The optimiser of the cold start: short, because pairs that differ in little are soon told
    apart."""

    batch_size: int = Field(default=64, ge=1)
    """Pairs per optimiser step."""


class SpecsConfig(PromptSettings):
    """SPECS on prompts: form is learnt from pairs that differ in nothing else, then right answers."""

    type: Literal["specs"] = "specs"
    contract: ContractSpec = JsonSchemaContract()
    """The form that every reply is to have."""
    verifier: VerifierSpec | None = None
    """Who says which replies are right; where nobody does, the answer that the model's own replies
    agree on most is kept as it is, and only form is rewarded."""
    instruction: str | None = Field(default=None, max_length=4000)
    """How a reply in the form is asked for where the prompts alone bring too few; None: the
    contract, spelled out. What is learnt then has the prompt without it."""
    max_prompts: int = Field(default=512, ge=1)
    """Most prompts that are sampled for pairs."""
    samples: int = Field(default=8, ge=1)
    """Replies of one prompt that pairs are looked for in, and that are counted before and after."""
    min_pass_share: Share = 0.3
    """Where fewer of the replies keep the form, it is asked for; where that does not help enough
    either, a brief GRPO on form makes the model that the chosen replies are sampled from."""
    form_steps: int = Field(default=8, ge=0)
    """Most steps of that GRPO; 0 leaves it out."""
    cold_start: Literal["dpo", "sft", "none"] = "dpo"
    """`dpo`: DPO with an SFT term on the pairs. As controls: `sft`, the chosen replies alone;
    `none`, plain GRPO."""
    pairs: Literal["decoupled", "coupled"] = "decoupled"
    """`decoupled`: both replies of a pair have the same answer. As a control: `coupled`, the
    rejected one is wrong."""
    pairs_per_prompt: int = Field(default=2, ge=1)
    """Most pairs of one prompt."""
    cold_training: ColdStartTraining = ColdStartTraining()
    """The optimiser of the cold start."""
    dpo_beta: float = Field(default=0.1, gt=0.0)
    """As `LossSpec.dpo_beta`; the reference is the base."""
    sft_weight: float = Field(default=1.0, ge=0.0)
    """Of saying the chosen reply, beside preferring it."""
    is_reinforced: bool = True
    """Whether GRPO on form and answers follows the cold start."""
    form_reward: float = Field(default=0.5, ge=0.0)
    """Of a reply that keeps the form."""
    answer_reward: float = Field(default=1.0, ge=0.0)
    """Of a right reply; both may be earned."""
    rollouts: RolloutSpec = RolloutSpec()
    """Of the GRPO; its temperature, top-p and length are those of all replies that are sampled."""
    gradient: PolicyGradientSpec = PolicyGradientSpec()
    """Of the GRPO."""

    def most_replies(self, count: int) -> int:
        """See `PromptSettings.most_replies`."""
        prompts = min(count, self.max_prompts)
        look = prompts * self.samples
        most = 2 * look  # before and after
        if self.cold_start != "none" and self.min_pass_share:
            most += look  # with the form asked for
            if self.form_steps:
                brief = self.rollouts.model_copy(
                    update={"steps": min(self.form_steps, self.rollouts.steps)}
                )
                most += look + brief.most_replies(prompts)
        return most + (self.rollouts.most_replies(prompts) if self.is_reinforced else 0)

    @model_validator(mode="after")
    def _check_controls(self) -> Self:
        if self.pairs == "coupled" and self.verifier is None:
            raise ValueError("pairs: coupled takes wrong replies; name a verifier that finds them")
        if self.cold_start == "none" and not self.is_reinforced:
            raise ValueError("cold_start: none with is_reinforced: false leaves nothing to learn")
        return self
