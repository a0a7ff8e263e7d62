"""How far is a second training from the first: no value that differs is missed."""

import json
from pathlib import Path

import pytest

from adapters.comparison import compare
from tests.support.adapter_files import CONFIG, LAYERS, Tensors, floats, half, lora, safetensors

B = half("model.layers.0.self_attn.v_proj", "B")


def written(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors))
    return folder


def test_the_same_bytes_are_identical(tmp_path: Path) -> None:
    found = compare(written(tmp_path / "a", lora()), written(tmp_path / "b", lora()))

    assert found.is_identical
    assert (found.tensors, found.tensors_that_differ) == (2 * len(LAYERS), ())
    assert (found.max_abs_difference, found.max_relative_difference) == (0.0, 0.0)


def test_one_value_that_differs_is_found_and_measured(tmp_path: Path) -> None:
    other = lora() | {B: ("F32", [2, 2], floats(0.5, 0.5, 0.375, 0.5))}

    found = compare(written(tmp_path / "a", lora()), written(tmp_path / "b", other))

    assert not found.is_identical
    assert found.tensors_that_differ == (B,)
    assert (found.max_abs_difference, found.max_relative_difference) == (0.125, 0.25)


@pytest.mark.parametrize(
    ("dtype", "one", "two"), [("F16", b"\0\x3c", b"\0\x40"), ("BF16", b"\x80\x3f", b"\0\x40")]
)
def test_half_precision_is_measured_too(tmp_path: Path, dtype: str, one: bytes, two: bytes) -> None:
    first, second = ({**lora(), B: (dtype, [2, 2], one * 3 + last)} for last in (one, two))

    found = compare(written(tmp_path / "a", first), written(tmp_path / "b", second))

    assert (found.tensors_that_differ, found.max_abs_difference) == ((B,), 1.0)


def test_a_tensor_that_only_one_has_differs(tmp_path: Path) -> None:
    fewer = {name: tensor for name, tensor in lora().items() if name != B}

    found = compare(written(tmp_path / "a", lora()), written(tmp_path / "b", fewer))

    assert not found.is_identical
    assert found.tensors_that_differ == (B,)


def test_minus_zero_is_not_identical_and_no_distance(tmp_path: Path) -> None:
    first = lora() | {B: ("F32", [2, 2], floats(0.5, 0.5, 0.5, 0.0))}
    second = lora() | {B: ("F32", [2, 2], floats(0.5, 0.5, 0.5, -0.0))}

    found = compare(written(tmp_path / "a", first), written(tmp_path / "b", second))

    assert not found.is_identical
    assert (found.tensors_that_differ, found.max_abs_difference) == ((B,), 0.0)
