"""Is this folder a model the engine can serve and chat with, and what is its hash?

Reads only; nothing is ever written to the folder.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from adapters.model_errors import ModelFolderInvalid
from adapters.tensors import TensorFileInvalid, read_header

# What decides the model's replies; the rest (licence, readme, other formats) may change freely.
_HASHED = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "tokenizer*",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "tekken.json",
)
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that the engine or the chat endpoint could not use.

    Raises:
        ModelFolderInvalid: no readable config, tokenizer, chat template or safetensors weights.
    """
    if not folder.is_dir():
        raise ModelFolderInvalid(str(folder), "does not exist", "give the path of a model folder")
    _read_json(folder, "config.json", "it should be the folder of a Hugging Face model")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelFolderInvalid(
            str(folder),
            f"has no tokenizer ({', '.join(_TOKENIZERS[:2])} or the like)",
            "save it there with tokenizer.save_pretrained(folder)",
        )
    if not _has_chat_template(folder):
        raise ModelFolderInvalid(
            str(folder),
            "has no chat template",
            "use an instruct model, or add chat_template.jinja",
        )
    _check_weights(folder)


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of each named file of the folder."""
    hashes = {}
    for name in names:
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def hashed_names(names: Iterable[str]) -> list[str]:
    """Those of the names that decide the model's replies, sorted."""
    return sorted(name for name in names if any(fnmatch(name, glob) for glob in _HASHED))


def base_hash(hashes: Mapping[str, str]) -> str:
    """One hash for the model: sha256 over the names and hashes of the files that count."""
    lines = (f"{name}\0{hashes[name]}\n" for name in hashed_names(hashes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def folder_hash(folder: Path) -> str:
    """:func:`base_hash` of a model folder as it lies there; reads all of its weights."""
    names = hashed_names(path.name for path in folder.iterdir() if path.is_file())
    return base_hash(hash_files(folder, names))


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the files that make tokens of a chat: the tokenizer's and the template's."""
    return _names(folder, (*_TOKENIZER_FILES, *_TEMPLATE_FILES))


def _names(folder: Path, globs: Iterable[str]) -> list[str]:
    found = (path.name for path in folder.glob("*") if path.is_file())
    return sorted(name for name in found if any(fnmatch(name, glob) for glob in globs))


def tokenizer_hash(folder: Path) -> str | None:
    """sha256 over the names and hashes of the tokenizer's files; None where there are none."""
    names = _names(folder, _TOKENIZER_FILES)
    lines = (f"{name}\0{sha256}\n" for name, sha256 in hash_files(folder, names).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest() if names else None


def template_hash(folder: Path) -> str | None:
    """sha256 of the chat template's file, or of the template in the tokenizer's config."""
    for name in _TEMPLATE_FILES:
        if (folder / name).is_file():
            return hash_files(folder, [name])[name]
    if not (folder / "tokenizer_config.json").is_file():
        return None
    config = _read_json(folder, "tokenizer_config.json", "save the tokenizer again")
    template = config.get("chat_template")
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in _TEMPLATE_FILES):
        return True
    if not (folder / "tokenizer_config.json").is_file():
        return False
    config = _read_json(folder, "tokenizer_config.json", "save the tokenizer again")
    return bool(config.get("chat_template"))


def _check_weights(folder: Path) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelFolderInvalid(
            str(folder),
            "has no *.safetensors weights",
            "save it there with model.save_pretrained(folder); other formats are not loaded",
        )
    remedy = "copy or download it again"
    if (folder / "model.safetensors.index.json").is_file():
        index = _read_json(folder, "model.safetensors.index.json", remedy)
        shards = index.get("weight_map")
        present = {path.name for path in weights}
        for shard in sorted(set(shards.values())) if isinstance(shards, dict) else ():
            if shard not in present:
                raise ModelFolderInvalid(str(folder), f"lacks the weights {shard}", remedy)
    for path in weights:
        with path.open("rb") as file:
            try:
                read_header(file, path.stat().st_size)
            except TensorFileInvalid as error:
                raise ModelFolderInvalid(
                    str(folder), f"holds a damaged {path.name} ({error})", remedy
                ) from error


def _read_json(folder: Path, name: str, remedy: str) -> dict[str, object]:
    try:
        value = json.loads((folder / name).read_bytes())
    except FileNotFoundError as error:
        raise ModelFolderInvalid(str(folder), f"has no {name}", remedy) from error
    except (OSError, ValueError) as error:
        raise ModelFolderInvalid(
            str(folder), f"has an unreadable {name} ({error})", remedy
        ) from error
    if not isinstance(value, dict):
        raise ModelFolderInvalid(str(folder), f"has a {name} that is not an object", remedy)
    return value
