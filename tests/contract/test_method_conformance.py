"""What every method keeps to, whatever it learns: one battery, one row a method.

The trainer is the real one, on a random model of a few thousand weights; what the engine says is
scripted. A method that nobody has built yet is skipped by its own word.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters.lesson import Stage, Weights, stages_to_json
from adapters.methods import Assignment, Outcome
from adapters.sampling import WHY_REFUSED
from adapters.spec import METHODS, LoraSpec, PromptSettings, TrainingSpec
from adapters.types import EditKind, PreferencePair, SelfEdit, TrainingSample, Unit
from tests.support.method_cases import CASES, Case
from tests.support.training_bench import Cancelled, TrainingBench, TrainingFailed, digest_of
from tests.unit.adapters.conftest import save_random_model

PROBE = torch.tensor([[1, 40, 90, 17, 200, 3]])


@dataclass
class Ground:
    """One method, and where it is tried."""

    name: str
    case: Case
    model: Path
    champion: Weights
    folder: Path

    def bench(self, name: str = "bench", **fields: Any) -> TrainingBench:
        case = self.case
        return TrainingBench(
            self.model, self.folder / name, case.answering, case.trained_answering, **fields
        )

    def learn(self, bench: TrainingBench, assignment: Assignment | None = None) -> Outcome:
        given = self.case.assignment if assignment is None else assignment
        if self.case.takes_champion:
            given = replace(given, champion=self.champion)
        return self.case.method(self.name).learn(given, bench)


@dataclass
class Learnt:
    """A method's work, done once and looked at from all sides."""

    bench: TrainingBench
    outcome: Outcome

    @property
    def weights(self) -> Weights:
        assert self.outcome.weights is not None, self.outcome.report
        return self.outcome.weights


class School:
    """Where all methods learn; what one has learnt is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.model = save_random_model(folder / "model")
        bench = TrainingBench(self.model, folder / "champion", lambda *_: "Yes.")
        edit = SelfEdit(EditKind.QUESTION, None, "Where is Orm?", "In Marrow.", "rule")
        spec = TrainingSpec.model_validate({"epochs": 2, "learning_rate": 1e-2})
        self._champion = bench.train(Stage(LoraSpec(rank=2, alpha=4), spec, 0, edits=(edit,)))
        self._learnt: dict[str, Learnt] = {}

    def ground(self, name: str) -> Ground:
        return Ground(name, CASES[name], self.model, self._champion, self._folder / Path(name).stem)

    def learnt(self, name: str) -> Learnt:
        if name not in self._learnt:
            ground = self.ground(name)
            bench = ground.bench("first")
            self._learnt[name] = Learnt(bench, ground.learn(bench))
        return self._learnt[name]


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    return School(tmp_path_factory.mktemp("school"))


@pytest.fixture(params=sorted(CASES))
def ground(request: pytest.FixtureRequest, school: School) -> Ground:
    return school.ground(request.param)


@pytest.fixture
def learnt(ground: Ground, school: School) -> Learnt:
    return school.learnt(ground.name)


def test_every_method_has_its_row() -> None:
    assert set(CASES) == {*METHODS, "examples/write_your_own_method.py"}


def test_it_learns(learnt: Learnt) -> None:
    assert learnt.weights in learnt.bench.trained
    assert "no_update" not in learnt.outcome.report
    json.dumps(learnt.outcome.report, allow_nan=False)


def test_the_same_seed_makes_the_same_adapter(ground: Ground, learnt: Learnt) -> None:
    again = ground.learn(ground.bench("again"))

    assert again.weights is not None
    assert digest_of(again.weights) == digest_of(learnt.weights)
    assert again.report == learnt.outcome.report


def test_the_base_is_untouched_and_is_what_is_left_with_the_adapter_off(
    ground: Ground, learnt: Learnt, tmp_path: Path
) -> None:
    fresh = save_random_model(tmp_path)
    same = "model.safetensors"
    assert (ground.model / same).read_bytes() == (fresh / same).read_bytes()

    base = AutoModelForCausalLM.from_pretrained(ground.model).eval()
    with torch.no_grad():
        alone = base(PROBE).logits
        adapted = PeftModel.from_pretrained(base, learnt.weights.folder).eval()
        with adapted.disable_adapter():
            off = adapted(PROBE).logits
        on = adapted(PROBE).logits

    assert torch.equal(off, alone)
    assert torch.isfinite(on).all()
    assert not torch.equal(on, alone)


def test_it_stops_when_its_budget_is_used_up(ground: Ground, learnt: Learnt) -> None:
    bench = ground.bench("poor", trainings_paid=1)
    ruined = ground.bench("ruined", trainings_paid=0)

    outcome = ground.learn(bench)
    nothing = ground.learn(ruined)

    assert len(bench.trained) <= 1 < 1 + len(learnt.bench.trained)
    assert (outcome.weights is None) == (not bench.trained)
    assert nothing.weights is None
    assert ruined.trained == []
    assert nothing.report["no_update"]


def test_a_cancel_ends_it_within_a_request_or_a_step(ground: Ground, learnt: Learnt) -> None:
    asked = ground.bench("cancelled", cancel_at_call=learnt.bench.calls - 1)
    trained = ground.bench("stopped", cancel_at_step=1)

    if learnt.bench.calls:
        with pytest.raises(Cancelled):
            ground.learn(asked)
        assert asked.calls == learnt.bench.calls - 1
    with pytest.raises(Cancelled):
        ground.learn(trained)

    assert trained.steps == 1
    assert trained.trained == []


def test_after_a_crash_it_comes_to_the_same(ground: Ground, learnt: Learnt) -> None:
    killed = ground.bench("killed", cancel_at_step=learnt.bench.steps)
    with pytest.raises(Cancelled):
        ground.learn(killed)

    revived = ground.bench("killed")
    outcome = ground.learn(revived)

    assert outcome.weights is not None
    assert digest_of(outcome.weights) == digest_of(learnt.weights)
    assert revived.calls < max(1, learnt.bench.calls)  # what was answered is not asked again


def test_too_little_to_learn_is_no_update_with_its_reason(ground: Ground) -> None:
    if ground.case.least is None:
        pytest.skip("a run with nothing to learn never reaches it, and one text is enough")
    for number, assignment in enumerate((Assignment(), ground.case.least)):
        if ground.case.takes_champion:  # nothing to learn is nothing to learn it on
            assignment = replace(assignment, champion=None)
        bench = ground.bench(f"little-{number}")
        outcome = ground.case.method(ground.name).learn(assignment, bench)

        assert outcome.weights is None
        assert bench.trained == []
        assert isinstance(reason := outcome.report["no_update"], str)
        assert reason.strip()


def test_it_asks_for_no_more_replies_than_it_announces(ground: Ground, learnt: Learnt) -> None:
    if ground.name not in METHODS:
        pytest.skip("the server does not know it")
    config = METHODS[ground.name].model_validate(ground.case.fields)
    if not isinstance(config, PromptSettings):
        pytest.skip("it learns no prompts")
    given = ground.case.assignment

    most = config.most_replies(len(given.prompts) or len(given.opinions))

    assert most is not None
    assert learnt.bench.replies <= most
    assert most <= 2 * learnt.bench.replies, "it announces far too many"


def test_what_the_engine_refuses_is_left_out_and_counted(ground: Ground) -> None:
    given = ground.case.assignment
    if not given.prompts and not given.opinions:
        pytest.skip("it learns no prompts")
    bench = ground.bench("refused", refused=ground.case.held_out)

    outcome = ground.learn(bench)

    assert outcome.weights is not None, outcome.report
    assert not any(ground.case.held_out in text for text in _texts(bench.stages))
    if ground.name in METHODS:
        assert f'"{WHY_REFUSED}": 1' in json.dumps(outcome.report)


def test_an_engine_that_refuses_every_prompt_is_no_update(ground: Ground) -> None:
    given = ground.case.assignment
    if not given.prompts and not given.opinions:
        pytest.skip("it learns no prompts")

    outcome = ground.learn(ground.bench("refused-all", refused="What is"))

    assert outcome.weights is None
    assert outcome.report["no_update"]


def test_nonsense_from_the_trainer_ends_it(ground: Ground, tmp_path: Path) -> None:
    broken = _broken(tmp_path / "model")
    case = ground.case
    bench = TrainingBench(broken, tmp_path / "bench", case.answering, case.trained_answering)
    given = ground.case.assignment

    if ground.case.takes_champion:
        given = replace(given, champion=ground.champion)
    outcome: Outcome | None = None
    with suppress(TrainingFailed):
        outcome = ground.case.method(ground.name).learn(given, bench)

    assert outcome is None or outcome.weights is None
    assert bench.trained == []


def test_what_the_exam_asks_is_in_no_lesson(ground: Ground, learnt: Learnt) -> None:
    held_out = ground.case.held_out
    bench = ground.bench("held-out")
    given = replace(ground.case.assignment, held_out=frozenset({held_out}))

    ground.learn(bench, given)

    assert not any(held_out in text for text in _texts(bench.stages))
    if ground.case.assignment.prompts or ground.case.assignment.opinions:
        assert any(held_out in text for text in _texts(learnt.bench.stages)), "it proves nothing"


def test_what_they_made_loads_in_a_fresh_process(school: School) -> None:
    names = sorted(CASES)
    folders = [str(school.learnt(name).weights.folder) for name in names]
    command = [sys.executable, "-c", LOAD, str(school.model), *folders]

    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    said = dict(zip(names, map(float, done.stdout.split()), strict=True))
    assert said == {
        name: pytest.approx(summed(school.model, folder), abs=1e-3)
        for name, folder in zip(names, folders, strict=True)
    }


LOAD = """
import sys
from pathlib import Path
from tests.contract.test_method_conformance import summed
for folder in sys.argv[2:]:
    print(summed(Path(sys.argv[1]), folder))
"""


def summed(model: Path, adapter: str) -> float:
    """What an adapter says to a few tokens, in one number."""
    base = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        said = PeftModel.from_pretrained(base, adapter).eval()(PROBE).logits
    return float(said.double().abs().sum())


def _broken(folder: Path) -> Path:
    """The same model, one of whose weights is no number."""
    save_random_model(folder)
    base = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    base.save_pretrained(folder)
    return folder


def _texts(stages: list[Stage]) -> Iterator[str]:
    """All that is trained on, in words: what stands in texts, and what stands in tokens."""
    for stage in stages:
        yield json.dumps(stages_to_json([stage]))
        for unit in stage.units:
            yield from map(_text_of, _samples(unit))


def _samples(unit: Unit) -> tuple[TrainingSample, ...]:
    if isinstance(unit, TrainingSample):
        return (unit,)
    if isinstance(unit, PreferencePair):
        return unit.chosen, unit.rejected
    return (unit.sample,)


def _text_of(sample: TrainingSample) -> str:
    """Scripted engines make a token of each character."""
    return "".join(chr(token - 1) for token in sample.ids if token)
