"""Artifacts on disk: write one atomically, verify one before an engine may load it.

An artifact is a folder of three files: plain LoRA weights in safetensors, PEFT's config, and our
manifest. Torch-free and numpy-free, because the service verifies every artifact itself.
Not covered: whether the adapter is any good (the gate's task), or signatures (who wrote it).
"""

import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from adapters.base_shapes import LayerShapes
from adapters.lora_files import LoraFilesInvalid, check_config, check_weights
from adapters.manifest import DocumentRef, Manifest, ManifestFields, config_hash

__all__ = [
    "ArtifactError",
    "ArtifactExists",
    "ArtifactInvalid",
    "DocumentRef",
    "Manifest",
    "ManifestFields",
    "config_hash",
    "digest",
    "renumber",
    "verify_artifact",
    "write_artifact",
]

MANIFEST = "manifest.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_MAX_BYTES = {MANIFEST: 16 << 20, CONFIG: 64 << 10, WEIGHTS: 4 << 30}


class ArtifactError(Exception):
    """Root of this module's errors.

    ArtifactError
    ├── ArtifactInvalid   the folder must not be loaded
    └── ArtifactExists    versions are immutable: nothing is ever overwritten
    """


class ArtifactInvalid(ArtifactError):
    """The folder is not an artifact that may be loaded; `reason` says why, `remedy` what can be done."""

    def __init__(self, folder: str, reason: str, remedy: str = "") -> None:
        super().__init__(folder, reason, remedy)
        self.folder, self.reason, self.remedy = folder, reason, remedy

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"artifact {self.folder} is refused: {self.reason}{remedy}"


class ArtifactExists(ArtifactError):
    """The destination is taken."""

    def __init__(self, destination: str) -> None:
        super().__init__(destination)
        self.destination = destination

    def __str__(self) -> str:
        return f"{self.destination} exists, and versions are never overwritten; use a new version"


def write_artifact(source: Path, destination: Path, fields: ManifestFields) -> Manifest:
    """Copy the trained files of `source` to a new artifact at `destination`, all or nothing.

    The artifact is complete on disk (fsync) before it gets its name by one rename.

    Raises:
        ArtifactExists: `destination` is taken.
        ArtifactInvalid: `source` lacks a file.
    """
    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            raise ArtifactInvalid(str(source), f"{name} is missing")
    if os.path.lexists(destination):
        raise ArtifactExists(str(destination))
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        manifest = _fill(source, temporary, fields)
        _sync(temporary)
        try:
            temporary.rename(destination)
        except OSError as error:
            if destination.exists():  # another writer was first
                raise ArtifactExists(str(destination)) from error
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(destination.parent)
    return manifest


def verify_artifact(
    folder: Path,
    *,
    base_hash: str,
    max_rank: int,
    allowed_modules: Collection[str],
    shapes: LayerShapes | None = None,
) -> Manifest:
    """Check everything that can be checked without an engine, and return the manifest.

    Exactly three regular files of bounded size with the recorded hashes; made for this base
    model; plain LoRA on `allowed_modules` with rank at most `max_rank`; shapes that fit the
    rank and, where `shapes` are given, the base model's layers; every value finite; not all of
    lora_B zero (which would change nothing).

    Raises:
        ArtifactInvalid: any of it fails; `reason` says which.
    """
    try:
        _check_listing(folder)
        manifest = _read_manifest(folder / MANIFEST)
        if manifest.base_hash != base_hash:
            raise LoraFilesInvalid(
                f"it was trained for the base model {manifest.base_hash[:12]}, "
                f"and {base_hash[:12]} is served",
                "train it again on the model that is served",
            )
        for name in (CONFIG, WEIGHTS):
            if _sha256(folder / name) != manifest.files[name]:
                raise LoraFilesInvalid(f"{name} differs from the sha256 in the manifest")
        config = check_config(
            (folder / CONFIG).read_bytes(), max_rank=max_rank, allowed_modules=allowed_modules
        )
        check_weights(folder / WEIGHTS, config, shapes)
    except LoraFilesInvalid as error:
        raise ArtifactInvalid(str(folder), error.reason, error.remedy) from error
    except OSError as error:
        raise ArtifactInvalid(str(folder), f"it cannot be read ({error})") from error
    return manifest


def digest(folder: Path) -> str:
    """Name of the weights: sha256 over the hashes of config and weights; the manifest is out,
    so the same training gives the same digest whenever and under whatever name it ran.
    """
    lines = (f"{name}\0{_sha256(folder / name)}\n" for name in (CONFIG, WEIGHTS))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def renumber(folder: Path, number: int) -> Manifest:
    """Give an artifact that is not registered yet another number; its digest stays.

    Raises:
        ArtifactInvalid: the manifest cannot be read.
    """
    try:
        manifest = _read_manifest(folder / MANIFEST)
    except LoraFilesInvalid as error:
        raise ArtifactInvalid(str(folder), error.reason, error.remedy) from error
    manifest = manifest.model_copy(update={"version": number})
    _write_manifest(folder, manifest)
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _sync(folder / MANIFEST)


def _fill(source: Path, folder: Path, fields: ManifestFields) -> Manifest:
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(source / name, folder / name)
        (folder / name).chmod(0o644)  # the trainer's umask must not hide it from the engine
        _sync(folder / name)
    manifest = Manifest(
        **dict(fields),
        config_hash=config_hash(fields.config),
        files={name: _sha256(folder / name) for name in (CONFIG, WEIGHTS)},
    )
    _write_manifest(folder, manifest)
    return manifest


def _check_listing(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise LoraFilesInvalid("it is not a folder (links are not followed)")
    entries = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    for name, status in sorted(entries.items()):
        if name not in _MAX_BYTES:
            raise LoraFilesInvalid(f"it holds the unexpected file {name!r}")
        if not stat.S_ISREG(status.st_mode):
            raise LoraFilesInvalid(f"{name} is not a regular file (links are not followed)")
        if status.st_size > _MAX_BYTES[name]:
            raise LoraFilesInvalid(
                f"{name} has {status.st_size} bytes, {_MAX_BYTES[name]} at most are accepted"
            )
    if missing := sorted(_MAX_BYTES.keys() - entries.keys()):
        raise LoraFilesInvalid(f"{missing[0]} is missing")


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "as a whole"
        raise LoraFilesInvalid(f"{MANIFEST}, {where}: {first['msg']}") from error
    if manifest.files.keys() != {CONFIG, WEIGHTS}:
        raise LoraFilesInvalid(f"{MANIFEST} must list {CONFIG} and {WEIGHTS}, nothing else")
    if manifest.config_hash != config_hash(manifest.config):
        raise LoraFilesInvalid(f"{MANIFEST}: config_hash does not belong to config")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
