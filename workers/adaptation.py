"""adaptation.run: one run from its claim to its end.

The stages, in order: chunk (collect the documents), quiz, those of the method (self_edits, training,
...), exam, swap. What a stage leaves behind is kept (in the run's folder, the version in its row), so
that a run whose worker was killed goes on where it was.
"""

import dataclasses
import json
import shutil
from contextlib import closing
from datetime import timedelta
from typing import Any

import structlog
from celery import shared_task
from pydantic import TypeAdapter

from adapters.evaluation.gate import Verdict
from adapters.evaluation.prompt_exam import HeldPrompt
from adapters.methods import build_method
from adapters.redaction import build_redactor
from adapters.sampling import SamplingError
from adapters.spec import METHOD_CONFIG, PromptSettings, SealEditorConfig
from adapters.types import ExamItem
from server.core.clock import monotonic
from server.core.errors import AliasMoved, AppError, LeaseLost
from server.core.queue import RUN_ADAPTATION
from server.db import Adapter, RunKind, RunStatus, VersionStatus
from server.services import (
    editing,
    evaluations,
    ingestion,
    promotion,
    questions,
    rebuilds,
    registry,
    runs,
    taint,
    trials,
)
from server.services.runs import NO_UPDATE, Claim
from workers import editors, examination, prompt_exam, quizzes, rebuild, replicas, versions
from workers.bench import RunBench, drop_trained, may_be_held, scratch_of
from workers.context import WorkerContext, worker_context
from workers.heart import Heart, RunCancelled
from workers.ingest import ingest
from workers.lesson import write_json
from workers.material import Material, assignment_of, collect, origin_of, with_champion
from workers.sampler import EngineSampler
from workers.task_exam import task_items
from workers.training import TrainingFailed

log = structlog.get_logger(__name__)

_MOST_EXAMS = 3
_QUIZ = "quiz.json"
_ACCOUNT = "account.json"
"""What the method said of its work, for the attempt that ends the run."""


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
            self._config = METHOD_CONFIG.validate_python(run.config)
        self._folder = context.settings.runs_path / owned.run_id
        self._scratch = scratch_of(self._folder, owned.attempt)
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._redactor = build_redactor(context.settings.capture.redactor)

    def go_through(self) -> None:
        """All stages; raises whatever ends the run early."""
        if self._kind == RunKind.REBUILD:
            self._rebuild()
            return
        material = self._collect()
        quiz = self._write_quiz(material)
        version_id = self._learn(material, quiz)
        if version_id is None:
            self._end_without_update()
            return
        for attempt in range(1, _MOST_EXAMS + 1):
            try:
                exam = self._examine(material, version_id, quiz)
                if exam.decision.verdict == Verdict.INCONCLUSIVE:
                    self._write_further_questions(material, exam)
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
                    material = with_champion(session, material, self._redactor)

    def close(self, status: RunStatus, error: str | None = None) -> None:
        """End a run that did not go through, unless somebody else owns it by now."""
        log.info("run_closed", run_id=self._owned.run_id, status=status, error=error)
        try:
            with self._database.unit_of_work() as session:
                runs.finish(session, self._owned, status=status, report=self._report, error=error)
            drop_trained(self._folder)
            self._drop_quiz()
        except LeaseLost as lost:
            log.warning("run_lost", run_id=self._owned.run_id, reason=str(lost))

    def clean_up(self) -> None:
        """Drop what only this attempt needed; the lesson stays, as the record of what was taught.

        An engine that would not let go of a throw-away adapter keeps its files for now.
        """
        if not may_be_held(self._scratch):
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _collect(self) -> Material:
        with self._stage("chunk"):
            for document_id in self._not_yet_chunked():
                ingest(self._context, document_id)
            with self._database.unit_of_work() as session:
                settings = self._context.settings
                material = collect(
                    session,
                    self._owned,
                    served=settings.model.name,
                    lesson_chunks=settings.documents.lesson_chunks,
                    general_suite=settings.learning.general_suite,
                    redactor=self._redactor,
                )
            if material.contained:
                self._report["contained"] = material.contained
            if isinstance(self._config, PromptSettings):
                self._report["taken"] = {
                    "prompts": len(material.prompts),
                    "held_out": len(material.held_out_prompts),
                    "opinions": len(material.opinions),
                    "left_out": dict(material.left_out),
                }
            self._heart.progress(len(material.learnt), len(material.learnt))
        return material

    def _not_yet_chunked(self) -> list[str]:
        """Documents that came just before an order to learn, whose own message is still waiting."""
        with self._database.unit_of_work() as session:
            return ingestion.received_documents(session)

    def _write_quiz(self, material: Material) -> "_Quiz":
        """Ask and answer before anything is taught, so that no exam question ever is."""
        with self._stage("quiz"):
            kept = self._folder / _QUIZ
            if kept.exists():  # an earlier attempt of this run wrote it
                quiz = _QUIZZES.validate_json(kept.read_bytes())
                self._report["quiz"] = quiz.report
                return quiz
            found = self._found_quizzes(material)
            held, asked = prompt_exam.choose(
                material, self._config, self._sampler, on_progress=self._heart.progress
            )
            report = found.report | ({"prompts": asked} if asked else {})
            exam = (*found.exam, *task_items(material, self._config))
            quiz = _Quiz(exam, found.train, report, held)
            self._report["quiz"] = quiz.report
            self._heart.confirm()
            write_json(kept, _QUIZZES.dump_python(quiz, mode="json"))
            return quiz

    def _found_quizzes(self, material: Material) -> quizzes.Quizzes:
        if isinstance(self._config, SealEditorConfig | PromptSettings):
            # It learns no documents that have not been asked about already.
            return quizzes.stored_quizzes(self._context, material)
        return quizzes.ensure_quizzes(
            self._context,
            material,
            self._sampler(material.writer_engine_name),
            self._config,
            self._heart,
            base=self._sampler(material.base_engine_name),
        )

    def _sampler(self, engine_name: str) -> EngineSampler:
        urls = replicas.urls_holding(self._context, engine_name)
        return EngineSampler(self._context.settings, engine_name, urls)

    def _drop_quiz(self) -> None:
        """Once the run is over: it quotes users, and whoever deletes that looks for no file."""
        (self._folder / _QUIZ).unlink(missing_ok=True)

    def _learn(self, material: Material, quiz: "_Quiz") -> str | None:
        """The id of the run's version: taught, verified and registered, once; None: no update."""
        with self._database.unit_of_work() as session:
            done = registry.version_of_run(session, self._owned.run_id)
        account = self._folder / _ACCOUNT
        if done is not None:  # an earlier attempt of this run came this far
            if account.exists():
                self._report |= json.loads(account.read_text())
            drop_trained(self._folder)
            return done.id
        bench = self._bench(material)
        with closing(bench):
            outcome = build_method(self._config).learn(
                assignment_of(material, quiz.exam, quiz.train), bench
            )
        spent = dataclasses.asdict(bench.spent)
        said = outcome.report | {"training": _summed(bench.closings), "spent": spent}
        self._report |= said
        with self._database.unit_of_work() as session:
            found = (editing.Found(**dataclasses.asdict(edit)) for edit in outcome.accepted)
            editing.keep(session, self._owned, found)
        if outcome.weights is None:
            return None
        lesson = bench.settle(outcome.weights)
        write_json(account, said)
        trained = versions.Trained(
            outcome.weights.folder,
            rebuilds.lesson_hash(lesson),
            bench.closings[-1]["environment"],
            outcome.generation,
        )
        version_id = versions.register(
            self._context, self._owned, material, trained, config=self._config
        )
        drop_trained(self._folder)
        return version_id

    def _bench(self, material: Material) -> RunBench:
        return RunBench(
            self._context,
            self._heart,
            origin_of(material),
            folder=self._folder,
            owned=self._owned,
            seconds=self._seconds,
            budget=self._config.budget,
        )

    def _end_without_update(self) -> None:
        with self._database.unit_of_work() as session:
            runs.finish(
                session,
                self._owned,
                status=RunStatus.SUCCEEDED,
                verdict=NO_UPDATE,
                report=self._report,
            )
        drop_trained(self._folder)
        self._drop_quiz()
        log.info("run_succeeded", run_id=self._owned.run_id, verdict=NO_UPDATE)

    def _rebuild(self) -> None:
        """Train an old version again and compare; nothing but the run's report comes of it."""
        with self._stage("chunk"):
            source = rebuild.find_source(self._context, self._owned)
        with self._stage("training"):
            output, self._report["training"] = rebuild.train_again(
                source, self._scratch, self._heart
            )
        with self._stage("compare"):
            now = self._report["training"]["environment"]
            self._report["rebuild"] = rebuild.compare(source, output, environment=now)
            with self._database.unit_of_work() as session:
                runs.finish(session, self._owned, status=RunStatus.SUCCEEDED, report=self._report)
        log.info("run_succeeded", run_id=self._owned.run_id, **self._report["rebuild"])

    def _examine(self, material: Material, version_id: str, quiz: "_Quiz") -> examination.Exam:
        with self._stage("exam"):
            self._report["engine"] = versions.load_and_prove(
                self._context, material, version_id, self._heart
            )
            if isinstance(self._config, SealEditorConfig):
                assignment = assignment_of(material, quiz.exam, quiz.train)
                with closing(self._bench(material)) as bench:
                    exam, self._report["editor_exam"] = editors.examine(
                        self._context, material, version_id, assignment, self._config, bench
                    )
            else:
                asked = [item.id for item in quiz.exam]
                exam = examination.examine(
                    self._context,
                    material,
                    version_id,
                    asked,
                    self._config,
                    self._heart,
                    prompts=quiz.prompts,
                    verifier_of=self._bench(material).verifier,
                )
            self._report["exam"] = exam.to_json()
            return exam

    def _write_further_questions(self, material: Material, exam: examination.Exam) -> None:
        """Those that the exam lacked, as far as the model can write them; the next run asks them."""
        if isinstance(self._config, SealEditorConfig):
            return
        if lacking := prompt_exam.further_prompts(exam.decision.needs, self._config):
            self._report["further_prompts"] = lacking
        sampler = self._sampler(material.writer_engine_name)
        self._report["further_questions"] = quizzes.write_needed(
            self._context, material, exam.decision.needs, sampler, self._config
        )

    def _swap(self, material: Material, version_id: str, exam: examination.Exam) -> None:
        """Verdict, exam, alias or trial, and end of the run in one transaction: all of it or none."""
        with self._stage("swap"):
            verdict = str(exam.decision.verdict)
            with self._database.unit_of_work() as session:
                # A cancel that came after the last beat still counts; none can come after this one.
                if runs.heartbeat(session, self._owned, stage="swap"):
                    raise RunCancelled
                # A deletion is seen here, or waits and then finds what the exam quotes.
                runs.lock_material(session, self._owned.run_id)
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
                    decision=exam.to_json(),
                    results=questions.without_forgotten(session, exam.rows()),
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
            self._drop_quiz()
            log.info("run_succeeded", run_id=self._owned.run_id, verdict=verdict)

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
class _Quiz:
    """What a run will ask and what it may teach, fixed before the lesson is written."""

    exam: tuple[ExamItem, ...]
    train: tuple[ExamItem, ...]
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    prompts: tuple[HeldPrompt, ...] = ()


_QUIZZES = TypeAdapter(_Quiz)


def _summed(closings: list[dict[str, Any]]) -> dict[str, Any]:
    """The trainings of a lesson in one row: seconds and tokens together, the last one's facts, and
    what the last pairs came to."""
    if not closings:
        return {}
    pairs = [closing["preferences"] for closing in closings if "preferences" in closing]
    summed = closings[-1] | {
        "trainings": len(closings),
        "seconds": round(sum(closing["seconds"] for closing in closings), 3),
        "tokens": sum(closing["tokens"] for closing in closings),
    }
    return summed | {"preferences": pairs[-1]} if pairs else summed
