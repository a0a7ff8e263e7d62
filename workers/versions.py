"""From a trained folder to a version that the engine provably serves."""

import asyncio
import shutil
from dataclasses import dataclass
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

from adapters.artifact import ArtifactInvalid, ManifestFields, write_artifact
from adapters.code_version import code_version
from adapters.spec import SealConfig
from server.core.clock import monotonic, utc_now
from server.core.errors import EngineUnavailable
from server.db import VersionOrigin, VersionStatus
from server.engine.control import open_control
from server.services import artifacts, registry, runs
from server.services.runs import Claim
from workers.context import WorkerContext
from workers.heart import Heart
from workers.material import Material
from workers.patience import Patience

ArtifactRefused = ArtifactInvalid

_LIBRARIES = ("torch", "transformers", "peft", "safetensors")


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left, and what it takes to repeat it."""

    folder: Path
    lesson_sha256: str
    """Of the file of self-edits that was trained on."""
    environment: dict[str, Any]
    """The trainer's own words about its device, threads and number format."""


def register(
    context: WorkerContext,
    owned: Claim,
    material: Material,
    trained: Trained,
    *,
    config: SealConfig,
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
    adapter = material.adapter
    line = context.settings.artifacts_path / adapter.name
    pending = line / f".{owned.run_id}-{owned.attempt}"
    shutil.rmtree(pending, ignore_errors=True)
    with context.database.unit_of_work() as session:
        number = registry.next_number(session, adapter)
        interactions = tuple(runs.interactions_of(session, owned.run_id))
    fields = ManifestFields(
        adapter=adapter.name,
        version=number,
        run_id=owned.run_id,
        method=config.type,
        config=config.model_dump(mode="json"),
        documents=material.refs(),
        interactions=interactions,
        lesson_sha256=trained.lesson_sha256,
        seed=config.seed,
        created_at=utc_now(),
        libraries=libraries(),
        code_version=code_version(),
        environment=trained.environment,
        **artifacts.base_facts(adapter),
    )
    write_artifact(trained.folder, pending, fields)
    try:
        max_rank = context.settings.engine.max_lora_rank
        prepared = artifacts.verified(pending, adapter, max_rank=max_rank)
        with context.database.unit_of_work() as session:
            runs.assert_owned(session, owned)
            return artifacts.enter(
                session,
                adapter.id,
                prepared,
                line=line,
                run_id=owned.run_id,
                origin=VersionOrigin.RUN,
                status=VersionStatus.CANDIDATE,
            ).id
    finally:
        artifacts.discard(pending)


def libraries() -> dict[str, str]:
    """Version of each library that shapes the weights."""
    return {name: library_version(name) for name in _LIBRARIES}


def load_and_prove(
    context: WorkerContext, material: Material, version_id: str, heart: Heart
) -> dict[str, Any]:
    """Have the engine hold the version and show that it answers with it; figures for the report.

    An engine that is away is waited for, since it is being restarted.

    Raises:
        EngineError: the engine stays away, refuses the adapter, or answers as the base does.
    """
    with context.database.unit_of_work() as session:
        version = registry.by_id(session, version_id)
    name = registry.engine_name(material.adapter.name, version)
    patience = Patience(context.settings.engine.start_timeout_s)
    while True:
        try:
            return asyncio.run(_load_and_prove(context, material, name, version.path))
        except EngineUnavailable as error:
            patience.wait_or_raise(error)
            heart.check()


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
