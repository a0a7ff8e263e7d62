"""SEAL on a task given by examples: the model chooses augmentations and training settings.

Zweiger et al., "Self-Adapting Language Models", arXiv 2506.10943, section 4.2. Ours differs:
- a self-edit is scored on examples of the task itself, left out in turn, never on its tests, which
  are the exam's; the paper scores on the test of a training task;
- nothing improves the chooser between tasks (no outer loop): the best of k serves this task;
- what does not beat the base on the left-out examples is not trained at all;
- colours may be exchanged too, and tasks of text have augmentations of their own;
- loss on all tokens is a second, plain copy of each sample, so that the reply's form stays learnt.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from pydantic import TypeAdapter

from adapters.lesson import Stage
from adapters.methods.augmentation import hashed_seed
from adapters.methods.fewshot_edit import (
    Augmentations,
    FewShotEdit,
    InvalidEdit,
    TrainingChoice,
    edit_prompt,
    read_edit,
)
from adapters.methods.held_out import HeldOut
from adapters.methods.replay import replay_edits
from adapters.methods.task_lessons import TaskLesson, asking_prompt, task_lesson
from adapters.methods.workbench import BUDGET_ENDED, Assignment, Outcome, Workbench
from adapters.rewards.exact import is_exact
from adapters.sampling import Sampler
from adapters.spec import FewShotConfig, TrainingSpec
from adapters.task_prompts import longest_output
from adapters.types import JSON, Example, SamplingParams, SelfEdit, Task

TOO_MANY_STEPS = "too many steps"
REPEATED = "the same as another"
NOTHING_TO_TRAIN = "nothing to train"


@dataclass(frozen=True, slots=True)
class Choices:
    """The self-edits worth trying, and an account of those that are not."""

    edits: tuple[FewShotEdit, ...]
    asked: int
    repaired: int
    dropped: dict[str, int]
    is_default: bool
    """Whether none was valid, so that the fixed one stands in."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Left-out examples that were answered exactly right."""

    left_out: int
    base: int
    candidates: tuple[int, ...]
    """One for each choice."""
    diverged: int
    """Throw-away trainings that came to nothing; their examples count as wrong."""


class SealFewShot:
    """SEAL's few-shot setting for one config; holds no state between runs."""

    def __init__(self, config: FewShotConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`.

        Raises:
            ValueError: the assignment has not exactly one task.
        """
        (task,) = assignment.tasks
        if not bench.has_budget():
            return Outcome(None, {"no_update": BUDGET_ENDED})
        with bench.stage("self_edits"):
            kept = bench.once("fewshot_edits", lambda: self._choose(task, bench.editor))
            choices = _CHOICES.validate_python(kept)
        folds = self._folds(task)
        with bench.stage("try_out"):
            kept = bench.once("fewshot_scores", lambda: self._score(task, choices, folds, bench))
            scores = _SCORES.validate_python(kept)
        best = self._best(task, choices, scores)
        lesson = task_lesson(task, choices.edits[best], self._config)
        report = self._report(task, choices, scores, best=best, lesson=lesson)
        why = _why_not(scores, best, lesson) if bench.has_budget() else BUDGET_ENDED
        if why:
            return Outcome(None, {"fewshot": report, "no_update": why})
        with bench.stage("training"):
            kept = bench.once("fewshot_replay", lambda: self._replay(assignment, bench.base))
            replay = _EDITS.validate_python(kept)
            stage = self._stage(lesson, choices.edits[best])
            weights = bench.train(
                replace(
                    stage,
                    edits=(*stage.edits, *replay),
                    anchors_per_epoch=self._config.replay.prompts_per_epoch,
                    anchor_share=self._config.replay.least_share,
                )
            )
        return Outcome(weights, {"fewshot": report})

    def default_edit(self, task: Task) -> FewShotEdit:
        """The fixed self-edit: what stands in where the model chooses nothing valid."""
        is_grid = task.form == "grid"
        return FewShotEdit(
            augmentations=Augmentations(
                basic=True, size=False, chained=False, repeated=not is_grid, colours=is_grid
            ),
            training=TrainingChoice(
                loss_on="output",
                learning_rate=min(self._config.training.learning_rate, 5e-3),
                epochs=min(self._config.training.epochs, 20),
            ),
        )

    def stage(self, task: Task, edit: FewShotEdit) -> Stage:
        """The training of a self-edit on all examples, without replay."""
        return self._stage(task_lesson(task, edit, self._config), edit)

    def _choose(self, task: Task, editor: Sampler) -> JSON:
        conversation = [{"role": "user", "content": edit_prompt(task)}]
        dropped: Counter[str] = Counter()
        repaired = 0
        found: dict[str, FewShotEdit] = {}
        for number in range(self._config.candidates):
            [reply] = editor.chat(
                [conversation],
                SamplingParams(
                    max_tokens=self._config.max_new_tokens,
                    temperature=self._config.temperature,
                    seed=self._config.seed + number,
                ),
            )
            try:
                edit, is_repaired = read_edit(reply)
            except InvalidEdit as error:
                dropped[f"invalid: {error}"] += 1
                continue
            repaired += is_repaired
            lesson = task_lesson(task, edit, self._config)
            key = self._stage(lesson, edit).digest()
            if reason := self._unfit(lesson, edit, is_known=key in found):
                dropped[reason] += 1
            else:
                found[key] = edit
        edits = tuple(found.values()) or (self.default_edit(task),)
        choices = Choices(edits, self._config.candidates, repaired, dict(dropped), not found)
        rows: JSON = _CHOICES.dump_python(choices, mode="json")
        return rows

    def _unfit(self, lesson: TaskLesson, edit: FewShotEdit, *, is_known: bool) -> str:
        if not lesson.edits:
            return NOTHING_TO_TRAIN
        if self._steps(lesson, edit) > self._config.most_steps:
            return TOO_MANY_STEPS
        return REPEATED if is_known else ""

    def _folds(self, task: Task) -> list[Example]:
        """The examples that are left out in turn; none where there is but one example."""
        if len(task.examples) < 2:
            return []
        drawn = sorted(
            task.examples, key=lambda each: hashed_seed(self._config.seed, each.input, each.output)
        )
        fitting = (one for one in drawn if asking_prompt(task, self._config, without=one))
        return list(islice(fitting, self._config.left_out))

    def _score(
        self, task: Task, choices: Choices, folds: Sequence[Example], bench: Workbench
    ) -> JSON:
        base = sum(self._is_right(task, fold, bench.base) for fold in folds)
        orders = [(number, fold) for number in range(len(choices.edits)) for fold in folds]
        right = [0] * len(choices.edits)
        diverged = done = 0
        for group in _grouped(orders, self._config.together):
            if not bench.has_budget():
                break  # and nothing is trained: there is none left for the lesson either
            stages = [self._trial(task, choices.edits[number], fold) for number, fold in group]
            trained = bench.try_out([stage for stage in stages if not stage.is_empty])
            found = iter(trained)
            served = [
                (number, fold, weights)
                for (number, fold), stage in zip(group, stages, strict=True)
                if not stage.is_empty and (weights := next(found)) is not None
            ]
            diverged += sum(weights is None for weights in trained)
            with bench.serving([weights for _, _, weights in served]) as samplers:
                for (number, fold, _), sampler in zip(served, samplers, strict=True):
                    right[number] += self._is_right(task, fold, sampler)
            done += len(group)
            bench.progress(done, len(orders))
        scores = Scores(len(folds), base, tuple(right), diverged)
        rows: JSON = _SCORES.dump_python(scores, mode="json")
        return rows

    def _trial(self, task: Task, edit: FewShotEdit, fold: Example) -> Stage:
        return self._stage(task_lesson(task, edit, self._config, without=[fold]), edit)

    def _is_right(self, task: Task, fold: Example, sampler: Sampler) -> bool:
        prompt = asking_prompt(task, self._config, without=fold)
        [reply] = sampler.chat(
            [[{"role": "user", "content": prompt or ""}]],
            SamplingParams(max_tokens=max(16, longest_output(task))),
        )
        return is_exact(reply, [fold.output])

    def _best(self, task: Task, choices: Choices, scores: Scores) -> int:
        """The highest score; of equal ones the fewest steps, then the first."""

        def rank(number: int) -> tuple[int, int, int]:
            edit = choices.edits[number]
            steps = self._steps(task_lesson(task, edit, self._config), edit)
            return -scores.candidates[number], steps, number

        return min(range(len(choices.edits)), key=rank)

    def _steps(self, lesson: TaskLesson, edit: FewShotEdit) -> int:
        return lesson.steps(
            epochs=edit.training.epochs, batch_size=self._config.training.batch_size
        )

    def _stage(self, lesson: TaskLesson, edit: FewShotEdit) -> Stage:
        chosen = {"learning_rate": edit.training.learning_rate, "epochs": edit.training.epochs}
        return Stage(
            lora=self._config.lora,
            training=TrainingSpec.model_validate(self._config.training.model_dump() | chosen),
            seed=self._config.seed,
            edits=lesson.edits,
        )

    def _replay(self, assignment: Assignment, base: Sampler) -> JSON:
        edits = replay_edits(base, self._config.replay, HeldOut(assignment.held_out))
        rows: JSON = _EDITS.dump_python(tuple(edits), mode="json")
        return rows

    def _report(
        self, task: Task, choices: Choices, scores: Scores, *, best: int, lesson: TaskLesson
    ) -> dict[str, JSON]:
        tried: list[JSON] = [
            {
                "edit": edit.model_dump(mode="json"),
                "steps": self._steps(task_lesson(task, edit, self._config), edit),
                "right": right,
            }
            for edit, right in zip(choices.edits, scores.candidates, strict=True)
        ]
        return {
            "asked": choices.asked,
            "repaired": choices.repaired,
            "dropped": dict(sorted(choices.dropped.items())),
            "is_default": choices.is_default,
            "left_out": scores.left_out,
            "base_right": scores.base,
            "diverged": scores.diverged,
            "tried": tried,
            "chosen": best,
            "samples": len(lesson.edits),
            "samples_dropped": dict(lesson.dropped),
        }


def _why_not(scores: Scores, best: int, lesson: TaskLesson) -> str:
    """Why there is no update; empty where there is one.

    With one example nothing can be left out: the choice is then untried, and the exam decides.
    """
    if not lesson.edits:
        return "No example fits into a prompt with its output; send smaller ones."
    if scores.left_out and scores.candidates[best] <= scores.base:
        return (
            f"No self-edit beat the base on the left-out examples: {scores.candidates[best]} of "
            f"{scores.left_out} against {scores.base}."
        )
    return ""


def _grouped(
    orders: Sequence[tuple[int, Example]], size: int
) -> Iterator[Sequence[tuple[int, Example]]]:
    for start in range(0, len(orders), size):
        yield orders[start : start + size]


_CHOICES = TypeAdapter(Choices)
_SCORES = TypeAdapter(Scores)
_EDITS = TypeAdapter(tuple[SelfEdit, ...])
