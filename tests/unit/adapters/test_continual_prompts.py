"""Where a training on prompts begins, and one on documents after it."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.lesson import Weights
from adapters.methods import Assignment
from adapters.methods.continual import begin
from adapters.spec import MethodSettings, PromptContinual, SealConfig, TtrlConfig
from adapters.types import Prompt, SourceDocument

PROMPTS = (Prompt("p", ({"role": "user", "content": "What is 3 + 5?"},)),)
DOCUMENTS = (SourceDocument("d", "Quill", "It was dug in 1874.", ("It was dug in 1874.",)),)
ON_PROMPTS: MethodSettings = TtrlConfig()
ON_DOCUMENTS: MethodSettings = SealConfig()


@pytest.fixture
def champion(tmp_path: Path) -> Weights:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16, "lora_alpha": 32}))
    return Weights(tmp_path)


def begun(champion: Weights, config: MethodSettings, **fields: Any) -> tuple[bool, str]:
    """Whether it goes on from the champion, and why."""
    found = begin(Assignment(champion=champion, **fields), config)
    assert (found.start is None) == (found.generation == 0)
    return found.start is not None, found.why


def test_prompts_are_learnt_on_top_of_the_champion(champion: Weights) -> None:
    goes_on, why = begun(champion, ON_PROMPTS, prompts=PROMPTS)

    assert goes_on
    assert why == "the champion is built on, for the first time in a row"


def test_or_at_the_base_where_the_config_says_so(champion: Weights) -> None:
    config = TtrlConfig(continual=PromptContinual(mode="retrain"))

    assert begun(champion, config, prompts=PROMPTS) == (False, "the config retrains from the base")


def test_trainings_in_a_row_have_an_end_where_all_can_be_taught_anew(champion: Weights) -> None:
    goes_on, why = begun(champion, ON_PROMPTS, prompts=PROMPTS, champion_generation=4)

    assert not goes_on
    assert "4 times in a row" in why


def test_but_not_where_the_base_would_have_to_learn_documents_from_prompts(
    champion: Weights,
) -> None:
    goes_on, why = begun(
        champion, ON_PROMPTS, prompts=PROMPTS, documents=DOCUMENTS, champion_generation=4
    )

    assert goes_on
    assert why.endswith(
        "4 times is the most, but the base has not learnt what it knows of documents"
    )


def test_documents_go_on_from_a_champion_that_learnt_from_prompts(champion: Weights) -> None:
    fields: dict[str, Any] = {"documents": DOCUMENTS, "new_documents": frozenset({"d"})}

    plain = begun(champion, ON_DOCUMENTS, **fields)
    skilled = begun(champion, ON_DOCUMENTS, **fields, has_learnt_prompts=True)

    assert plain == (False, "the config retrains from the base")
    assert skilled[0]
    assert (
        "the config would retrain, but the base has not learnt what it knows from prompts"
        in (skilled[1])
    )
