"""Foreign configs and headers: whatever they hold, they are taken or refused with a reason."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base_shapes import BaseModelUnreadable, LayerShape, layer_shapes
from adapters.foreign import normalised_config
from adapters.lora_files import LoraConfig, LoraFilesInvalid, check_config, check_weights
from tests.support.adapter_files import CONFIG, LAYERS, lora, safetensors, write_base

MODULES = ("q_proj", "v_proj")
SHAPES = {layer: LayerShape(*size) for layer, size in LAYERS.items()}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def normalised(config: Any, weights: bytes | None = None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file, tensors = Path(folder) / "config", Path(folder) / "weights"
        file.write_text(json.dumps(config))
        tensors.write_bytes(safetensors(lora()) if weights is None else weights)
        return normalised_config(file, tensors)


def checked(config: Any) -> LoraConfig:
    return check_config(normalised(config), max_rank=16, allowed_modules=MODULES)


@given(st.dictionaries(st.sampled_from([*CONFIG, "use_rslora", "other"]), values, max_size=4))
def test_any_config_is_plain_lora_or_refused(changes: dict[str, Any]) -> None:
    try:
        found = checked(CONFIG | changes)
    except LoraFilesInvalid:
        return
    assert found.target_modules <= set(MODULES)
    assert 1 <= found.rank <= 16


entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "I8", "F64"]) | values,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | values,
        "data_offsets": st.lists(st.integers(-1, 200), max_size=3) | values,
    },
)


@given(
    st.dictionaries(st.sampled_from([*lora(), "lm_head.weight", ""]), entries | values, max_size=3),
    st.binary(max_size=64),
)
def test_any_header_is_read_or_refused(header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights"
        file.write_bytes(len(text).to_bytes(8, "little") + text + data)
        with pytest.raises(LoraFilesInvalid):  # too little for an adapter of two layers, always
            check_weights(file, LoraConfig(2, frozenset(MODULES)), SHAPES)


@pytest.mark.parametrize(
    "targets",
    [
        ["v_proj", "q_proj", "q_proj"],
        ["self_attn.v_proj", "model.layers.0.self_attn.q_proj"],
        "all-linear",
        r".*\.(q|v)_proj",
    ],
    ids=["unsorted", "paths", "all", "pattern"],
)
def test_target_modules_become_a_sorted_list_of_names(targets: Any) -> None:
    written = json.loads(normalised(CONFIG | {"target_modules": targets}))

    assert written["target_modules"] == ["q_proj", "v_proj"]


def test_a_pattern_over_weights_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(LoraFilesInvalid, match="header is cut off"):
        normalised(CONFIG | {"target_modules": "all-linear"}, b"")


def test_the_same_adapter_gives_the_same_config_whatever_its_author_noted() -> None:
    notes = {"base_model_name_or_path": "/home/ada", "auto_mapping": {"a": "b"}, "revision": "main"}

    assert normalised(CONFIG | notes) == normalised(dict(reversed(CONFIG.items())))


def test_the_layers_of_a_base_model_are_read_from_all_its_files(tmp_path: Path) -> None:
    write_base(tmp_path)
    more = {"lm_head.weight": ("F32", [3, 2], b"\0" * 24), "norm.weight": ("F32", [2], b"\0" * 8)}
    (tmp_path / "model-2.safetensors").write_bytes(safetensors(more))

    assert layer_shapes(tmp_path) == SHAPES | {"lm_head": LayerShape(inputs=2, outputs=3)}


def test_a_base_model_without_readable_weights_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(BaseModelUnreadable, match=r"no \*\.safetensors"):
        layer_shapes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(BaseModelUnreadable, match="cut off"):
        layer_shapes(tmp_path)
