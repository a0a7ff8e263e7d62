"""`replay` is of the methods that learn documents: elsewhere it is refused, not ignored."""

import pytest
from pydantic import ValidationError

from adapters.spec import METHODS
from adapters.spec.prompts import PromptSettings

OF_PROMPTS = sorted(name for name, config in METHODS.items() if issubclass(config, PromptSettings))


@pytest.mark.parametrize("method", OF_PROMPTS)
def test_what_would_be_ignored_is_refused_with_the_remedy(method: str) -> None:
    with pytest.raises(ValidationError, match=r"replay nothing; leave it out"):
        METHODS[method].model_validate({"replay": {"prompts_per_epoch": 16}})


@pytest.mark.parametrize("method", OF_PROMPTS)
@pytest.mark.parametrize("replay", [None, {"prompts_per_epoch": 0}])
def test_what_asks_for_nothing_is_taken_and_so_is_a_config_as_it_is_stored(
    method: str, replay: dict[str, int] | None
) -> None:
    config = METHODS[method].model_validate({} if replay is None else {"replay": replay})

    assert METHODS[method].model_validate(config.model_dump(mode="json")) == config
