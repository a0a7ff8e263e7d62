"""Base models and adapters as files, a few dozen numbers each, written by hand: no torch."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

Tensors: TypeAlias = dict[str, tuple[str, list[int], bytes]]
"""Name to type, shape and raw data."""

LAYERS = {
    f"model.layers.{number}.self_attn.{module}": size
    for number in (0, 1)
    for module, size in {"q_proj": (4, 6), "v_proj": (4, 2)}.items()
}
"""The base model's linear layers: features in, features out."""

RANK = 2
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "init_lora_weights": True,
    "lora_dropout": 0.1,
}


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def safetensors(tensors: Mapping[str, tuple[str, list[int], bytes]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_base(folder: Path, layers: Mapping[str, tuple[int, int]] | None = None) -> Path:
    """A base model's folder, as far as an adapter is compared with it."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = LAYERS if layers is None else layers
    tensors = {
        f"{layer}.weight": ("F32", [outputs, inputs], floats(*[0.5] * (inputs * outputs)))
        for layer, (inputs, outputs) in layers.items()
    }
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def half(layer: str, letter: str) -> str:
    """The name of one matrix."""
    return f"base_model.model.{layer}.lora_{letter}.weight"


def lora(layers: Mapping[str, tuple[int, int]] = LAYERS, *, rank: int = RANK) -> Tensors:
    """Both matrices for every layer, none of them zero."""
    tensors: Tensors = {}
    for layer, (inputs, outputs) in layers.items():
        tensors[half(layer, "A")] = ("F32", [rank, inputs], floats(*[0.25] * (rank * inputs)))
        tensors[half(layer, "B")] = ("F32", [outputs, rank], floats(*[0.5] * (rank * outputs)))
    return tensors
