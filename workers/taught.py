"""What the champion's lessons have taught: read from the records that its runs have left."""

from collections.abc import Iterator
from dataclasses import dataclass

from adapters.lesson import Stage
from adapters.methods.held_out import HeldOut
from server.core.errors import NotRebuildable
from server.db import AdapterVersion
from server.services import registry
from server.services.rebuilds import LESSON
from workers.context import WorkerContext
from workers.lesson import Lesson, read_lesson
from workers.material import Material


@dataclass(frozen=True, slots=True)
class Taught:
    """The prompts that the champion, and the versions it was trained on from, have been taught."""

    prompts: HeldOut
    is_whole: bool
    """False where a record is gone, or holds tokens that nobody can read."""
    learnt_before: frozenset[str]

    def covers(self, document_id: str, prompt: str) -> bool:
        """Whether a lesson may have taught the prompt; where nobody can tell, it may."""
        if document_id in self.learnt_before and not self.is_whole:
            return True
        return self.prompts.covers(prompt)


def taught_by(context: WorkerContext, material: Material) -> Taught:
    """What stands behind a run's champion."""
    prompts: list[str] = []
    is_whole = True
    for lesson in _lessons_behind(context, material.champion):
        if lesson is None:
            is_whole = False
            break
        prompts += _prompts_of(lesson)
        is_whole &= not any(training.stage.units for training in lesson.trainings)
    return Taught(HeldOut(prompts), is_whole, material.learnt_before)


def taught_before(context: WorkerContext, version: AdapterVersion) -> HeldOut:
    """The prompts that the versions have been taught which this one was trained on from, as far as
    their records are there; none of one from the clean base. Its own lesson held the exam out.
    """
    _, *earlier = _lessons_behind(context, version)
    lessons = (lesson for lesson in earlier if lesson is not None)
    return HeldOut(prompt for lesson in lessons for prompt in _prompts_of(lesson))


def _lessons_behind(
    context: WorkerContext, version: AdapterVersion | None
) -> Iterator[Lesson | None]:
    """The lesson of a version and of those that it began from; None, the last, is a record lost."""
    seen: set[str] = set()
    while version is not None and version.id not in seen:
        seen.add(version.id)
        lesson = _lesson_of(context, version)
        yield lesson
        version = None if lesson is None else _begun_from(context, lesson)


def _lesson_of(context: WorkerContext, version: AdapterVersion) -> Lesson | None:
    if version.run_id is None:  # imported: nobody knows
        return None
    try:
        return read_lesson(context.settings.runs_path / version.run_id / LESSON, version.id)
    except NotRebuildable:
        return None


def _begun_from(context: WorkerContext, lesson: Lesson) -> AdapterVersion | None:
    if lesson.started_from is None:
        return None
    with context.database.look() as session:
        return registry.by_id(session, lesson.started_from)


def _prompts_of(lesson: Lesson) -> Iterator[str]:
    for training in lesson.trainings:
        yield from _prompts_in(training.stage)


def _prompts_in(stage: Stage) -> Iterator[str]:
    for edit in stage.edits:
        if edit.prompt is not None:
            yield edit.prompt
    for distillation in stage.distillations:
        yield from (message["content"] for message in distillation.prompt[-1:])
