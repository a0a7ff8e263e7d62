"""A run that trains an editor, from its claim to its end, with engine and trainer left out."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.methods import Assignment
from adapters.methods.edit_prompts import edit_prompt
from adapters.methods.seal_editor import EditorScore
from adapters.spec import EditorExamSpec, EditPrompt, SealConfig, SealEditorConfig, editor_config
from server.core.clock import utc_now
from server.core.settings import RolloutSettings, Settings
from server.db import AdaptationRun, Adapter, Document, RunStatus, VersionStatus
from server.db.session import Database
from server.services import editing, evaluations, promotion, registry, runs
from server.services.editing import Found
from server.services.runs import Claim
from tests.conftest import RecordingQueue
from tests.support.factories import make_document, make_run, make_version
from tests.support.trainings import scripted
from workers import bench, editors, versions
from workers.adaptation import Adaptation
from workers.bench import RunBench
from workers.context import WorkerContext
from workers.heart import Heart
from workers.material import Material, collect, origin_of

LEASE = timedelta(seconds=30)
TEXT = "The keeper is Odile Brandt."


@dataclass
class EditorRun:
    """A line with an accepted edit, and a claimed run of its editor."""

    database: Database
    line: Adapter
    context: WorkerContext
    scores: list[EditorScore] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    asked: list[Assignment] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self.database.unit_of_work() as session:
            self.document_id = make_document(session, TEXT).id
            run = make_run(session, self.line)
            owned = runs.claim(session, run.id, worker="w", lease=LEASE)
            assert owned is not None
            collect(session, owned, served=self.line.name)
            title = session.get_one(Document, self.document_id).title
            prompt = edit_prompt(EditPrompt.REWRITE, title=title, passage=TEXT)
            found = Found(self.document_id, prompt, "Odile Brandt keeps it.", 1.0, 0.0)
            editing.keep(session, owned, [found])
            runs.finish(session, owned, status=RunStatus.SUCCEEDED)
            ordered, _ = editing.queue_editor_run(
                session,
                self.line,
                editor_config(SealConfig()),
                requested_by="test",
                queue=RecordingQueue(),
            )
            config = SealEditorConfig(
                min_edits=1, editor_exam=EditorExamSpec(held_out_share=0, min_documents=1)
            )
            ordered.config = config.model_dump(mode="json")
            self.editor_id = ordered.adapter_id
            session.flush()
            claimed = runs.claim(session, ordered.id, worker="w", lease=LEASE)
            assert claimed is not None
            self.owned: Claim = claimed

    def go_through(self) -> None:
        heart = Heart(self.database, self.owned, every_s=60, lease_s=60)
        Adaptation(self.context, self.owned, heart).go_through()

    def train(self, job: dict[str, Any], *, folder: Path, heart: object) -> dict[str, Any]:
        self.jobs.append(job)
        for output in job["outputs"]:
            Path(output).mkdir(parents=True)
        return {"seconds": 1.0, "tokens": 1, "environment": {}}

    def register(self, _: object, owned: Claim, material: Material, *__: Any, **___: Any) -> str:
        with self.database.unit_of_work() as session:
            return make_version(
                session, material.adapter, status=VersionStatus.CANDIDATE, claim=owned
            ).id

    def compare(self, assignment: Assignment, _: RunBench, **__: Any) -> list[EditorScore]:
        self.asked.append(assignment)
        return self.scores

    def run(self) -> AdaptationRun:
        with self.database.unit_of_work() as session:
            return runs.get_run(session, self.owned.run_id)

    def champion(self) -> int | None:
        with self.database.unit_of_work() as session:
            editor = session.get_one(Adapter, self.editor_id)
            champion = promotion.champion(session, editor)
            return champion.number if champion else None

    def document_state(self) -> str:
        with self.database.unit_of_work() as session:
            return session.get_one(Document, self.document_id).state


@pytest.fixture
def made(
    database: Database,
    adapter: Adapter,
    settings: Settings,
    queue: RecordingQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> EditorRun:
    settings = settings.model_copy(update={"rollout": RolloutSettings(mode="canary")})
    context = WorkerContext(settings, database, cast(Any, queue), "test")
    made = EditorRun(database, adapter, context)
    monkeypatch.setattr(bench, "Trainer", scripted(made.train))
    monkeypatch.setattr(versions, "register", made.register)
    monkeypatch.setattr(versions, "load_and_prove", lambda *_: {})
    monkeypatch.setattr(versions, "check_held", lambda *_: None)
    monkeypatch.setattr(editors, "compare_editors", made.compare)
    return made


def test_an_editor_that_teaches_more_writes_from_then_on_whatever_the_rollout(
    made: EditorRun,
) -> None:
    made.scores = [EditorScore(made.document_id, 3, 0.0, 1.0)]

    made.go_through()

    run = made.run()
    assert (run.status, run.verdict, made.champion()) == ("succeeded", "promote", 1)
    assert run.report["editor_exam"] == [
        {"document_id": made.document_id, "questions": 3, "champion": 0.0, "challenger": 1.0}
    ]
    with made.database.unit_of_work() as session:
        assert editing.editor_engine_name(session, made.line) == "smollm2-editor@v1.00000000"
        version = registry.version_of_run(session, run.id)
        assert version is not None
        exam = evaluations.of_version(session, version)
        assert exam is not None
        assert exam.verdict == "promote"


def test_it_is_trained_on_the_accepted_edits_of_the_line_it_writes_for(made: EditorRun) -> None:
    made.scores = [EditorScore(made.document_id, 3, 0.0, 1.0)]

    made.go_through()

    [job] = made.jobs
    [stage] = job["stages"]
    assert [edit["text"] for edit in stage["edits"]] == ["Odile Brandt keeps it."]
    [assignment] = made.asked
    assert [document.id for document in assignment.documents] == [made.document_id]


def test_one_that_teaches_less_never_writes(made: EditorRun) -> None:
    made.scores = [EditorScore(made.document_id, 3, 1.0, 0.0)]

    made.go_through()

    assert (made.run().verdict, made.champion()) == ("reject", None)


def test_the_documents_keep_the_state_that_their_own_line_gave_them(made: EditorRun) -> None:
    before = made.document_state()
    made.scores = [EditorScore(made.document_id, 3, 0.0, 1.0)]

    made.go_through()

    assert before == made.document_state() == "not_learnt"


def test_runs_of_the_line_are_written_for_by_its_editor(made: EditorRun) -> None:
    def editor_now() -> tuple[str, str]:
        with made.database.unit_of_work() as session:
            run = make_run(session, made.line)
            owned = runs.claim(session, run.id, worker="w", lease=LEASE)
            assert owned is not None
            material = collect(session, owned, served=made.line.name)
            runs.finish(session, owned, status=RunStatus.SUCCEEDED)
        origin = origin_of(material)
        return origin.editor_engine_name, origin.writer_engine_name

    before = editor_now()
    made.scores = [EditorScore(made.document_id, 3, 0.0, 1.0)]
    made.go_through()

    assert before == ("smollm2@base", "smollm2@base")
    assert editor_now() == ("smollm2-editor@v1.00000000", "smollm2@base")


def test_in_its_own_run_the_editors_champion_is_the_one_to_beat(made: EditorRun) -> None:
    with made.database.unit_of_work() as session:
        material = collect(session, made.owned, served=made.line.name)
        champion = make_version(session, session.get_one(Adapter, made.editor_id))

    assert origin_of(material).editor_engine_name == "smollm2@base"
    crowned = replace(material, champion=champion)
    assert origin_of(crowned).editor_engine_name == crowned.champion_engine_name


def test_a_run_that_is_killed_in_its_exam_reports_all_of_its_work_and_trains_once(
    made: EditorRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    made.scores = [EditorScore(made.document_id, 3, 0.0, 1.0)]
    with monkeypatch.context() as patched:
        patched.setattr(editors, "compare_editors", dies)
        with pytest.raises(Killed):
            made.go_through()
    with made.database.unit_of_work() as session:
        later = utc_now() + 2 * LEASE
        again = runs.claim(session, made.owned.run_id, worker="b", lease=LEASE, now=later)
        assert again is not None
    made.owned = again
    made.go_through()

    run = made.run()
    assert (run.verdict, len(made.jobs)) == ("promote", 1)
    assert run.report["editor"] == {"edits": 1, "documents": 1, "accepted": 1}
    assert run.report["training"]["trainings"] == 1
