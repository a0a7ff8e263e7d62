"""Configs under which trials would be trained with dropout are refused before a run begins."""

from typing import Any

import pytest
from pydantic import ValidationError

from adapters.spec import FewShotConfig, SealConfig, SealEditorConfig
from adapters.spec.base import MethodSettings
from adapters.spec.documents import editor_config

DROPOUT = {"dropout": 0.1}


@pytest.mark.parametrize(
    ("config", "fields", "named"),
    [
        (SealConfig, {"lora": DROPOUT, "outer": {"is_enabled": True}}, r"lora\.dropout"),
        (FewShotConfig, {"lora": DROPOUT}, r"lora\.dropout"),
        (SealEditorConfig, {"inner": {"lora": DROPOUT}}, r"inner\.lora\.dropout"),
    ],
)
def test_dropout_is_refused_with_field_and_remedy(
    config: type[MethodSettings], fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){named} must be 0.*set it to 0"):
        config.model_validate(fields)


def test_what_is_trained_alone_may_have_it() -> None:
    assert SealConfig.model_validate({"lora": DROPOUT}).lora.dropout == 0.1
    assert SealEditorConfig.model_validate({"lora": DROPOUT}).lora.dropout == 0.1


def test_the_editor_of_a_line_with_dropout_is_tried_without() -> None:
    line = SealConfig.model_validate({"lora": DROPOUT})

    assert editor_config(line).inner.lora.dropout == 0.0
