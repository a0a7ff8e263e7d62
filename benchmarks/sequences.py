"""Passages learnt one after another, by two protocols, asked after each step about all of them.

- ``everlearn``: one adapter from the clean base on all that was learnt so far, as the server does it.
- ``unheld``: the same, but the anchors stay as light however much is learnt: what the share that the
  server gives them is worth.
- ``merged``: SEAL's: an adapter on the new passage alone, merged into the weights, on which the next
  one is trained. It exists as the control, with the settings of ``unheld``.

All train on the same self-edits, and transformers answers for all, since an engine would have to be
started anew for each merged model.
"""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from adapters.evaluation.exam import sit_exam
from adapters.evaluation.general import load_general_suite
from adapters.lesson import Stage
from adapters.merge import merge
from adapters.methods.seal import LessonPlan, Seal
from adapters.sampling import Sampler
from adapters.spec import SealConfig
from adapters.types import JSON, EditKind, SelfEdit
from benchmarks.cells import Cell, Cells, accuracy
from benchmarks.learning_bench import LocalBench
from benchmarks.passages import Passage
from benchmarks.torch_decoder import TorchSampler

EVERLEARN, UNHELD, MERGED = "everlearn", "unheld", "merged"
PROTOCOLS = (EVERLEARN, UNHELD, MERGED)

Lessons = Callable[[Passage], LessonPlan]


@dataclass(frozen=True, slots=True)
class Course:
    """One sequence: its passages in order, and what every step needs."""

    passages: tuple[Passage, ...]
    seed: int
    config: SealConfig
    reply_tokens: int
    digest: str


def order_of(passages: Sequence[Passage], length: int, seed: int) -> tuple[Passage, ...]:
    """Which passages, and in which order: drawn by the seed."""
    return tuple(random.Random(seed).sample(list(passages), length))


def digest_of(config: SealConfig, passages: Sequence[Passage], protocol: str) -> str:
    """What decides the cells of a course."""
    numbers = [passage.number for passage in passages]
    text = f"{protocol}\0{numbers}\0{config.model_dump_json(exclude_defaults=True)}"
    return sha256(text.encode()).hexdigest()[:12]


def config_of(setting: SealConfig, name: str, seed: int) -> SealConfig:
    """The setting as a protocol takes it; what holds the base is the server's in its own."""
    config = setting.model_copy(update={"seed": seed})
    if name != EVERLEARN:
        return config
    held = {"least_share": SealConfig().replay.least_share}
    return config.model_copy(update={"replay": config.replay.model_copy(update=held)})


def write_lesson(passage: Passage, config: SealConfig, bench: LocalBench) -> LessonPlan:
    """The self-edits of one passage, none of which asks what people ask.

    `bench` is the one at which direct SEAL learns the passage alone: they are written once for both.
    """

    def write() -> JSON:
        plan = Seal(config).plan(
            [passage.document()],
            sampler=bench.base,
            held_out=frozenset(item.prompt for item in passage.items()),
        )
        return plan.to_json()

    return LessonPlan.from_json(bench.once("self_edits", write))


def run(name: str, course: Course, bench: LocalBench, cells: Cells, lessons: Lessons) -> None:
    """Every step of one protocol that is not among the cells yet."""
    steps = range(len(course.passages) + 1)
    missing = {s for s in steps if cells.find(course.digest, name, 0, course.seed, s) is None}
    if not missing:
        return
    models = [bench.model, *(bench.folder / f"{name}-{course.seed}-{step}" for step in steps[1:])]
    ready = _newest(models, min(missing)) if name == MERGED else 0
    for step in steps:
        if step not in missing and (name != MERGED or step <= ready):
            continue
        bench.say(f"{name}, seed {course.seed}, step {step}")
        began = time.monotonic()
        if step == 0:
            sampler = TorchSampler.load(bench.model)
        elif name != MERGED:
            weights = bench.train(_stage(course, course.passages[:step], lessons))
            sampler = TorchSampler.load(bench.model, weights.folder)
            shutil.rmtree(weights.folder)
        else:
            if step > ready:
                before, newest = models[step - 1], course.passages[step - 1 : step]
                weights = bench.train_on(before, _stage(course, newest, lessons))
                _merge(before, weights.folder, models[step], base=bench.model)
            sampler = TorchSampler.load(models[step])
        if step in missing:
            cells.add(course.digest, _asked(name, course, step, sampler, began))
    if name == MERGED:
        shutil.rmtree(models[-1])


def _newest(models: Sequence[Path], missing: int) -> int:
    """The step from whose merged model the missing ones can be reached; 0: only from the base.

    Each merged model replaces the one before it on disk. One later than the first missing step is
    of no use.
    """
    return max((step for step in range(1, missing + 1) if models[step].exists()), default=0)


def steps_of(name: str, course: Course, cells: Cells) -> list[Cell] | None:
    """The cells of a sequence, the one before the first step first; None while one is missing."""
    found = [
        cells.find(course.digest, name, 0, course.seed, step)
        for step in range(len(course.passages) + 1)
    ]
    whole = [cell for cell in found if cell is not None]
    return whole if len(whole) == len(found) else None


def grid_of(course: Course, steps: Sequence[Cell]) -> list[list[float]]:
    """Accuracy on passage i (row) after step j (column)."""
    return [
        [accuracy(cell.correct[str(passage.number)]) for cell in steps]
        for passage in course.passages
    ]


def _stage(course: Course, passages: Sequence[Passage], lessons: Lessons) -> Stage:
    """The passages' edits, and the replay once."""
    plans = [lessons(passage).edits for passage in passages]
    edits = [edit for plan in plans for edit in plan if edit.kind is not EditKind.REPLAY]
    replay: list[SelfEdit] = [edit for edit in plans[0] if edit.kind is EditKind.REPLAY]
    config = course.config
    return Stage(
        lora=config.lora,
        training=config.training,
        seed=course.seed,
        edits=(*edits, *replay),
        anchors_per_epoch=config.replay.prompts_per_epoch,
        anchor_share=config.replay.least_share,
        strength=config.strength_for(len(passages)),
    )


def _merge(model: Path, adapter: Path, output: Path, *, base: Path) -> None:
    """Write the model with the adapter in its weights; the one before it is not needed any more."""
    shutil.rmtree(output, ignore_errors=True)
    unfinished = output.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    merge(model, adapter, unfinished)
    unfinished.rename(output)
    shutil.rmtree(adapter)
    if model != base:
        shutil.rmtree(model)


def _asked(name: str, course: Course, step: int, sampler: Sampler, began: float) -> Cell:
    correct: dict[str, list[bool]] = {}
    replies: dict[str, list[str]] = {}
    for passage in course.passages:
        answers = sit_exam(passage.items(), sampler, max_new_tokens=course.reply_tokens)
        correct[str(passage.number)] = [answer.is_correct for answer in answers]
        replies[str(passage.number)] = [answer.reply for answer in answers]
    general = [answer.is_correct for answer in sit_exam(load_general_suite(), sampler)]
    seconds = round(time.monotonic() - began, 1)
    return Cell(name, 0, course.seed, step, correct, general, replies, seconds)
