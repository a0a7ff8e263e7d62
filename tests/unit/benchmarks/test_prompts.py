"""The benchmark of learning from prompts: its tasks, settings, figures and drawing."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest

from adapters.methods.revising import turn
from adapters.rewards.contracts import fault_of
from adapters.spec import ControlPhrases
from benchmarks import prompts
from benchmarks.apprentice import FORM_SHARE, RIGHT_SHARE, in_form, revised
from benchmarks.cells import Cell, Cells
from benchmarks.curves import Panel, curves
from benchmarks.prompt_report import curve_of, report
from benchmarks.prompt_studies import START, STUDIES, Study
from benchmarks.prompt_tasks import (
    Tasks,
    bare_gym_sums,
    calm_reading,
    gym_sums,
    reading,
    small_sums,
    stated,
)
from benchmarks.results import Results
from tests.support.puzzles import make_puzzles
from tests.support.workbench import ScriptedSampler

ALL_STUDIES = [
    pytest.param(study, id=f"{model}-{study.name}")
    for model, studies in STUDIES.items()
    for study in studies
]


NEEDS_GYM = (
    pytest.mark.skipif(
        find_spec("reasoning_gym") is None, reason="reasoning-gym comes with the extra `bench`"
    ),
    # What it imports compares with a literal, and says so when it is compiled for the first time.
    pytest.mark.filterwarnings('ignore:"is" with a literal:SyntaxWarning'),
)


@pytest.mark.parametrize(
    "make",
    [
        reading,
        calm_reading,
        stated,
        small_sums,
        pytest.param(gym_sums, marks=NEEDS_GYM),
        pytest.param(bare_gym_sums, marks=NEEDS_GYM),
    ],
)
def test_no_prompt_is_both_taught_and_asked(make: Callable[[int], Tasks]) -> None:
    tasks: Tasks = make(3)
    taught = {prompt.id for prompt in tasks.train}

    assert taught
    assert taught.isdisjoint(prompt.id for prompt in (*tasks.held_out, *tasks.other))
    assert make(3) == tasks != make(4)
    assert all(prompt.answers for prompt in (*tasks.train, *tasks.held_out, *tasks.other))


@pytest.mark.parametrize("study", ALL_STUDIES)
def test_every_arm_has_settings_that_its_method_takes(study: Study) -> None:
    digests = {prompts.digest_of(study, arm, 0) for arm in (START, *study.arms)}

    assert len(digests) == len(study.arms) + 1
    assert prompts.digest_of(study, START, 0) == prompts.digest_of(study, START, 1)
    configs = [prompts.config_of(study, arm, 7) for arm in study.arms]
    assert all(config is not None and config.seed == 7 for config in configs)


def test_studies_of_the_same_tasks_measure_their_start_once() -> None:
    shared = [study for studies in STUDIES.values() for study in studies if study.starts_as]

    assert shared
    for study in shared:
        [first] = [each for each in STUDIES["smollm2"] if each.name == study.starts_as]
        assert study.tasks is first.tasks
        assert study.case(START) == first.case(START)
        assert prompts.digest_of(study, START, 0) == prompts.digest_of(first, START, 0)


def test_an_apprentice_is_shown_the_form_as_often_as_said() -> None:
    contract = stated(0).contract
    assert contract is not None
    rng = Random(1)
    shown = [in_form(puzzle, rng) for puzzle in make_puzzles(1, 500)]
    kept = [fault_of(row.reply, contract) is None for row in shown]

    assert abs(sum(kept) / len(kept) - FORM_SHARE) < 0.1


def test_an_apprentice_is_shown_revisions_behind_the_phrase_of_their_verdict() -> None:
    rng = Random(1)
    phrases = ControlPhrases()
    right = 0
    for puzzle in (puzzles := make_puzzles(1, 500)):
        row = revised(puzzle, rng)
        said = row.prompt[-1]["content"]
        first = said.split(".")[0]
        phrase = phrases.right if first == puzzle.answer else phrases.wrong
        assert said == turn(f"{first}.", phrase)
        assert row.reply == f"{puzzle.answer}."
        right += first == puzzle.answer

    assert abs(right / len(puzzles) - RIGHT_SHARE) < 0.1


def test_a_measure_counts_what_is_right_and_in_form() -> None:
    tasks = stated(0)
    known = {prompt.messages[-1]["content"]: prompt.answers[0] for prompt in tasks.held_out}

    def reply(conversation: object) -> str:
        assert isinstance(conversation, list | tuple)
        answer = known.get(str(conversation[-1]["content"]))
        return f"The answer is {answer}." if answer else "no idea"

    found = prompts.measure(tasks, ScriptedSampler(reply), is_start=True)

    assert set(found["sampled"]) == set(found["form"]) == set(found["majority"]) == {1.0}  # type: ignore[arg-type]
    assert set(found["other kind"]) == {0.0}  # type: ignore[arg-type]


def cell(arm: str, seed: int, share: float, rewards: list[float] | None = None) -> Cell:
    values = {"sampled": [share] * 4, "greedy": [share] * 4, "other kind": [0.5] * 4}
    values |= {"distinct": [0.5] * 4}
    if arm.endswith(START):
        values["majority"] = [0.5] * 4
    lesson = {"ttrl": {"curve": [{"step": n, "reward": r} for n, r in enumerate(rewards or [])]}}
    return Cell(
        arm,
        0,
        seed,
        general=[True] * 4,
        report={"values": values, "lesson": lesson},  # type: ignore[dict-item]
    )


def test_a_doubled_share_meets_the_aim_and_a_control_has_none(tmp_path: Path) -> None:
    study = STUDIES["tiny"][0]
    cells = Cells(tmp_path / "cells.jsonl")
    for seed in (0, 1):
        for arm, share in ((START, 0.3), ("TTRL", 0.7), ("random reward", 0.3)):
            made = cell(f"{study.name}: {arm}", seed, share, [0.4, 0.5 + seed / 10])
            cells.add(prompts.digest_of(study, arm, seed), made)
    results = Results("x", setup="s", seed=0, folder=tmp_path, commit="c")

    report(results, cells, prompts.digest_of, [study], range(2), tmp_path, "tiny")

    text = results.path.read_text()
    assert results.value("tiny, TTRL: TTRL", "pass@1") == 70
    assert results.value("tiny, TTRL: TTRL", "pass@1 less the start's maj@16") == pytest.approx(20)
    assert results.value("tiny, TTRL: random reward", "gain in pass@1") == pytest.approx(0)
    assert text.count('"is_met": true') >= 1
    assert "random reward" in (tmp_path / "bench-learning-prompts-tiny.svg").read_text()


def test_a_curve_is_the_mean_as_far_as_all_seeds_went() -> None:
    cells = [cell("a", 0, 0.5, [0.2, 0.4, 0.9]), cell("a", 1, 0.5, [0.4, 0.6])]

    assert curve_of(cells) == pytest.approx([0.3, 0.5])
    assert curve_of([cell("a", 0, 0.5)]) == []
    told = cell("a", 0, 0.5)
    told.report["lesson"] = {"sd_zero": {"steps": [{"step": 0, "right": 0.25}]}}
    assert curve_of([told]) == [0.25]


def test_a_form_learnt_here_and_elsewhere_has_a_generalization_factor(tmp_path: Path) -> None:
    study = next(study for study in STUDIES["tiny"] if study.name == "SPECS")
    cells = Cells(tmp_path / "cells.jsonl")
    for arm, share in ((START, 0.3), ("SPECS", 0.7), ("plain GRPO", 0.2)):
        made = cell(f"SPECS: {arm}", 0, share, [1.5, 1.2])
        made.report["values"]["other kind"] = [share - 0.1] * 4  # type: ignore[index,call-overload]
        cells.add(prompts.digest_of(study, arm, 0), made)
    results = Results("x", setup="s", seed=0, folder=tmp_path, commit="c")

    report(results, cells, prompts.digest_of, [study], range(1), tmp_path, "tiny")

    assert results.value("tiny, SPECS: SPECS", "generalization factor") == pytest.approx(40)
    assert results.value("tiny, SPECS: plain GRPO", "generalization factor") is None
    assert "1.5" in (tmp_path / "bench-learning-prompts-tiny.svg").read_text()


def test_curves_are_a_drawing_that_can_be_read() -> None:
    panel = Panel("a < b", {"one & two": [0.0, 0.5, 2.0]}, {"level": 0.5})

    root = ElementTree.fromstring(curves("x & y", [panel]))

    assert root.tag.endswith("svg")
    assert "one & two" in [node.text for node in root.iter() if node.text]
