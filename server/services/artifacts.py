"""From files to a version of a line: place a finished artifact, bring a foreign adapter in.

The number, the folder's name and the row come together in one transaction.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from sqlalchemy.orm import Session

from adapters import artifact
from adapters.artifact import ArtifactInvalid, Manifest, ManifestFields
from adapters.base_shapes import BaseModelUnreadable, layer_shapes
from adapters.code_version import code_version
from adapters.foreign import normalised_config
from adapters.lora_files import LoraFilesInvalid
from adapters.model_folder import template_hash, tokenizer_hash
from adapters.spec import LINEAR_MODULES
from server.core.clock import new_id, utc_now
from server.core.errors import FilesGone, ImportRefused
from server.core.settings import Settings
from server.db import Adapter, AdapterVersion, VersionOrigin, VersionStatus
from server.services import registry

IMPORTED = "import"
"""The method in the manifest of an adapter that no method of ours made."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An artifact that is complete and verified, and has no name yet."""

    folder: Path
    manifest: Manifest
    digest: str


def enter(
    session: Session,
    adapter_id: str,
    prepared: Prepared,
    *,
    line: Path,
    run_id: str | None,
    origin: VersionOrigin,
    status: VersionStatus,
    parent: AdapterVersion | None = None,
) -> AdapterVersion:
    """Number the artifact, give it its name in the folder ``line``, and register it.

    ``parent`` is the version that it was trained on from.
    """
    adapter = session.get_one(Adapter, adapter_id, with_for_update=True)  # one number, one version
    number = registry.next_number(session, adapter)
    manifest = prepared.manifest
    if manifest.version != number:  # another version was entered since the manifest was written
        manifest = artifact.renumber(prepared.folder, number)
    return registry.register_version(
        session,
        adapter,
        number=number,
        run_id=run_id,
        path=_take_name(prepared.folder, line / f"v{number:04d}"),
        digest=prepared.digest,
        manifest=manifest.model_dump(mode="json"),
        origin=origin,
        status=status,
        parent=parent,
    )


def base_facts(adapter: Adapter) -> Mapping[str, JsonValue]:
    """What a manifest says of the base model under a line."""
    folder = Path(adapter.base_path)
    return {
        "base_model": adapter.base_model,
        "base_hash": adapter.base_hash,
        "tokenizer_hash": tokenizer_hash(folder),
        "template_hash": template_hash(folder),
    }


def verified(folder: Path, adapter: Adapter, *, max_rank: int) -> Prepared:
    """Check an artifact against its line's base model.

    Raises:
        ArtifactInvalid: no engine may load it.
    """
    try:
        shapes = layer_shapes(Path(adapter.base_path))
    except BaseModelUnreadable as error:
        remedy = "prepare the base model again: `everlearn prepare`"
        raise ArtifactInvalid(str(folder), str(error), remedy) from error
    manifest = artifact.verify_artifact(
        folder,
        base_hash=adapter.base_hash,
        max_rank=max_rank,
        allowed_modules=LINEAR_MODULES,
        shapes=shapes,
    )
    return Prepared(folder, manifest, artifact.digest(folder))


def prepare_import(sent: Path, adapter: Adapter, settings: Settings, *, source: str) -> Prepared:
    """Make an artifact of a foreign adapter's two files in the folder ``sent``, and verify it.

    No transaction may be open: this reads every byte of the weights.

    Raises:
        ImportRefused: no engine may load it; nothing is left behind but ``sent``.
    """
    line = settings.artifacts_path / adapter.name
    pending = line / f".{new_id('imp')}"
    is_new_line = not line.exists()
    try:
        config = sent / artifact.CONFIG
        config.write_bytes(normalised_config(config, sent / artifact.WEIGHTS))
        fields = ManifestFields(
            adapter=adapter.name,
            version=1,  # its own comes with its name
            origin=VersionOrigin.IMPORT,
            source=source,
            method=IMPORTED,
            config={},
            documents=(),
            seed=None,
            created_at=utc_now(),
            libraries={},
            code_version=code_version(),
            **base_facts(adapter),
        )
        artifact.write_artifact(sent, pending, fields)
        return verified(pending, adapter, max_rank=settings.engine.max_lora_rank)
    except (LoraFilesInvalid, ArtifactInvalid) as error:
        discard(pending)
        if is_new_line:
            _remove_if_empty(line)
        remedy = error.remedy or "send the two files that PEFT's save_pretrained wrote"
        raise ImportRefused(error.reason, remedy) from error


def discard(folder: Path) -> None:
    """Drop an artifact that has no name."""
    shutil.rmtree(folder, ignore_errors=True)


def check_files(adapter: Adapter, version: AdapterVersion) -> Path:
    """The version's folder, with exactly the files that were registered.

    Raises:
        FilesGone: they were removed, or changed.
    """
    name = registry.version_name(adapter.name, version.number)
    if version.files_removed_at is not None:
        raise FilesGone(name, f"it was retired, and its files removed: {version.retire_reason}.")
    folder = Path(version.path)
    try:
        found = artifact.digest(folder)
    except OSError as error:
        raise FilesGone(name, f"{error}. Restore the folder from a backup.") from error
    if found != version.digest:
        why = "its files are not those that were registered. Restore the folder from a backup."
        raise FilesGone(name, why)
    return folder


def _take_name(pending: Path, folder: Path) -> Path:
    """Give the artifact its name. A folder that is there without a row is set aside, not deleted."""
    if folder.exists():
        folder.rename(folder.with_name(f".{folder.name}-without-a-row-{new_id('set')}"))
    return pending.rename(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not os.listdir(folder):
        folder.rmdir()
