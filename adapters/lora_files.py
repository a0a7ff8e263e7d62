"""Is this plain LoRA, and nothing else? Checks PEFT's config and the weights beside it.

Accepts only what the engine is known to load: no DoRA, no bias, no full modules, lists sorted.
Torch-free and numpy-free, because the service runs it on every artifact.
"""

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import TypeGuard

from adapters.base_shapes import LayerShapes
from adapters.tensors import TensorEntry, TensorFileInvalid, read_header, scan_values

# Keys of PEFT's config that shape no weight, so any value will do.
_FREE_KEYS = frozenset(
    {
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "task_type",
        "peft_version",
        "megatron_core",
        "qalora_group_size",
    }
)
_CHECKED_KEYS = frozenset(
    {"peft_type", "r", "lora_alpha", "target_modules", "bias", "init_lora_weights", "use_rslora"}
)
_TENSOR = re.compile(
    r"base_model\.model\.(?P<layer>(?:\w+\.)*(?P<module>\w+))\.lora_(?P<half>[AB])\.weight"
)
_DTYPES = frozenset({"F32", "F16", "BF16"})
_SCAN_BYTES = 1 << 20  # the scan holds the interpreter, and other threads may be serving
_MAX_HEADER_BYTES = 4 << 20  # some 25,000 tensors; a deep model has 1,000

_MAX_REASON = 500
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 100

_PLAIN = "train it again as plain LoRA"
_SAVE_AGAIN = "save it again with PEFT's save_pretrained(safe_serialization=True)"


class LoraFilesInvalid(ValueError):
    """The files are not plain LoRA that may be loaded; says why, and what can be done."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        if len(reason) > _MAX_REASON:  # names come from the file, and may be of any length
            reason = f"{reason[:_MAX_REASON]}…"
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The part of PEFT's config that shapes the weights."""

    rank: int
    target_modules: frozenset[str]


def check_config(raw: bytes, *, max_rank: int, allowed_modules: Collection[str]) -> LoraConfig:
    """Read `adapter_config.json`.

    Raises:
        LoraFilesInvalid: it is not plain LoRA of an accepted rank on accepted modules.
    """
    try:
        config = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise LoraFilesInvalid(
            f"adapter_config.json is not valid JSON ({error})", _SAVE_AGAIN
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise LoraFilesInvalid("adapter_config.json does not describe LoRA (peft_type)", _PLAIN)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= max_rank:
        raise LoraFilesInvalid(
            f"rank is {_shown(rank)}, the engine takes 1 to {max_rank}",
            "raise EVERLEARN_ENGINE__MAX_LORA_RANK and restart the engine, or train a lower rank",
        )
    if not _is_number(alpha) or not 0 < alpha < math.inf:
        raise LoraFilesInvalid(
            f"lora_alpha is {_shown(alpha)}, it must be a positive number",
            "set what it was trained with",
        )
    if config.get("bias", "none") != "none":
        raise LoraFilesInvalid(
            f"bias is {_shown(config['bias'])}, only plain LoRA is loaded", _PLAIN
        )
    if type(config.get("use_rslora", False)) is not bool:  # true scales by the root of the rank
        raise LoraFilesInvalid(
            f"use_rslora is {_shown(config['use_rslora'])}, not true or false", _PLAIN
        )
    if type(config.get("init_lora_weights", True)) is not bool:
        raise LoraFilesInvalid(
            "init_lora_weights names a method that changes the base model",
            "convert it with save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    for key in sorted(config.keys() - _FREE_KEYS - _CHECKED_KEYS):
        if config[key]:  # off is null, false, 0 or empty, also for keys of later PEFT versions
            raise LoraFilesInvalid(
                f"{key} is {_shown(config[key])}, only plain LoRA is loaded", _PLAIN
            )
    modules = _check_modules(config.get("target_modules"), allowed_modules)
    return LoraConfig(rank, frozenset(modules))


def check_weights(path: Path, config: LoraConfig, shapes: LayerShapes | None = None) -> None:
    """Check names, shapes and values of the LoRA matrices, reading a megabyte at a time.

    Args:
        shapes: the base model's layers; None when the base model is not at hand.

    Raises:
        LoraFilesInvalid: they do not fit `config`, or hold NaN, infinity or no change at all.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        try:
            entries = read_header(file, size, max_header_bytes=_MAX_HEADER_BYTES)
        except TensorFileInvalid as error:
            raise LoraFilesInvalid(f"{path.name}: {error}", _SAVE_AGAIN) from error
        _check_pairs(entries, config)
        if shapes is not None:
            _check_shapes(entries, config, shapes)
        changes_something = False
        for entry in entries:
            for begin in range(entry.begin, entry.end, _SCAN_BYTES):
                file.seek(begin)
                piece = file.read(min(_SCAN_BYTES, entry.end - begin))
                finite, non_zero = scan_values(piece, entry.dtype)
                if not finite:
                    raise LoraFilesInvalid(
                        f"{entry.name} holds NaN or infinity",
                        "the training diverged; train again with a lower learning rate",
                    )
                changes_something |= non_zero and ".lora_B." in entry.name
    if not changes_something:
        raise LoraFilesInvalid(
            "every lora_B is zero, so the adapter would change nothing",
            "train it; this is how one looks before its first step",
        )


def _shown(value: object) -> str:
    """A value of somebody's file, however long or deep it is."""
    return _REPR.repr(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_modules(modules: object, allowed: Collection[str]) -> list[str]:
    if not isinstance(modules, list) or not modules:
        raise LoraFilesInvalid(
            f"target_modules is {_shown(modules)}, it must be a list of names", _SAVE_AGAIN
        )
    if unknown := [name for name in modules if not isinstance(name, str) or name not in allowed]:
        raise LoraFilesInvalid(
            f"target module {_shown(unknown[0])} is not one the engine adapts",
            f"train on some of {', '.join(sorted(allowed))}",
        )
    if modules != sorted(set(modules)):
        raise LoraFilesInvalid("target_modules must be sorted and without repetition", _SAVE_AGAIN)
    return modules


def _check_pairs(entries: list[TensorEntry], config: LoraConfig) -> None:
    dtypes: dict[tuple[str, str], str] = {}
    modules = set()
    for entry in entries:
        match = _TENSOR.fullmatch(entry.name)
        if match is None or match["module"] not in config.target_modules:
            raise LoraFilesInvalid(
                f"tensor {entry.name!r} is not LoRA of a target module",
                f"{_PLAIN} and {_SAVE_AGAIN}",
            )
        if entry.dtype not in _DTYPES:
            raise LoraFilesInvalid(
                f"tensor {entry.name!r} has type {entry.dtype}, not a float that is served",
                "convert the weights to float32, float16 or bfloat16",
            )
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise LoraFilesInvalid(
                f"tensor {entry.name!r} has the shape {list(entry.shape)}, LoRA is two matrices",
                _SAVE_AGAIN,
            )
        rank = entry.shape[0] if match["half"] == "A" else entry.shape[1]
        if rank != config.rank:
            raise LoraFilesInvalid(
                f"tensor {entry.name!r} has rank {rank}, the config says {config.rank}",
                "take config and weights from the same training",
            )
        dtypes[match["layer"], match["half"]] = entry.dtype
        modules.add(match["module"])
    for layer, half in dtypes:
        other = "B" if half == "A" else "A"
        if dtypes.get((layer, other)) != dtypes[layer, half]:
            raise LoraFilesInvalid(f"{layer} lacks lora_{other} of the same type", _SAVE_AGAIN)
    if unused := sorted(config.target_modules - modules):
        raise LoraFilesInvalid(f"target module {unused[0]!r} has no weights", _SAVE_AGAIN)


def _check_shapes(entries: list[TensorEntry], config: LoraConfig, shapes: LayerShapes) -> None:
    """Every matrix fits its layer of the base model, and no layer of a target module is left out."""
    remedy = "it was trained on another base model; import it into a line over that one"
    present = set()
    for entry in entries:
        layer = layer_of(entry.name)
        shape = shapes.get(layer)
        if shape is None:
            raise LoraFilesInvalid(f"the base model has no layer {layer!r}", remedy)
        is_a = entry.name.endswith(".lora_A.weight")
        width, expected = (
            (entry.shape[1], shape.inputs) if is_a else (entry.shape[0], shape.outputs)
        )
        if width != expected:
            raise LoraFilesInvalid(
                f"tensor {entry.name!r} has the shape {list(entry.shape)}, where the base model's "
                f"layer has {expected} features",
                remedy,
            )
        present.add(layer)
    for layer in sorted(shapes.keys() - present):
        if layer.rpartition(".")[2] in config.target_modules:
            raise LoraFilesInvalid(
                f"layer {layer!r} of the base model has no weights, though its module is a target",
                "train and save every layer of the target modules",
            )


def layer_of(tensor: str) -> str:
    """The base model's layer that a LoRA tensor changes; the tensor's own name if it is none."""
    match = _TENSOR.fullmatch(tensor)
    return match["layer"] if match else tensor
