"""adaptation.run: one run from its claim to its end.

The stages, in order: chunk (collect the documents), self_edits, training, exam, swap. What a stage
leaves behind is kept (self-edits in the run's folder, the version in its row), so that a run whose
worker was killed goes on where it was.
"""

import dataclasses
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from celery import shared_task

from adapters.evaluation.gate import Verdict
from adapters.methods import build_method
from adapters.sampling import SamplingError
from adapters.spec import SealConfig
from adapters.types import EditKind, SelfEdit
from server.core.clock import monotonic
from server.core.errors import AliasMoved, AppError, LeaseLost
from server.core.queue import RUN_ADAPTATION
from server.db import Adapter, RunKind, RunStatus, VersionStatus
from server.services import (
    evaluations,
    ingestion,
    promotion,
    rebuilds,
    registry,
    runs,
    taint,
    trials,
)
from server.services.rebuilds import LESSON
from server.services.runs import Claim
from workers import examination, quizzes, rebuild, replicas, versions
from workers.context import WorkerContext, worker_context
from workers.heart import Heart, RunCancelled
from workers.ingest import ingest
from workers.material import Material, collect, with_champion
from workers.sampler import EngineSampler
from workers.training import TrainingFailed, train

log = structlog.get_logger(__name__)

_MOST_EXAMS = 3


@shared_task(name=RUN_ADAPTATION)
def run_task(run_id: str) -> None:
    """The message; may come twice, late or never."""
    run(worker_context(), run_id)


def run(context: WorkerContext, run_id: str) -> None:
    """Claim the run and see it through; return at once when it is not to be had."""
    learning = context.settings.learning
    with context.database.unit_of_work() as session:
        owned = runs.claim(
            session, run_id, worker=context.name, lease=timedelta(seconds=learning.lease_s)
        )
    if owned is None:
        return
    log.info("run_claimed", run_id=run_id, attempt=owned.attempt)
    with Heart(
        context.database, owned, every_s=learning.heartbeat_s, lease_s=learning.lease_s
    ) as heart:
        adaptation = Adaptation(context, owned, heart)
        try:
            adaptation.go_through()
        except RunCancelled as cancelled:
            adaptation.close(RunStatus.CANCELLED, error=str(cancelled) or None)
        except LeaseLost as lost:  # whoever has it now, or takes it next, goes on with it
            log.warning("run_lost", run_id=run_id, reason=str(lost))
        except (AppError, SamplingError, TrainingFailed, versions.ArtifactRefused) as failure:
            adaptation.close(RunStatus.FAILED, error=str(failure))
        except Exception:  # a defect of ours; the run must still end
            log.exception("run_crashed", run_id=run_id)
            error = "The worker met a defect of its own; its log has the details."
            adaptation.close(RunStatus.FAILED, error=error)
        finally:
            adaptation.clean_up()


class Adaptation:
    """One run in the hands of one worker."""

    def __init__(self, context: WorkerContext, owned: Claim, heart: Heart) -> None:
        self._context = context
        self._database = context.database
        self._owned = owned
        self._heart = heart
        self._seconds: dict[str, float] = {}
        self._report: dict[str, Any] = {"seconds": self._seconds}
        with self._database.unit_of_work() as session:
            run = runs.get_run(session, owned.run_id)
            self._kind = run.kind
            self._config = SealConfig.model_validate(run.config)
        self._folder = context.settings.runs_path / owned.run_id
        self._scratch = self._folder / f"attempt-{owned.attempt}"
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._checkpoints = self._folder / "checkpoints"

    def go_through(self) -> None:
        """All stages; raises whatever ends the run early."""
        if self._kind == RunKind.REBUILD:
            self._rebuild()
            return
        material = self._collect()
        lesson = self._write_self_edits(material)
        version_id = self._train(material, lesson.edits)
        for attempt in range(1, _MOST_EXAMS + 1):
            try:
                exam = self._examine(material, version_id, lesson.exam)
                if exam.decision.verdict == Verdict.PROMOTE:
                    versions.check_held(self._context, material, version_id)
                self._swap(material, version_id, exam)
                return
            except (AliasMoved, SamplingError) as disturbance:
                # Somebody promoted or rolled back meanwhile, so it compared with the wrong one; or
                # an engine was restarted and holds the candidate no more. Once again, then.
                if attempt == _MOST_EXAMS:
                    raise
                log.warning("exam_repeated", run_id=self._owned.run_id, reason=str(disturbance))
                with self._database.unit_of_work() as session:
                    material = with_champion(session, material)

    def close(self, status: RunStatus, error: str | None = None) -> None:
        """End a run that did not go through, unless somebody else owns it by now."""
        log.info("run_closed", run_id=self._owned.run_id, status=status, error=error)
        try:
            with self._database.unit_of_work() as session:
                runs.finish(session, self._owned, status=status, report=self._report, error=error)
            self._drop_checkpoints()
        except LeaseLost as lost:
            log.warning("run_lost", run_id=self._owned.run_id, reason=str(lost))

    def clean_up(self) -> None:
        """Drop what only this attempt needed; the self-edits stay, as the record of the lesson."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _collect(self) -> Material:
        with self._stage("chunk"):
            for document_id in self._not_yet_chunked():
                ingest(self._context, document_id)
            with self._database.unit_of_work() as session:
                material = collect(session, self._owned, served=self._context.settings.model.name)
            self._heart.progress(len(material.documents), len(material.documents))
        return material

    def _not_yet_chunked(self) -> list[str]:
        """Documents that came just before an order to learn, whose own message is still waiting."""
        with self._database.unit_of_work() as session:
            return ingestion.received_documents(session)

    def _write_self_edits(self, material: Material) -> "_Lesson":
        """Ask and answer first (so that no exam question is ever taught), then write the edits."""
        with self._stage("self_edits"):
            kept = self._folder / LESSON
            if kept.exists():  # an earlier attempt of this run wrote them
                lesson = _Lesson.from_json(json.loads(kept.read_text()))
                self._report["self_edits"] = lesson.report
                return lesson
            served = self._sampler(material.writer_engine_name)
            quiz = quizzes.ensure_quizzes(
                self._context, material, served, self._config, self._heart
            )
            plan = build_method(self._config).plan(
                material.documents,
                sampler=served,
                base_sampler=self._sampler(material.base_engine_name),
                held_out=quiz.held_out,
                quiz=quiz.train,
                on_progress=self._heart.progress,
            )
            lesson = _Lesson(plan.edits, [item.id for item in quiz.exam], plan.report)
            self._report["self_edits"] = lesson.report
            _write_json(kept, dataclasses.asdict(lesson))
            return lesson

    def _train(self, material: Material, edits: list[SelfEdit]) -> str:
        """The id of the run's version: trained, verified and registered, once."""
        with self._stage("training"):
            with self._database.unit_of_work() as session:
                done = registry.version_of_run(session, self._owned.run_id)
            if done is not None:  # an earlier attempt of this run came this far
                self._drop_checkpoints()
                return done.id
            threads = self._context.settings.learning.threads or _spare_threads()
            output = self._run_trainer(material.adapter.base_path, edits, threads)
            trained = versions.Trained(
                output,
                rebuilds.lesson_hash(self._folder / LESSON),
                self._report["training"]["environment"],
            )
            version_id = versions.register(
                self._context, self._owned, material, trained, config=self._config
            )
            self._drop_checkpoints()
            return version_id

    def _run_trainer(self, base_path: str, edits: list[SelfEdit], threads: int | None) -> Path:
        """The PEFT folder that a training process left; its closing report goes into the run's."""
        output = self._scratch / "adapter"
        job = {
            "base_model": base_path,
            "edits": [dataclasses.asdict(edit) for edit in edits],
            "config": self._config.model_dump(mode="json"),
            "output": str(output),
            "seed": self._config.seed,
            "threads": threads,
            "checkpoints": str(self._checkpoints),  # of the run, not of this attempt
        }
        self._report["training"] = train(job, folder=self._scratch, heart=self._heart)
        return output

    def _rebuild(self) -> None:
        """Train an old version again and compare; nothing but the run's report comes of it."""
        with self._stage("chunk"):
            source = rebuild.find_source(self._context, self._owned)
            lesson = _Lesson.from_json(json.loads(source.lesson.read_text()))
        with self._stage("training"):
            output = self._run_trainer(source.base_path, lesson.edits, source.threads)
            self._drop_checkpoints()
        with self._stage("compare"):
            now = self._report["training"]["environment"]
            self._report["rebuild"] = rebuild.compare(source, output, environment=now)
            with self._database.unit_of_work() as session:
                runs.finish(session, self._owned, status=RunStatus.SUCCEEDED, report=self._report)
        log.info("run_succeeded", run_id=self._owned.run_id, **self._report["rebuild"])

    def _drop_checkpoints(self) -> None:
        """They outlive an attempt, for the next one to go on from, but not the training."""
        shutil.rmtree(self._checkpoints, ignore_errors=True)

    def _examine(self, material: Material, version_id: str, asked: list[str]) -> examination.Exam:
        with self._stage("exam"):
            self._report["engine"] = versions.load_and_prove(
                self._context, material, version_id, self._heart
            )
            exam = examination.examine(
                self._context, material, version_id, asked, self._config, self._heart
            )
            self._report["exam"] = exam.decision.to_json()
            return exam

    def _swap(self, material: Material, version_id: str, exam: examination.Exam) -> None:
        """Verdict, exam, alias or trial, and end of the run in one transaction: all of it or none."""
        with self._stage("swap"):
            verdict = str(exam.decision.verdict)
            with self._database.unit_of_work() as session:
                # A cancel that came after the last beat still counts; none can come after this one.
                if runs.heartbeat(session, self._owned, stage="swap"):
                    raise RunCancelled
                if deletion := taint.deletion_seen_by(session, self._owned.run_id):
                    raise RunCancelled(
                        f"What it had learnt was deleted meanwhile ({deletion.id}); what is left "
                        "is learnt again."
                    )
                adapter = session.get_one(Adapter, material.adapter.id)
                promotion.assert_unmoved(session, adapter, material.champion_revision)
                version = registry.by_id(session, version_id)
                is_promoted = verdict == "promote"
                status = VersionStatus.SERVABLE if is_promoted else VersionStatus.REJECTED
                registry.set_status(session, version, status)
                evaluations.record(
                    session,
                    run_id=self._owned.run_id,
                    version=version,
                    champion=material.champion,
                    verdict=verdict,
                    decision=exam.decision.to_json(),
                    results=exam.rows(),
                )
                if is_promoted:
                    trials.roll_out(
                        session,
                        adapter,
                        version,
                        config=trials.config_of(adapter, self._context.settings.rollout),
                        actor=f"run:{self._owned.run_id}",
                        reason="; ".join(exam.decision.reasons),
                    )
                runs.finish(
                    session,
                    self._owned,
                    status=RunStatus.SUCCEEDED,
                    verdict=verdict,
                    report=self._report,
                )
            log.info("run_succeeded", run_id=self._owned.run_id, verdict=verdict)

    def _sampler(self, engine_name: str) -> EngineSampler:
        urls = replicas.urls_holding(self._context, engine_name)
        return EngineSampler(self._context.settings, engine_name, urls)

    def _stage(self, name: str) -> "_Stage":
        return _Stage(name, self._heart, self._seconds)


class _Stage:
    """Announces a stage and measures it."""

    def __init__(self, name: str, heart: Heart, seconds: dict[str, float]) -> None:
        self._name, self._heart, self._seconds = name, heart, seconds

    def __enter__(self) -> None:
        self._began = monotonic()
        self._heart.begin(self._name)

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = round(monotonic() - self._began, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Lesson:
    """What a run teaches and what it will ask, fixed before the training begins."""

    edits: list[SelfEdit]
    exam: list[str]
    report: dict[str, Any]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "_Lesson":
        edits = [_self_edit(edit) for edit in fields["edits"]]
        return cls(edits, fields["exam"], fields["report"])


def _spare_threads() -> int:
    """All cores but one, at least one. With as many threads as cores, trainer and engine wait for
    each other's descheduled threads at every barrier: a step then took 100 s instead of 2."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _self_edit(fields: dict[str, Any]) -> SelfEdit:
    return SelfEdit(**{**fields, "kind": EditKind(fields["kind"])})


def _write_json(path: Path, value: object) -> None:
    """Whole or not at all: a worker killed in mid-write must not leave half a file."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(value))
    partial.rename(path)
