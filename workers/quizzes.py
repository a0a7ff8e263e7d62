"""The questions of each document: written and split once, before anything is taught."""

from dataclasses import dataclass

from adapters.evaluation.quiz import build_exam_items
from adapters.sampling import Sampler
from adapters.spec import SealConfig
from adapters.types import ExamItem, ItemKind
from server.services import documents
from workers.context import WorkerContext
from workers.heart import Heart
from workers.material import Material


@dataclass(frozen=True, slots=True)
class Quizzes:
    """The questions about a run's documents, on both sides of the split."""

    exam: tuple[ExamItem, ...]
    train: tuple[ExamItem, ...]

    @property
    def held_out(self) -> frozenset[str]:
        """The prompts that must never be taught."""
        return frozenset(item.prompt for item in self.exam)


def stored_quizzes(context: WorkerContext, material: Material) -> Quizzes:
    """The questions that are there; none are written."""
    ids = [document.id for document in material.documents]
    with context.database.unit_of_work() as session:
        return Quizzes(
            exam=tuple(documents.exam_items(session, ids, split="exam")),
            train=tuple(documents.exam_items(session, ids, split="train")),
        )


def ensure_quizzes(
    context: WorkerContext,
    material: Material,
    sampler: Sampler,
    config: SealConfig,
    heart: Heart,
) -> Quizzes:
    """Give every document its exam items, and return those of all documents.

    A document that has its cloze items keeps its split for ever, also through later runs.
    """
    for document in material.documents:
        with context.database.unit_of_work() as session:
            stored = [
                *documents.exam_items(session, [document.id], split="exam"),
                *documents.exam_items(session, [document.id], split="train"),
            ]
        if any(item.kind is not ItemKind.USER for item in stored):
            continue
        questions = [(item.prompt, item.answers) for item in stored]
        exam, train = build_exam_items(
            document,
            questions=questions,
            sampler=sampler,
            config=config,
            on_progress=heart.progress,
        )
        with context.database.unit_of_work() as session:
            documents.add_exam_questions(session, document.id, exam=exam, train=train)
    return stored_quizzes(context, material)
