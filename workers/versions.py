"""From a trained folder to a version that the engine provably serves."""

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
from adapters.sampling import SamplingError
from adapters.spec import LINEAR_MODULES, SealConfig
from server.core.clock import new_id, utc_now
from server.core.errors import EngineUnavailable, ReplicasNotReady
from server.db import Adapter
from server.services import registry, runs
from server.services.runs import Claim
from workers import replicas
from workers.context import WorkerContext
from workers.heart import Heart
from workers.material import Material
from workers.patience import Patience

ArtifactRefused = ArtifactInvalid

_LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def register(
    context: WorkerContext, owned: Claim, material: Material, trained: Path, *, config: SealConfig
) -> str:
    """Make the trained files an artifact, verify it, and enter it as a candidate.

    The artifact is complete under a name of this attempt before the claim is checked once more;
    its own name, its number and its row come together in one transaction. So a worker that slept
    through its lease and wakes up here changes nothing.

    Returns the version's id.

    Raises:
        ArtifactRefused: the files are not an adapter that an engine may load.
        LeaseLost: the run belongs to another worker by now.
    """
    line = context.settings.artifacts_path / material.adapter.name
    pending = line / f".{owned.run_id}-{owned.attempt}"
    shutil.rmtree(pending, ignore_errors=True)
    with context.database.unit_of_work() as session:
        number = registry.next_number(session, material.adapter)
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
    write_artifact(trained, pending, fields)
    try:
        manifest = verify_artifact(
            pending,
            base_hash=material.adapter.base_hash,
            max_rank=context.settings.engine.max_lora_rank,
            allowed_modules=LINEAR_MODULES,
        )
        weights = digest(pending)
        with context.database.unit_of_work() as session:
            runs.assert_owned(session, owned)
            folder = _take_name(pending, line / f"v{number:04d}")
            return registry.register_version(
                session,
                session.get_one(Adapter, material.adapter.id),
                number=number,
                run_id=owned.run_id,
                path=folder,
                digest=weights,
                manifest=manifest.model_dump(mode="json"),
            ).id
    finally:
        shutil.rmtree(pending, ignore_errors=True)


def _take_name(pending: Path, folder: Path) -> Path:
    """Give the artifact its name. A folder that is there without a row is set aside, not deleted."""
    if folder.exists():
        folder.rename(folder.with_name(f".{folder.name}-without-a-row-{new_id('set')}"))
    return pending.rename(folder)


def load_and_prove(
    context: WorkerContext, material: Material, version_id: str, heart: Heart
) -> dict[str, Any]:
    """Have the replicas hold the version and show that they answer with it; figures for the report.

    Engines that are away are waited for, since they are being restarted.

    Raises:
        EngineError: too few replicas serve it: they stay away, refuse it, or answer as the base does.
    """
    with context.database.unit_of_work() as session:
        version = registry.by_id(session, version_id)
    name = registry.engine_name(material.adapter.name, version)
    patience = Patience(context.settings.engine.start_timeout_s)
    while True:
        try:
            proven = replicas.prove_everywhere(
                context, name, version.path, material.base_engine_name
            )
        except EngineUnavailable as error:
            patience.wait_or_raise(error)
            heart.check()
        else:
            return {
                "name": name,
                "load_seconds": max(each["load_seconds"] for each in proven.values()),
                "logprob_difference": min(each["logprob_difference"] for each in proven.values()),
                "replicas": proven,
            }


def check_held(context: WorkerContext, material: Material, version_id: str) -> None:
    """Return when the quorum still holds the version, so that an alias may move to it.

    Raises:
        SamplingError: it does not: engines were restarted since the exam.
    """
    with context.database.unit_of_work() as session:
        version = registry.by_id(session, version_id)
    try:
        replicas.check_held(context, registry.engine_name(material.adapter.name, version))
    except (EngineUnavailable, ReplicasNotReady) as error:
        raise SamplingError(str(error)) from error
