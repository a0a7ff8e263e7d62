"""Rebuilding a version: bit by bit the same, nothing else changed, and never from what was forgotten."""

import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.lesson import Stage, stages_to_json
from adapters.model_folder import folder_hash
from adapters.spec import LoraSpec, Precision, SealConfig, TrainingSpec
from adapters.training import job
from adapters.types import EditKind, SelfEdit
from server.core.errors import NotRebuildable
from server.core.settings import Settings
from server.db import AdaptationRun, Adapter, RunKind, RunStatus, VersionOrigin
from server.db.session import Database
from server.services import deletions, documents, policies, promotion, rebuilds, registry, runs
from server.services.bootstrap import ensure_line
from server.services.relearning import Orders
from tests.conftest import RecordingQueue
from tests.support.factories import make_document, make_run, principal
from tests.support.trainings import scripted
from tests.unit.adapters.conftest import save_random_model
from workers import adaptation, training, versions
from workers.context import WorkerContext
from workers.lesson import CHAMPION, Lesson, Training
from workers.material import collect

LEASE = timedelta(seconds=30)
CONFIG = SealConfig(
    lora=LoraSpec(rank=4, alpha=8),
    training=TrainingSpec(epochs=2, batch_size=2, precision=Precision.FLOAT32, learning_rate=2e-2),
    seed=3,
)
EDITS = (
    SelfEdit(EditKind.PASSAGE, "d", None, "The keeper is Odile Brandt.", "rule"),
    SelfEdit(EditKind.QUESTION, "d", "Who is the keeper?", "Odile Brandt.", "rule"),
    SelfEdit(EditKind.REPLAY, None, "Hello", "Hi!", "model"),
)


def train_here(fields: dict[str, Any], *, folder: Path, heart: object) -> dict[str, Any]:
    """What the worker's child does, without the seconds that its imports take."""
    file, out = folder / "job.json", io.StringIO()
    file.write_text(json.dumps(fields))
    job.run_job(job.read_job(file), out)
    closing: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return closing


@dataclass
class Learnt:
    """A line with one version that was trained for real, on a model of a few thousand weights."""

    context: WorkerContext
    adapter: Adapter
    version_id: str
    document_id: str
    queue: RecordingQueue

    @property
    def database(self) -> Database:
        return self.context.database

    def order(self) -> AdaptationRun:
        with self.database.unit_of_work() as session:
            version = registry.by_id(session, self.version_id)
            run, _ = rebuilds.queue_rebuild(
                session,
                self.adapter,
                version,
                requested_by="test",
                queue=self.queue,
            )
            return run

    def carry_out(self, run: AdaptationRun) -> AdaptationRun:
        adaptation.run(self.context, run.id)
        with self.database.unit_of_work() as session:
            return runs.get_run(session, run.id)

    def lesson(self) -> Path:
        with self.database.unit_of_work() as session:
            version = registry.by_id(session, self.version_id)
        return self.context.settings.runs_path / str(version.run_id) / rebuilds.LESSON

    def picture(self) -> tuple[Any, ...]:
        """Everything that a rebuild must leave alone."""
        with self.database.unit_of_work() as session:
            line = self.adapter
            return (
                [(v.number, v.status, v.digest) for v in registry.versions_of(session, line)],
                promotion.champion_revision(session, line),
                documents.get_document(session, self.document_id).state,
                sorted(path.name for path in self._artifacts.iterdir()),
            )

    @property
    def _artifacts(self) -> Path:
        return self.context.settings.artifacts_path / self.adapter.name


@pytest.fixture
def learnt(
    database: Database,
    settings: Settings,
    queue: RecordingQueue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Learnt:
    monkeypatch.setattr(training, "Trainer", scripted(train_here))
    base = save_random_model(tmp_path / "base")
    context = WorkerContext(settings, database, cast(Any, queue), "test")
    with database.unit_of_work() as session:
        adapter = ensure_line(session, settings, base_path=base, base_hash=folder_hash(base))
        document = make_document(session)
        run = make_run(session, adapter)
        owned = runs.claim(session, run.id, worker="a", lease=LEASE)
        assert owned is not None
        material = collect(session, owned, served="smollm2")
    folder = settings.runs_path / owned.run_id
    folder.mkdir(parents=True)
    stage = Stage(CONFIG.lora, CONFIG.training, CONFIG.seed, edits=EDITS, anchors_per_epoch=2)
    lesson = folder / rebuilds.LESSON
    Lesson((Training(stage, None),)).write(lesson)
    order = {
        "base_model": str(base),
        "stages": stages_to_json([stage]),
        "outputs": [str(folder / "adapter")],
        "threads": 1,
    }
    closing = train_here(order, folder=folder, heart=None)
    trained = versions.Trained(
        folder / "adapter", rebuilds.lesson_hash(lesson), closing["environment"]
    )
    version_id = versions.register(context, owned, material, trained, config=CONFIG)
    with database.unit_of_work() as session:
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="reject")
    return Learnt(context, adapter, version_id, document.id, queue)


@pytest.mark.parametrize(
    "trainer", [scripted(train_here), training.Trainer], ids=["here", "in a child"]
)
def test_it_comes_out_the_same_and_changes_nothing(
    learnt: Learnt, trainer: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "Trainer", trainer)
    before = learnt.picture()

    run = learnt.carry_out(learnt.order())

    assert (run.status, run.kind, run.verdict, run.error) == ("succeeded", "rebuild", None, None)
    found = run.report["rebuild"]
    assert found["is_identical"] is True
    assert (found["differing"], found["max_abs_difference"]) == (0, 0.0)
    assert found["tensors"] == 28
    assert (found["libraries"], found["environment"]) == ({}, {})
    assert learnt.picture() == before


def test_what_was_forgotten_is_not_learnt_from_again(learnt: Learnt) -> None:
    queued = learnt.order()
    with learnt.database.unit_of_work() as session:
        documents.delete_document(session, learnt.document_id, tenant=None)

    run = learnt.carry_out(queued)

    assert run.status == "failed"
    assert learnt.document_id in str(run.error)
    with pytest.raises(NotRebuildable, match=learnt.document_id):
        learnt.order()


def test_a_rebuild_of_what_was_forgotten_is_stopped(learnt: Learnt, settings: Settings) -> None:
    """It has read the lesson already, and writes it into a job of its own."""
    queued = learnt.order().id
    with learnt.database.unit_of_work() as session:
        owned = runs.claim(session, queued, worker="a", lease=LEASE)
        assert owned is not None
    with learnt.database.unit_of_work() as session:
        deletion = deletions.forget_document(session, principal(), learnt.document_id)[1]
        orders = Orders(learnt.queue, settings.learning)
        deletions.advance(session, deletion.id, orders)

    with learnt.database.unit_of_work() as session:
        assert runs.heartbeat(session, owned, stage="training")  # somebody asks for its end
        runs.finish(session, owned, status=RunStatus.CANCELLED)
        assert queued in deletions.runs_with_lessons(session, deletion)


@pytest.fixture
def learnt_on(learnt: Learnt) -> Learnt:
    """A second version, trained on from the first, on a document of its own."""
    context, database = learnt.context, learnt.database
    with database.unit_of_work() as session:
        make_document(session, "The lamp of the tower is green.")
        run = make_run(session, session.merge(learnt.adapter))
        owned = runs.claim(session, run.id, worker="a", lease=LEASE)
        assert owned is not None
        material = dataclasses.replace(
            collect(session, owned, served="smollm2"),
            champion=registry.by_id(session, learnt.version_id),
        )
        assert material.champion is not None
        start = material.champion.path
    folder = context.settings.runs_path / owned.run_id
    folder.mkdir(parents=True)
    edit = SelfEdit(EditKind.PASSAGE, "d", None, "The lamp of the tower is green.", "rule")
    stage = Stage(CONFIG.lora, CONFIG.training, CONFIG.seed, edits=(edit,))
    lesson = folder / rebuilds.LESSON
    Lesson((Training(stage, CHAMPION),), learnt.version_id).write(lesson)
    order = {
        "base_model": learnt.adapter.base_path,
        "stages": stages_to_json([stage]),
        "outputs": [str(folder / "adapter")],
        "start": start,
        "threads": 1,
    }
    closing = train_here(order, folder=folder, heart=None)
    trained = versions.Trained(
        folder / "adapter", rebuilds.lesson_hash(lesson), closing["environment"], generation=1
    )
    version_id = versions.register(context, owned, material, trained, config=CONFIG)
    with database.unit_of_work() as session:
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="reject")
    return dataclasses.replace(learnt, version_id=version_id)


def test_a_version_that_was_trained_on_comes_out_the_same(learnt_on: Learnt) -> None:
    """Fails when the second training begins at the base: the weights are then others."""
    run = learnt_on.carry_out(learnt_on.order())

    assert run.error is None
    assert run.report["rebuild"]["is_identical"] is True


def test_a_version_that_was_trained_on_says_from_what(learnt: Learnt, learnt_on: Learnt) -> None:
    with learnt.database.unit_of_work() as session:
        first = registry.by_id(session, learnt.version_id)
        second = registry.by_id(session, learnt_on.version_id)

        assert (first.generation, first.parent_id) == (0, None)
        assert (second.generation, second.parent_id) == (1, first.id)
        assert (first.manifest["generation"], first.manifest["parent"]) == (0, None)
        assert (second.manifest["generation"], second.manifest["parent"]) == (1, first.number)


def test_what_only_the_version_before_had_learnt_is_not_learnt_from_again(
    learnt: Learnt, learnt_on: Learnt
) -> None:
    with learnt.database.unit_of_work() as session:
        own = registry.by_id(session, learnt_on.version_id)
        refs = [ref for ref in own.manifest["documents"] if ref["id"] != learnt.document_id]
        own.manifest = {**own.manifest, "documents": refs}
        documents.delete_document(session, learnt.document_id, tenant=None)

    with pytest.raises(NotRebuildable, match=learnt.document_id):
        learnt_on.order()


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_another_lesson_is_not_taken_for_it(learnt: Learnt, damage: str) -> None:
    lesson = learnt.lesson()
    lesson.write_text("{}") if damage == "changed" else lesson.unlink()

    run = learnt.carry_out(learnt.order())

    assert run.status == "failed"
    assert "its lesson" in str(run.error)


def test_another_base_model_is_not_taken_for_it(learnt: Learnt) -> None:
    queued = learnt.order()
    (Path(learnt.adapter.base_path) / "config.json").write_text("{}")

    run = learnt.carry_out(queued)

    assert run.status == "failed"
    assert "has changed" in str(run.error)


def test_an_imported_version_cannot_be_rebuilt(learnt: Learnt) -> None:
    with learnt.database.unit_of_work() as session:
        registry.by_id(session, learnt.version_id).origin = VersionOrigin.IMPORT

    with pytest.raises(NotRebuildable, match="imported"):
        learnt.order()


def test_a_manifest_of_old_names_no_lesson(learnt: Learnt) -> None:
    with learnt.database.unit_of_work() as session:
        version = registry.by_id(session, learnt.version_id)
        version.manifest = {**version.manifest, "lesson_sha256": None}

    with pytest.raises(NotRebuildable, match="names no lesson"):
        learnt.order()


def test_one_order_is_one_run(learnt: Learnt) -> None:
    first, again = learnt.order(), learnt.order()

    assert first.id == again.id


def test_it_stands_in_the_way_of_no_learning(learnt: Learnt, settings: Settings) -> None:
    rebuilding = learnt.order()
    with learnt.database.unit_of_work() as session:
        new = make_document(session, "The lamp is green.")
        adapter = session.merge(learnt.adapter)
        later = new.created_at + timedelta(minutes=1)

        started = policies.queue_due_runs(session, settings.learning, queue=learnt.queue, now=later)

        assert [run.kind for run in started] == [RunKind.LEARN]
        assert started[0].id != rebuilding.id
        assert runs.documents_of(session, rebuilding.id) == []
        assert adapter.id == started[0].adapter_id


def test_a_queued_one_is_cancelled_and_no_document_counts_as_seen(learnt: Learnt) -> None:
    before = learnt.picture()
    run = learnt.order()

    with learnt.database.unit_of_work() as session:
        cancelled = runs.request_cancel(session, run.id)
        assert cancelled.status == RunStatus.CANCELLED
        assert runs.documents_of(session, run.id) == []
    assert learnt.picture() == before
