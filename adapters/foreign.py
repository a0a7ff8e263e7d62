"""A PEFT folder that somebody else made, brought into our form. Torch-free.

Only the config is rewritten: what says nothing about the weights is left out, and the target modules
become a sorted list of names. The weights stay as they are, byte for byte, and nothing is accepted
here: :func:`adapters.artifact.verify_artifact` does that afterwards.
"""

import json
from pathlib import Path

from adapters.lora_files import LoraFilesInvalid, layer_of
from adapters.tensors import TensorFileInvalid, read_header

# How a training began, which says nothing about the weights it ended with.
_HARMLESS_STARTS = frozenset({"gaussian", "eva", "orthogonal"})
# Notes of training tools; the engine reads none of them.
_NOTES = frozenset({"auto_mapping", "unsloth_fixed", "base_model_name_or_path", "revision"})
_MAX_CONFIG_BYTES = 64 << 10
_REMEDY = "send the file that PEFT's save_pretrained wrote"


def normalised_config(config: Path, weights: Path) -> bytes:
    """PEFT's config as our artifacts have it.

    Raises:
        LoraFilesInvalid: it is not a JSON object, or too long, or its pattern cannot be expanded.
    """
    fields = _read(config)
    fields = {key: value for key, value in fields.items() if key not in _NOTES}
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower() in _HARMLESS_STARTS:
        fields["init_lora_weights"] = True
    targets = fields.get("target_modules")
    if isinstance(targets, str):  # "all-linear", or a pattern over the layers' names
        fields["target_modules"] = _trained_modules(weights)
    elif isinstance(targets, list) and all(isinstance(name, str) for name in targets):
        fields["target_modules"] = sorted({name.rpartition(".")[2] for name in targets})
    try:
        return json.dumps(fields, sort_keys=True).encode() + b"\n"
    except RecursionError as error:
        raise LoraFilesInvalid("adapter_config.json is nested too deeply", _REMEDY) from error


def _read(config: Path) -> dict[str, object]:
    if config.stat().st_size > _MAX_CONFIG_BYTES:
        raise LoraFilesInvalid(
            f"adapter_config.json has more than {_MAX_CONFIG_BYTES} bytes",
            "send PEFT's own, which has about one thousand",
        )
    try:
        fields = json.loads(config.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LoraFilesInvalid(
            f"adapter_config.json is not valid JSON ({error})", _REMEDY
        ) from error
    if not isinstance(fields, dict):
        raise LoraFilesInvalid("adapter_config.json is not a JSON object", _REMEDY)
    return fields


def _trained_modules(weights: Path) -> list[str]:
    """The modules that have tensors; that no layer of them is left out is checked later."""
    with weights.open("rb") as file:
        try:
            entries = read_header(file, weights.stat().st_size)
        except TensorFileInvalid as error:
            raise LoraFilesInvalid(f"{weights.name}: {error}", "save it again") from error
    return sorted({layer_of(entry.name).rpartition(".")[2] for entry in entries})
