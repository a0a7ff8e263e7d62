"""From a trained folder to a version that the engine provably serves."""

import asyncio
import shutil
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

from adapters.artifact import (
    ArtifactInvalid,
    ManifestFields,
    digest,
    verify_artifact,
    write_artifact,
)
from adapters.spec import LINEAR_MODULES, SealConfig
from server.core.clock import monotonic, utc_now
from server.db import Adapter
from server.engine.control import open_control
from server.services import registry
from server.services.runs import Claim
from workers.context import WorkerContext
from workers.material import Material

ArtifactRefused = ArtifactInvalid

_LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def register(
    context: WorkerContext, owned: Claim, material: Material, trained: Path, *, config: SealConfig
) -> str:
    """Make the trained files an artifact, verify it, and enter it as a candidate.

    Returns the version's id.

    Raises:
        ArtifactRefused: the files are not an adapter that an engine may load.
    """
    with context.database.unit_of_work() as session:
        number = registry.next_number(session, material.adapter)
    folder = context.settings.artifacts_path / material.adapter.name / f"v{number:04d}"
    # Only an attempt of ours that died before it could register leaves a folder without a row,
    # and no engine has heard of it.
    shutil.rmtree(folder, ignore_errors=True)
    fields = ManifestFields(
        adapter=material.adapter.name,
        version=number,
        base_model=material.adapter.base_model,
        base_hash=material.adapter.base_hash,
        run_id=owned.run_id,
        method=config.type,
        config=config.model_dump(mode="json"),
        documents=material.refs(),
        seed=config.seed,
        created_at=utc_now(),
        libraries={name: library_version(name) for name in _LIBRARIES},
    )
    write_artifact(trained, folder, fields)
    manifest = verify_artifact(
        folder,
        base_hash=material.adapter.base_hash,
        max_rank=context.settings.engine.max_lora_rank,
        allowed_modules=LINEAR_MODULES,
    )
    with context.database.unit_of_work() as session:
        return registry.register_version(
            session,
            session.get_one(Adapter, material.adapter.id),
            number=number,
            run_id=owned.run_id,
            path=folder,
            digest=digest(folder),
            manifest=manifest.model_dump(mode="json"),
        ).id


def load_and_prove(context: WorkerContext, material: Material, version_id: str) -> dict[str, Any]:
    """Have the engine hold the version and show that it answers with it; figures for the report.

    Raises:
        EngineError: the engine is away, refuses the adapter, or answers as the base does.
    """
    with context.database.unit_of_work() as session:
        version = registry.by_id(session, version_id)
    name = registry.engine_name(material.adapter.name, version)
    return asyncio.run(_load_and_prove(context, material, name, version.path))


async def _load_and_prove(
    context: WorkerContext, material: Material, name: str, path: str
) -> dict[str, Any]:
    async with open_control(context.settings.engine) as control:
        began = monotonic()
        await control.load_adapter(name, path)
        load_s = monotonic() - began
        difference = await control.prove_adapter(name, material.base_engine_name)
    return {
        "name": name,
        "load_seconds": round(load_s, 3),
        "logprob_difference": round(difference, 4),
    }
