"""Config of SPECS."""

from typing import Literal

from adapters.spec.prompts import (
    ContractSpec,
    JsonSchemaContract,
    PolicyGradientSpec,
    PromptSettings,
    RolloutSpec,
    VerifierSpec,
)


class SpecsConfig(PromptSettings):
    """SPECS on prompts: form is learnt from pairs that differ in nothing else, then right answers."""

    type: Literal["specs"] = "specs"
    contract: ContractSpec = JsonSchemaContract()
    verifier: VerifierSpec | None = None
    rollouts: RolloutSpec = RolloutSpec()
    gradient: PolicyGradientSpec = PolicyGradientSpec()
