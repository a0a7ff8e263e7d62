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
from typing import TypeGuard

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
    {"peft_type", "r", "lora_alpha", "target_modules", "bias", "init_lora_weights"}
)
_TENSOR = re.compile(
    r"base_model\.model\.(?P<layer>(?:\w+\.)*(?P<module>\w+))\.lora_(?P<half>[AB])\.weight"
)
_DTYPES = frozenset({"F32", "F16", "BF16"})
_SCAN_BYTES = 8 << 20


class LoraFilesInvalid(ValueError):
    """The files are not plain LoRA that may be loaded; the message says why."""


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
        raise LoraFilesInvalid(f"adapter_config.json is not valid JSON ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise LoraFilesInvalid("adapter_config.json does not describe LoRA (peft_type)")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= max_rank:
        raise LoraFilesInvalid(f"rank is {rank!r}, the engine takes 1 to {max_rank}")
    if not _is_number(alpha) or not 0 < alpha < math.inf:
        raise LoraFilesInvalid(f"lora_alpha is {alpha!r}, it must be a positive number")
    if config.get("bias", "none") != "none":
        raise LoraFilesInvalid(f"bias is {config['bias']!r}, only plain LoRA is loaded")
    if type(config.get("init_lora_weights", True)) is not bool:
        raise LoraFilesInvalid("init_lora_weights names a method that changes the base model")
    for key in sorted(config.keys() - _FREE_KEYS - _CHECKED_KEYS):
        if config[key]:  # off is null, false, 0 or empty, also for keys of later PEFT versions
            raise LoraFilesInvalid(f"{key} is {config[key]!r}, only plain LoRA is loaded")
    modules = _check_modules(config.get("target_modules"), allowed_modules)
    return LoraConfig(rank, frozenset(modules))


def check_weights(path: Path, config: LoraConfig) -> None:
    """Check names, shapes and values of the LoRA matrices, reading a few megabytes at a time.

    Raises:
        LoraFilesInvalid: they do not fit `config`, or hold NaN, infinity or no change at all.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        try:
            entries = read_header(file, size)
        except TensorFileInvalid as error:
            raise LoraFilesInvalid(f"{path.name}: {error}") from error
        _check_pairs(entries, config)
        changes_something = False
        for entry in entries:
            for begin in range(entry.begin, entry.end, _SCAN_BYTES):
                file.seek(begin)
                piece = file.read(min(_SCAN_BYTES, entry.end - begin))
                finite, non_zero = scan_values(piece, entry.dtype)
                if not finite:
                    raise LoraFilesInvalid(f"{entry.name} holds NaN or infinity")
                changes_something |= non_zero and ".lora_B." in entry.name
    if not changes_something:
        raise LoraFilesInvalid("every lora_B is zero, so the adapter would change nothing")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_modules(modules: object, allowed: Collection[str]) -> list[str]:
    if not isinstance(modules, list) or not modules:
        raise LoraFilesInvalid(f"target_modules is {modules!r}, it must be a list of names")
    if unknown := [name for name in modules if not isinstance(name, str) or name not in allowed]:
        raise LoraFilesInvalid(f"target module {unknown[0]!r} is not one the engine adapts")
    if modules != sorted(set(modules)):
        raise LoraFilesInvalid("target_modules must be sorted and without repetition")
    return modules


def _check_pairs(entries: list[TensorEntry], config: LoraConfig) -> None:
    dtypes: dict[tuple[str, str], str] = {}
    modules = set()
    for entry in entries:
        match = _TENSOR.fullmatch(entry.name)
        if match is None or match["module"] not in config.target_modules:
            raise LoraFilesInvalid(f"tensor {entry.name!r} is not LoRA of a target module")
        if entry.dtype not in _DTYPES:
            raise LoraFilesInvalid(f"tensor {entry.name!r} has type {entry.dtype}, not a float")
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise LoraFilesInvalid(f"tensor {entry.name!r} has the shape {list(entry.shape)}")
        rank = entry.shape[0] if match["half"] == "A" else entry.shape[1]
        if rank != config.rank:
            raise LoraFilesInvalid(
                f"tensor {entry.name!r} has rank {rank}, the config says {config.rank}"
            )
        dtypes[match["layer"], match["half"]] = entry.dtype
        modules.add(match["module"])
    for layer, half in dtypes:
        other = "B" if half == "A" else "A"
        if dtypes.get((layer, other)) != dtypes[layer, half]:
            raise LoraFilesInvalid(f"{layer} lacks lora_{other} of the same type")
    if unused := sorted(config.target_modules - modules):
        raise LoraFilesInvalid(f"target module {unused[0]!r} has no weights")
