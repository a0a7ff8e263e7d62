"""From a task's examples and a self-edit to training samples."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from adapters.methods.augmentation import (
    Augmentation,
    are_labels,
    enlarged,
    hashed_seed,
    input_variants,
    recolouring,
    repetitions,
    symmetries,
)
from adapters.methods.fewshot_edit import Augmentations, FewShotEdit
from adapters.spec import FewShotConfig
from adapters.task_prompts import fitting_prompt, input_key, longest_output, room_of
from adapters.types import EditKind, Example, SelfEdit, Task

TOO_LARGE = "too large when augmented"
ASKED = "asked in the exam"
TOO_LONG = "too long for a prompt"
BEYOND = "more than are trained"

_RECOLOURINGS = 3
_MOST_CHAINED = 8


@dataclass(frozen=True, slots=True)
class TaskLesson:
    """The samples of one training, and what was dropped on the way to them, by reason."""

    edits: tuple[SelfEdit, ...]
    dropped: dict[str, int]

    def steps(self, *, epochs: int, batch_size: int) -> int:
        """Optimiser steps of the training."""
        return epochs * -(-len(self.edits) // batch_size)


def task_lesson(
    task: Task, edit: FewShotEdit, config: FewShotConfig, *, without: Sequence[Example] = ()
) -> TaskLesson:
    """Each example asked with the others shown, in every view of the task that the edit chooses.

    A view is the whole task under one augmentation, so that what is shown and what is asked follow
    one rule. One that holds the input of a test, or of an example of `without`, is left out.
    """
    dropped: Counter[str] = Counter()
    taught = tuple(example for example in task.examples if example not in without)
    asked = frozenset(input_key(each.input, task.form) for each in (*task.tests, *without))
    pairs: dict[tuple[str, str], None] = {}
    plain = 0
    for view in _views(taught, task.form, edit.augmentations, config.seed, dropped):
        if any(input_key(example.input, task.form) in asked for example in view):
            dropped[ASKED] += 1
            continue
        for pair in _pairs(view, task, edit.augmentations, config, dropped):
            pairs[pair] = None
        if view == taught:
            plain = len(pairs)  # the plain view comes first
    chosen = _drawn(list(pairs), plain=plain, config=config)
    dropped[BEYOND] += len(pairs) - len(chosen)
    edits = [SelfEdit(EditKind.TASK, task.id, prompt, text, "rule") for prompt, text in chosen]
    if edit.training.loss_on == "all":
        edits += [
            SelfEdit(EditKind.TASK, task.id, None, f"{prompt}\n{text}", "rule")
            for prompt, text in chosen
        ]
    return TaskLesson(tuple(edits), {why: count for why, count in sorted(dropped.items()) if count})


def _views(
    examples: tuple[Example, ...],
    form: str,
    chosen: Augmentations,
    seed: int,
    dropped: Counter[str],
) -> Iterator[tuple[Example, ...]]:
    """The examples as they are, and under each augmentation."""
    yield examples
    singles = _grid_augmentations(chosen, seed) if form == "grid" else _variants(examples, chosen)
    chains: list[Augmentation] = []
    if chosen.chained:
        pairs = list(permutations(singles, 2))
        random.Random(hashed_seed("chain", seed)).shuffle(pairs)
        chains = [first.then(second) for first, second in pairs[:_MOST_CHAINED]]
    for augmentation in (*singles, *chains):
        try:
            yield tuple(augmentation.apply(example) for example in examples)
        except ValueError:
            dropped[TOO_LARGE] += 1


def _grid_augmentations(chosen: Augmentations, seed: int) -> list[Augmentation]:
    found: list[Augmentation] = []
    if chosen.basic:
        found += symmetries()
    if chosen.size:
        found.append(enlarged())
    if chosen.repeated:
        found += repetitions()
    if chosen.colours:
        found += [recolouring(hashed_seed("colours", seed, n)) for n in range(_RECOLOURINGS)]
    return found


def _variants(examples: Sequence[Example], chosen: Augmentations) -> list[Augmentation]:
    return list(input_variants()) if chosen.basic and are_labels(examples) else []


def _pairs(
    view: tuple[Example, ...],
    task: Task,
    chosen: Augmentations,
    config: FewShotConfig,
    dropped: Counter[str],
) -> Iterator[tuple[str, str]]:
    """Prompt and reply for each example of a view, the others shown."""
    is_text = task.form == "text"
    for number, example in enumerate(view):
        others = [*view[:number], *view[number + 1 :]]
        shows = [others[: config.shown]]
        if is_text and chosen.size and shows[0]:
            shows.append(shows[0][:-1])
        if is_text and chosen.repeated:
            order = list(others)
            random.Random(hashed_seed(config.seed, number)).shuffle(order)
            shows.append(order[: config.shown])
        for shown in shows:
            room = room_of(task, config.training.max_tokens) - len(example.output)
            prompt = fitting_prompt(task, shown, example.input, room=room)
            if prompt is None:
                dropped[TOO_LONG] += 1
            else:
                yield prompt, example.output


def _drawn(
    pairs: list[tuple[str, str]], *, plain: int, config: FewShotConfig
) -> list[tuple[str, str]]:
    """At most `most_examples`: those of the plain view first, the others drawn by hash."""
    first, rest = pairs[:plain], pairs[plain:]
    rest.sort(
        key=lambda pair: hashlib.sha256("\0".join((str(config.seed), *pair)).encode()).digest()
    )
    return [*first, *rest][: config.most_examples]


def asking_prompt(task: Task, config: FewShotConfig, *, without: Example) -> str | None:
    """How a left-out example is asked: as a test, the other examples shown; None: it does not fit."""
    others = [example for example in task.examples if example != without][: config.shown]
    room = room_of(task, config.training.max_tokens) - longest_output(task)
    return fitting_prompt(task, others, without.input, room=room)
