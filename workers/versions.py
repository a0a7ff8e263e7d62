"""From a trained folder to a version that the engine provably serves."""

import shutil
from dataclasses import dataclass
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

from adapters.artifact import (
    ArtifactInvalid,
    ManifestFields,
    write_artifact,
)
from adapters.code_version import code_version
from adapters.sampling import SamplingError
from adapters.spec import MethodConfig
from server.core.clock import utc_now
from server.core.errors import EngineUnavailable, ReplicasNotReady
from server.db import VersionOrigin, VersionStatus
from server.services import artifacts, registry, runs
from server.services.runs import Claim
from workers import replicas
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
    generation: int = 0
    """How many times in a row it was trained on from another version, the champion at last."""


def register(
    context: WorkerContext,
    owned: Claim,
    material: Material,
    trained: Trained,
    *,
    config: MethodConfig,
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
        prompts = tuple(runs.prompts_of(session, owned.run_id))
    parent = material.champion if trained.generation else None
    fields = ManifestFields(
        adapter=adapter.name,
        version=number,
        parent=parent.number if parent else None,
        generation=trained.generation,
        run_id=owned.run_id,
        method=config.type,
        config=config.model_dump(mode="json"),
        documents=material.refs(),
        tasks=material.task_refs,
        interactions=interactions,
        prompts=prompts,
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
                parent=parent,
            ).id
    finally:
        artifacts.discard(pending)


def libraries() -> dict[str, str]:
    """Version of each library that shapes the weights."""
    return {name: library_version(name) for name in _LIBRARIES}


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
