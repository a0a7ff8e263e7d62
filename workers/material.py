"""What a run learns from and is examined with: rows in, plain values of `adapters` out."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.orm import Session

from adapters.evaluation.general import load_general_suite
from adapters.lesson import Weights
from adapters.manifest import DocumentRef
from adapters.methods import AcceptedSelfEdit, Assignment
from adapters.redaction import Redactor, redact, redact_secrets
from adapters.types import ExamItem, Example, Opinion, Prompt, SourceDocument, Task
from server.core.errors import NothingToLearn
from server.db import Adapter, AdapterVersion, LineRole
from server.services import (
    documents,
    editing,
    promotion,
    prompt_material,
    registry,
    runs,
    taint,
)
from server.services import tasks as task_rows
from server.services.rebuilds import text_hash
from server.services.runs import Claim
from workers import containment
from workers.bench import Origin
from workers.prompts import EarlierPrompts, earlier_prompts, last_turn, teachable


@dataclass(frozen=True, slots=True)
class Material:
    """A run's line, its champion, and the documents or the task it takes."""

    adapter: Adapter
    champion: AdapterVersion | None
    documents: tuple[SourceDocument, ...]
    base_engine_name: str
    """What the engine calls the base model under the line."""
    champion_revision: int
    """Of the champion alias: a swap is refused when it has moved since."""
    learnt_before: frozenset[str]
    """Documents and tasks that the champion was trained on."""
    accepted: tuple[AcceptedSelfEdit, ...] = ()
    """What earlier runs of the line found to teach most about these documents."""
    editor_engine_name: str | None = None
    """Who writes the line's self-edits; None: the base model."""
    is_champion_tainted: bool = False
    """Whether the champion was trained on something that was deleted since."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """By document, of its whole text, of which the lesson may be a part."""
    contained: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By document, how many of its parts are left out, by kind of finding."""
    tasks: tuple[Task, ...] = ()
    """Learnt on a line of their own, in place of documents."""
    task_refs: tuple[DocumentRef, ...] = ()
    """The tasks as a manifest names them."""
    prompts: tuple[Prompt, ...] = ()
    """Learnt in place of documents."""
    held_out_prompts: tuple[Prompt, ...] = ()
    """Only ever asked."""
    opinions: tuple[Opinion, ...] = ()
    """What users said of replies, to be learnt in place of documents."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Prompts and opinions that are not learnt, counted by the reason."""
    earlier_prompts: tuple[EarlierPrompts, ...] = ()
    """Held out by the runs that the champion comes from."""
    has_learnt_prompts: bool = False
    """Whether the champion comes from any such run."""
    general_suite: Path | None = None
    """File of the questions on what was known before; None: ours."""

    @property
    def champion_engine_name(self) -> str:
        if self.champion is None:
            return self.base_engine_name
        return registry.engine_name(self.adapter.name, self.champion)

    @property
    def writer_engine_name(self) -> str:
        """Who writes questions and lessons: the champion, or the base if the champion must not.

        What a tainted champion writes may say what was deleted, and the next version would learn it.
        """
        return self.base_engine_name if self.is_champion_tainted else self.champion_engine_name

    @property
    def learnt(self) -> frozenset[str]:
        """Ids of the documents and tasks."""
        return frozenset([*(each.id for each in self.documents), *(each.id for each in self.tasks)])

    @property
    def new_documents(self) -> frozenset[str]:
        """Documents and tasks that the champion has not learnt."""
        return self.learnt - self.learnt_before

    @property
    def earlier_documents(self) -> frozenset[str]:
        """Documents and tasks that the champion has learnt."""
        return self.learnt & self.learnt_before

    @property
    def all_held_out_prompts(self) -> tuple[Prompt, ...]:
        """Of this run and of earlier ones, asked or not."""
        earlier = (prompt for each in self.earlier_prompts for prompt in each.prompts)
        return (*self.held_out_prompts, *earlier)

    def refs(self) -> tuple[DocumentRef, ...]:
        """The documents as a manifest names them."""
        return tuple(
            DocumentRef(id=document.id, sha256=self.hashes[document.id])
            for document in self.documents
        )


def collect(
    session: Session,
    owned: Claim,
    *,
    served: str,
    lesson_chunks: int | None = None,
    general_suite: Path | None = None,
    redactor: Redactor = redact,
) -> Material:
    """The union of all live documents of the line's owner, or the run's task; and who champions it.

    Of a document with findings only what is not contained; see :mod:`workers.containment`.

    Args:
        served: the settings' model name, under which the engine knows its base model.
        lesson_chunks: how many chunks of one document a lesson takes; None: all.
        general_suite: file of the questions that no lesson may ask; None: ours.
        redactor: takes out of traffic what nobody may learn.

    Raises:
        NoPrompts: the run learns from prompts, and there are none that it may learn from.
        NothingToLearn: no document has been chunked, nothing of them may be taught,
            or the task was deleted.
    """
    run = runs.get_run(session, owned.run_id)
    adapter = runs.line_of(session, run)
    is_of_task = bool(runs.tasks_of(session, owned.run_id))
    taken_tasks = runs.take_tasks(session, owned)
    taken = [] if is_of_task else runs.take_documents(session, owned)
    if not taken and not taken_tasks and not runs.learns_no_documents(run.method):
        raise NothingToLearn(adapter.name)
    rows = [documents.get_document(session, document_id) for document_id in taken]
    asked = documents.exam_items(session, taken, split="exam")
    lessons = [
        containment.lesson_of(
            row,
            documents.chunks_of(session, row.id),
            asked_elsewhere={item.prompt for item in asked if item.document_id != row.id},
            most_chunks=lesson_chunks,
        )
        for row in rows
    ]
    material = Material(
        adapter=adapter,
        champion=None,
        base_engine_name=registry.base_engine_name_of(session, adapter, served),
        champion_revision=0,
        learnt_before=frozenset(),
        general_suite=general_suite,
        documents=tuple(one.document for one in lessons if one.document.text.strip()),
        hashes={row.id: text_hash(row) for row in rows},
        contained={one.document.id: one.counts for one in lessons if one.counts},
        accepted=tuple(
            AcceptedSelfEdit(row.document_id, row.prompt, row.text, row.score, row.base_score)
            for row in editing.accepted_edits(session, adapter.edits_for or adapter.id, taken)
        ),
        editor_engine_name=editing.editor_engine_name(session, adapter),
        tasks=tuple(_redacted(task_rows.plain(row)) for row in taken_tasks),
        task_refs=tuple(
            DocumentRef(id=row.id, sha256=task_rows.content_hash(row)) for row in taken_tasks
        ),
    )
    if not material.learnt and not runs.learns_no_documents(run.method):
        raise NothingToLearn(adapter.name)
    material = with_champion(session, material, redactor)
    if run.method not in runs.PROMPT_METHODS:
        return material
    return with_prompts(session, owned, material, redactor)


def with_champion(session: Session, material: Material, redactor: Redactor = redact) -> Material:
    """The same material beside the champion of this moment."""
    champion = promotion.champion(session, material.adapter)
    is_tainted = taint.is_tainted(session, champion)
    # What a tainted champion can goes with it, so nothing asks that it be kept.
    earlier = () if is_tainted else earlier_prompts(session, champion, redactor)
    return dataclasses.replace(
        material,
        earlier_prompts=earlier,
        has_learnt_prompts=bool(earlier),
        champion=champion,
        champion_revision=promotion.champion_revision(session, material.adapter),
        learnt_before=frozenset(
            registry.documents_of(session, champion) | registry.tasks_of(session, champion)
        ),
        is_champion_tainted=is_tainted,
    )


def with_prompts(
    session: Session, owned: Claim, material: Material, redactor: Redactor = redact
) -> Material:
    """The same material with the prompts and opinions that the run takes, and may be taught.

    Raises:
        NoPrompts: there is nothing that the run may learn from.
    """
    general = [item.prompt for item in load_general_suite(material.general_suite)]
    taken = prompt_material.prompts_of(session, owned, asked=general, redactor=redactor)
    held_out = prompt_material.held_out_of(session, owned.run_id, redactor=redactor)
    earlier = (prompt for each in material.earlier_prompts for prompt in each.prompts)
    fit = teachable(
        taken.train,
        taken.opinions,
        held_out=[*held_out, *earlier],
        general_suite=material.general_suite,
    )
    return dataclasses.replace(
        material,
        prompts=fit.prompts,
        held_out_prompts=held_out,
        opinions=fit.opinions,
        left_out=dict(sorted((Counter(taken.left_out) + Counter(fit.left_out)).items())),
    )


def assignment_of(
    material: Material, exam: tuple[ExamItem, ...], quiz: tuple[ExamItem, ...]
) -> Assignment:
    """What a method is told of the material; the general suite is held out like the exam."""
    return Assignment(
        documents=tuple(
            containment.without_questions_of_others(each, exam) for each in material.documents
        ),
        new_documents=material.new_documents,
        tasks=material.tasks,
        held_out=frozenset(
            [
                *(item.prompt for item in (*exam, *load_general_suite(material.general_suite))),
                *map(last_turn, material.all_held_out_prompts),
            ]
        ),
        prompts=material.prompts,
        opinions=material.opinions,
        has_learnt_prompts=material.has_learnt_prompts,
        quiz=quiz,
        champion=_weights(material),
        champion_generation=material.champion.generation if material.champion else 0,
        accepted=material.accepted,
    )


def origin_of(material: Material) -> Origin:
    """The models that a run on the material works with; an editor's run is about its own line."""
    weights = _weights(material)
    editor = material.editor_engine_name or material.base_engine_name
    if material.adapter.role == LineRole.EDITOR:
        editor = material.writer_engine_name
    return Origin(
        line=material.adapter.name,
        base_path=material.adapter.base_path,
        base_engine_name=material.base_engine_name,
        writer_engine_name=material.writer_engine_name,
        editor_engine_name=editor,
        champion=weights,
        champion_id=material.champion.id if material.champion and weights else None,
    )


def _weights(material: Material) -> Weights | None:
    """The champion's, unless it saw what was deleted since: then nothing is built on it."""
    if material.champion is None or material.is_champion_tainted:
        return None
    return Weights(Path(material.champion.path))


def _redacted(task: Task) -> Task:
    """The task without secrets; grids hold none."""
    if task.form == "grid":
        return task

    def clean(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(
            Example(redact_secrets(each.input), redact_secrets(each.output)) for each in examples
        )

    return dataclasses.replace(
        task,
        title=redact_secrets(task.title),
        instruction=redact_secrets(task.instruction),
        examples=clean(task.examples),
        tests=clean(task.tests),
    )
