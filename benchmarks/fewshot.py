"""`make bench-fewshot`: tasks given by examples; base, default self-edit, chosen self-edit.

Each task's tests are asked of three: the base, which sees the examples in the prompt, as do the
others; the base trained by the fixed self-edit; and what `seal-fewshot` makes of the task, which is
the base where no self-edit beat it on the left-out examples. A reply counts when it is exactly right.
Real vLLM answers, the trainer trains; no server, no gate.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from adapters.base_model import WHEEL
from adapters.evaluation.exam import sit_exam
from adapters.methods.seal_fewshot import SealFewShot
from adapters.methods.workbench import Assignment, Workbench
from adapters.sampling import Sampler
from adapters.spec import FewShotConfig
from adapters.task_prompts import exam_items, longest_output
from adapters.types import Task
from benchmarks.decoders import open_decoder
from benchmarks.fewshot_tasks import NoTasks, arc_tasks, text_tasks
from benchmarks.learning_bench import LocalBench
from benchmarks.results import Results
from server.embedded.up import prepare_model

ARMS = ("base", "default edit", "chosen edit")


@dataclass(frozen=True, slots=True)
class Scored:
    """Tests of one task that each arm answered exactly right."""

    tests: int
    right: dict[str, int]
    was_updated: bool
    """Whether the choice among self-edits led to weights."""


def main(arguments: list[str] | None = None) -> int:
    """Measure what has not been measured at this commit; exit status 0."""
    options = _parse(arguments)
    config = FewShotConfig(candidates=options.candidates, seed=options.seed)
    name = options.model.name if options.model else WHEEL
    setup = f"{name}, {options.candidates} candidates, {options.arc} ARC tasks"
    results = Results("fewshot", setup=setup, seed=options.seed, again=options.again)
    groups = {"text": text_tasks(), "ARC": _arc(options.arc)}
    with tempfile.TemporaryDirectory(prefix="bench-fewshot-") as scratch:
        folder = Path(scratch)
        model = options.model or prepare_model(WHEEL, folder).path
        with open_decoder("vLLM", model, folder, rank=config.lora.rank) as decoder:
            for group, tasks in groups.items():
                for task in tasks:
                    case = f"{group}: {task.title}"
                    if not results.has(case):
                        place = folder / task.id.replace(" ", "-")
                        bench = LocalBench(decoder, model, place, options.threads, _say)
                        with closing(bench):
                            write(results, case, score(task, config, bench))
    for group, tasks in groups.items():
        sum_up(results, group, [f"{group}: {task.title}" for task in tasks])
    return 0


def score(task: Task, config: FewShotConfig, bench: Workbench) -> Scored:
    """All three arms on one task."""
    method = SealFewShot(config)
    items = exam_items(task, shown=config.shown, max_tokens=config.training.max_tokens)
    base = _right(task, config, bench.base)
    fixed = bench.train(method.stage(task, method.default_edit(task)))
    assignment = Assignment(tasks=(task,), held_out=frozenset(item.prompt for item in items))
    chosen = method.learn(assignment, bench).weights
    trained = [fixed] if chosen is None else [fixed, chosen]
    with bench.serving(trained) as samplers:
        found = [_right(task, config, sampler) for sampler in samplers]
    return Scored(
        tests=len(items),
        right=dict(zip(ARMS, (base, found[0], found[1] if chosen else base), strict=True)),
        was_updated=chosen is not None,
    )


def write(results: Results, case: str, scored: Scored) -> None:
    """One line for each arm of a task."""
    for arm, right in scored.right.items():
        results.add(case, f"{arm}: exactly right", right, f"of {scored.tests} tests")
    results.add(case, "tests", scored.tests, "")
    results.add(case, "updated", float(scored.was_updated), "")
    results.finish(case)


def sum_up(results: Results, group: str, cases: Sequence[str]) -> None:
    """The share of all tests of a group that each arm answered exactly right."""
    tests = sum(results.value(case, "tests") or 0 for case in cases)
    if not tests:
        return
    shares = {
        arm: sum(results.value(case, f"{arm}: exactly right") or 0 for case in cases) / tests
        for arm in ARMS
    }
    for arm, share in shares.items():
        results.add(group, f"{arm}: exactly right", share, "", baseline=shares["base"])


def _say(words: str) -> None:
    sys.stderr.write(f"  {words}\n")


def _arc(count: int) -> list[Task]:
    """So many of ARC's tasks; none, with a word of it, where they are not installed."""
    try:
        return arc_tasks(count) if count else []
    except NoTasks as missing:
        sys.stderr.write(f"Going on without ARC. {missing}\n")
        return []


def _right(task: Task, config: FewShotConfig, sampler: Sampler) -> int:
    items = exam_items(task, shown=config.shown, max_tokens=config.training.max_tokens)
    answers = sit_exam(items, sampler, max_new_tokens=max(16, longest_output(task)))
    return sum(answer.is_correct for answer in answers)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fewshot", description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder; SmolLM2-135M if not given")
    parser.add_argument("--arc", type=int, default=8, help="tasks of ARC, smallest grids first")
    parser.add_argument("--candidates", type=int, default=5, help="self-edits asked for each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="also what was measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
