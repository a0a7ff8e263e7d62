"""Registering a version: only the run's owner does it, and nobody's files are touched."""

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.artifact import ArtifactInvalid, Manifest
from adapters.code_version import code_version
from adapters.spec import SealConfig
from server.core.clock import utc_now
from server.core.errors import LeaseLost
from server.core.settings import Settings
from server.db import Adapter, RunInteraction, VersionStatus
from server.db.session import Database
from server.services import artifacts, registry, runs
from tests.conftest import RecordingQueue
from tests.support.adapter_files import write_base
from tests.support.factories import make_document, make_run, make_version
from tests.unit.adapters.test_artifact import trained
from workers import versions
from workers.context import WorkerContext
from workers.material import Material, collect

LEASE = timedelta(seconds=30)
LESSON_SHA256 = "d" * 64


@dataclass
class Attempts:
    """A run whose first worker was silent for too long, and whose second has it now."""

    context: WorkerContext
    material: Material
    first: runs.Claim
    second: runs.Claim

    def register(self, claim: runs.Claim, files: Path) -> str:
        trained = versions.Trained(files, LESSON_SHA256, {"device": "cpu", "threads": 1})
        return versions.register(self.context, claim, self.material, trained, config=SealConfig())

    @property
    def line(self) -> Path:
        return self.context.settings.artifacts_path / self.material.adapter.name


@pytest.fixture
def attempts(
    database: Database, adapter: Adapter, settings: Settings, queue: RecordingQueue
) -> Attempts:
    write_base(Path(adapter.base_path), {"model.layers.0.self_attn.q_proj": (3, 3)})
    with database.unit_of_work() as session:
        make_document(session)
        run = make_run(session, adapter)
        first = runs.claim(session, run.id, worker="a", lease=LEASE)
        assert first is not None
        material = collect(session, first, served="smollm2")
    with database.unit_of_work() as session:
        later = utc_now() + 2 * LEASE
        second = runs.claim(session, run.id, worker="b", lease=LEASE, now=later)
    assert second is not None
    context = WorkerContext(settings, database, cast(Any, queue), "test")
    return Attempts(context, material, first, second)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What a training leaves: a small, valid adapter."""
    return trained(tmp_path / "trained")


def test_the_owner_registers_a_candidate_under_its_own_path(
    attempts: Attempts, files: Path, database: Database
) -> None:
    with database.unit_of_work() as session:
        session.add(RunInteraction(run_id=attempts.second.run_id, interaction_id="int_1"))

    version_id = attempts.register(attempts.second, files)

    with database.unit_of_work() as session:
        version = registry.by_id(session, version_id)
        manifest = Manifest.model_validate(version.manifest)
    assert (version.number, version.status) == (1, VersionStatus.CANDIDATE)
    assert version.path == str(attempts.line / "v0001")
    assert manifest.documents[0].id == attempts.material.documents[0].id
    assert (manifest.run_id, manifest.origin) == (attempts.second.run_id, "run")
    assert manifest.interactions == ("int_1",)
    assert manifest.lesson_sha256 == LESSON_SHA256
    assert manifest.environment == {"device": "cpu", "threads": 1}
    assert manifest.tokenizer_hash
    assert manifest.template_hash
    assert manifest.code_version == code_version()
    assert [entry.name for entry in attempts.line.iterdir()] == ["v0001"]


def test_a_worker_that_slept_through_its_lease_registers_nothing(
    attempts: Attempts, files: Path, database: Database
) -> None:
    with pytest.raises(LeaseLost):
        attempts.register(attempts.first, files)

    with database.unit_of_work() as session:
        assert registry.version_of_run(session, attempts.first.run_id) is None
    assert list(attempts.line.iterdir()) == []


def test_it_leaves_the_files_of_its_heir_alone(attempts: Attempts, files: Path) -> None:
    attempts.register(attempts.second, files)
    weights = attempts.line / "v0001" / "adapter_model.safetensors"
    before = weights.read_bytes()

    with pytest.raises(LeaseLost):
        attempts.register(attempts.first, files)

    assert weights.read_bytes() == before


def test_a_folder_without_a_row_is_set_aside(attempts: Attempts, files: Path) -> None:
    stray = attempts.line / "v0001"
    stray.mkdir(parents=True)
    (stray / "note").write_text("of a worker that died before its row")

    attempts.register(attempts.second, files)

    kept = [entry for entry in attempts.line.iterdir() if "without-a-row" in entry.name]
    assert [(entry / "note").exists() for entry in kept] == [True]
    assert (stray / "manifest.json").exists()


def test_a_version_that_came_between_does_not_take_its_number(
    attempts: Attempts, files: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody imports an adapter while the trained files are being verified."""
    verified = artifacts.verified

    def slowly(*given: Any, **settings: Any) -> artifacts.Prepared:
        prepared = verified(*given, **settings)
        with database.unit_of_work() as session:
            make_version(session, attempts.material.adapter)
        return prepared

    monkeypatch.setattr(artifacts, "verified", slowly)

    version_id = attempts.register(attempts.second, files)

    with database.unit_of_work() as session:
        version = registry.by_id(session, version_id)
        manifest = version.manifest
    assert (version.number, manifest["version"]) == (2, 2)
    written = json.loads((attempts.line / "v0002" / "manifest.json").read_text())
    assert written == manifest


def test_one_that_does_not_fit_the_base_model_is_refused(
    attempts: Attempts, files: Path, database: Database
) -> None:
    base = Path(attempts.material.adapter.base_path)
    write_base(base, {"model.layers.0.self_attn.q_proj": (3, 4)})

    with pytest.raises(ArtifactInvalid, match="has 4 features"):
        attempts.register(attempts.second, files)

    assert list(attempts.line.iterdir()) == []


def test_files_that_are_no_adapter_are_refused_whole(
    attempts: Attempts, tmp_path: Path, database: Database
) -> None:
    broken = trained(tmp_path / "broken", weights=b"not safetensors")

    with pytest.raises(ArtifactInvalid):
        attempts.register(attempts.second, broken)

    with database.unit_of_work() as session:
        assert registry.version_of_run(session, attempts.second.run_id) is None
    assert list(attempts.line.iterdir()) == []
