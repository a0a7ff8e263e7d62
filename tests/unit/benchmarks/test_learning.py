"""Learning from documents, measured: figures from the cells, and a run that goes on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.lesson import Stage, Weights
from adapters.rewards.answers import normalise
from adapters.spec import SealConfig
from benchmarks import learning, sequences
from benchmarks.cells import Cell, Cells
from benchmarks.heat_map import Grid, heat_map
from benchmarks.intervals import differences, interval
from benchmarks.learning_bench import LocalBench
from benchmarks.learning_report import edits_kept, kept, mean_grid, report, report_sequences
from benchmarks.passages import Passage, read_passages
from benchmarks.results import Results, read_lines
from tests.support.workbench import ScriptedSampler

TEXT = "The bridge of Orm was built in 1911. It has nine arches."
PASSAGES = [
    Passage(number, f"Title {number}", TEXT, (("How many arches?", "nine"), ("When?", "1911")))
    for number in range(3)
]


def results(folder: Path) -> Results:
    return Results("learning-documents", setup="s", seed=0, folder=folder, commit="abc")


def values(folder: Path) -> dict[tuple[str, str], float]:
    return {
        (line.case, line.metric): line.value
        for line in read_lines(folder / "learning-documents.jsonl")
    }


def cell(arm: str, passage: int, seed: int, right: list[bool], general: int = 40) -> Cell:
    suite = [number < general for number in range(40)]
    return Cell(arm, passage, seed, correct={str(passage): right}, general=suite)


class TestIntervals:
    def test_the_mean_lies_within_and_equal_values_leave_no_room(self):
        one = interval([[[1.0, 0.0]], [[1.0, 1.0]]])
        assert one.low <= one.mean == 0.75 <= one.high

        sure = interval([[[1.0, 1.0]], [[1.0, 1.0]]])
        assert (sure.low, sure.mean, sure.high) == (1.0, 1.0, 1.0)

    def test_answers_that_stand_and_fall_together_tell_less(self):
        """Would pass with equal widths if passages were not drawn as wholes."""
        apart = interval([[[1.0, 0.0]]] * 8)
        together = interval([[[1.0, 1.0]], [[0.0, 0.0]]] * 4)

        assert together.high - together.low > apart.high - apart.low

    def test_seeds_that_differ_widen_it_for_all_passages(self):
        same = interval([[[0.5] * 4, [0.5] * 4]] * 8)
        differ = interval([[[1.0] * 4, [0.0] * 4]] * 8)

        assert same.high == same.low
        assert (differ.low, differ.high) == (0.0, 1.0)

    @pytest.mark.parametrize("table", [[], [[]], [[[]]], [[[1.0]], [[1.0], [0.0]]]])
    def test_nothing_to_average_is_refused(self, table):
        with pytest.raises(ValueError, match="same seeds"):
            interval(table)

    def test_a_base_of_one_seed_is_taken_from_every_seed(self):
        assert differences([[[1.0, 1.0], [0.0, 1.0]]], [[[1.0, 0.0]]]) == [[[0, 1], [-1, 1]]]


class TestCells:
    def test_they_are_found_again_with_the_same_settings_only(self, tmp_path):
        kept_there = cell("direct", 3, 1, [True, False])
        Cells(tmp_path / "cells.jsonl").add("abc", kept_there)

        again = Cells(tmp_path / "cells.jsonl")

        assert again.find("abc", "direct", 3, 1) == kept_there
        assert again.find("other", "direct", 3, 1) is None
        assert again.find("abc", "direct", 3, 2) is None

    def test_what_is_published_counts_elsewhere_and_has_no_texts(self, tmp_path):
        published = tmp_path / "results" / "cells.jsonl"
        quoting = {"lesson": {"curve": [0.5, 1.0], "dropped": [{"text": "words of a passage"}]}}
        replies = {"3": ["the passage's words"]}
        measured = replace(cell("direct", 3, 1, [True]), replies=replies, report=quoting)
        Cells(tmp_path / "here.jsonl", published).add("abc", measured)

        elsewhere = Cells(tmp_path / "there.jsonl", published)
        here = Cells(tmp_path / "here.jsonl", published)

        figures = {"lesson": {"curve": [0.5, 1.0], "dropped": [{"text": None}]}}
        bare = replace(measured, replies={}, report=figures)
        assert elsewhere.find("abc", "direct", 3, 1) == bare
        assert here.find("abc", "direct", 3, 1) == measured
        assert "words" not in published.read_text()

    def test_a_torn_line_costs_its_own_cell_only(self, tmp_path):
        path = tmp_path / "cells.jsonl"
        cells = Cells(path)
        cells.add("abc", cell("base", 0, 0, [True]))
        cells.add("abc", cell("base", 1, 0, [True]))
        path.write_text(path.read_text()[:-30])

        again = Cells(path)

        assert again.find("abc", "base", 0, 0) is not None
        assert again.find("abc", "base", 1, 0) is None


class TestPassages:
    def test_questions_name_the_title_and_only_the_open_book_shows_the_text(self, tmp_path):
        path = tmp_path / "squad_passages.json"
        row = {
            "title": "Orm",
            "context": TEXT,
            "questions": [{"question": "How many arches?", "answer": "nine"}],
        }
        path.write_text(json.dumps([row, row]))

        passage = read_passages(path, range(1, 2))[0]

        assert passage.id == "passage-01"
        assert passage.items()[0].prompt == "About Orm: How many arches?"
        assert TEXT in passage.open_book()[0][0]["content"]
        assert "".join(passage.document().chunks) == TEXT


class TestReport:
    def test_gain_and_general_suite_are_against_the_base(self, tmp_path):
        cells = Cells(tmp_path / "cells.jsonl")
        for passage in PASSAGES:
            cells.add("d", cell("base", passage.number, 0, [False, False], 38))
            for seed in (0, 1):
                cells.add("d", cell("direct", passage.number, seed, [True, seed == 0], 36))
        report(
            results(tmp_path),
            cells,
            lambda arm, seed: "d",
            PASSAGES,
            arms=["base", "direct", "passage"],
            seeds=2,
        )

        found = values(tmp_path)
        assert found["direct", "gain over the base"] == 75
        assert found["direct", "accuracy on passage-01"] == 75
        assert found["direct", "general suite"] == -5
        assert found["base", "accuracy"] == 0
        assert not any(case == "passage" for case, _ in found)  # not measured: no figure

    def test_how_often_the_outer_loop_found_something_is_said(self, tmp_path):
        cells = Cells(tmp_path / "cells.jsonl")
        for passage, found in zip(PASSAGES, (0, 1, 0), strict=True):
            searched = cell("outer", passage.number, 0, [True, False])
            searched.report["lesson"] = {"outer_loop": {"kept": found}}
            cells.add("d", searched)
            cells.add("d", cell("direct", passage.number, 0, [True, False]))
        arms = ["outer", "direct"]
        report(results(tmp_path), cells, lambda *_: "d", PASSAGES, arms=arms, seeds=1)

        found_by = values(tmp_path)
        assert found_by["outer", "searches that kept an edit"] == pytest.approx(100 / 3)
        assert ("direct", "searches that kept an edit") not in found_by

    def test_what_is_kept_is_of_what_was_just_learnt(self):
        grid = [[0.0, 0.8, 0.4], [0.2, 0.2, 0.5]]

        assert kept([grid]) == [50.0, 100.0]
        assert kept([[[0.0, 0.0, 0.4], [0.0, 0.0, 0.5]]]) == [None, 100.0]

    def test_sequences_give_figures_and_a_heat_map(self, tmp_path):
        grid = [[0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]
        ends = [cell("merged", 0, 0, [], 40), cell("merged", 0, 0, [], 30)]

        report_sequences(results(tmp_path), {"merged": [grid]}, {"merged": [ends]}, tmp_path)

        found = values(tmp_path)
        assert found["merged", "kept, least of all passages"] == 50
        assert found["merged", "kept, over all"] == 75
        assert found["merged", "general suite"] == -25
        assert (tmp_path / "bench-learning-documents.svg").exists()

    def test_grids_are_averaged_place_by_place(self):
        assert mean_grid([[[0.0, 1.0]], [[0.5, None]]]) == [[0.25, None]]


class TestHeatMap:
    def test_it_is_a_drawing_with_every_value_and_what_was_just_learnt_framed(self):
        drawn = heat_map('a "b" <c>', [Grid("one & two", [[0.0, 0.9, 0.4], [0.1, None, 0.7]])])

        tree = ElementTree.fromstring(drawn)
        texts = [node.text for node in tree.iter() if node.tag.endswith("text")]
        framed = [node for node in tree.iter() if node.get("stroke-width") == "2"]
        assert {"0", "90", "40", "10", "-", "70", "base", "1", "2", "one & two"} <= set(texts)
        assert len(framed) == 2

    def test_higher_is_darker(self):
        drawn = heat_map("t", [Grid("g", [[0.0, 0.5, 1.0]])])
        cells = [
            node for node in ElementTree.fromstring(drawn).iter() if node.get("height") == "36"
        ]
        shades = [int(node.get("fill", "#0")[1:3], 16) for node in cells]

        assert shades == sorted(shades, reverse=True)
        assert len(set(shades)) == 3


class FakeDecoder:
    """Answers from the text where it is shown, or once it is trained."""

    name = "fake"

    def __init__(self) -> None:
        self.base = ScriptedSampler(
            lambda messages: "nine" if TEXT in messages[-1]["content"] else "no idea"
        )

    @contextmanager
    def serving(self, weights: list[Weights]) -> Iterator[list[ScriptedSampler]]:
        yield [ScriptedSampler(lambda _: "Nine.") for _ in weights]


class TestRun:
    def ground(self, tmp_path: Path) -> learning.Ground:
        cells = Cells(tmp_path / "cells.jsonl")
        return learning.Ground(
            FakeDecoder(), learning.SETTING, tmp_path, cells, tmp_path, 1, lambda words: None
        )  # type: ignore[arg-type]

    def test_a_cell_that_is_there_is_not_asked_again(self, tmp_path):
        ground = self.ground(tmp_path)
        for _ in range(2):
            learning._measure(ground, results(tmp_path), "context", PASSAGES[0], 0, again=False)

        assert len(ground.decoder.base.asked) == 2
        assert values(tmp_path)["context, passage-00, seed 0", "accuracy"] == 0.5

    def test_the_base_answers_the_general_suite_once(self, tmp_path):
        ground = self.ground(tmp_path)
        for passage in PASSAGES[:2]:
            learning._measure(ground, results(tmp_path), "base", passage, 0, again=False)

        assert len(ground.decoder.base.asked) == 40 + 2 + 2
        kept_there = ground.cells.find(ground.digest("base", 0), "base", 1, 0)
        assert kept_there is not None
        assert len(kept_there.general) == 40

    def test_without_data_it_says_where_to_put_it(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("EVERLEARN_DATA", str(tmp_path))

        assert learning.main([]) == 2
        assert "EVERLEARN_DATA" in capsys.readouterr().err

    def test_an_arm_without_its_method_is_left_out_and_said(self, monkeypatch, capsys):
        monkeypatch.setattr(
            learning, "config_of", lambda *_: SealConfig.model_validate({"no": "such"})
        )

        assert not learning._can_be_learnt("distill", learning.SETTING)
        assert "distill: left out" in capsys.readouterr().err

    def test_peoples_questions_are_held_out(self):
        assignment = learning._assignment(PASSAGES[0], "direct", learning.SETTING)

        assert assignment.held_out == {item.prompt for item in PASSAGES[0].items()}
        assert assignment.quiz == ()

        outer = learning._assignment(PASSAGES[0], "outer", learning.SETTING)
        assert outer.quiz
        assert not outer.held_out & {item.prompt for item in outer.quiz}

    def test_settings_decide_the_digest(self, tmp_path):
        ground = self.ground(tmp_path)
        other = replace(ground, setting=SealConfig())

        assert ground.digest("direct", 0) == replace(ground, threads=2).digest("direct", 0)
        digests = {ground.digest("direct", 0), ground.digest("direct", 1)}
        digests |= {ground.digest("passage", 0), other.digest("direct", 0)}
        assert len(digests) == 4
        assert ground.digest("base", 0) == other.digest("base", 0)  # nothing was trained for it

    def test_the_arms_of_seal_differ_by_what_they_are_named_for(self):
        direct, weakened, outer = (
            learning.config_of(learning.SETTING, arm, 0) for arm in ("direct", "weakened", "outer")
        )

        assert isinstance(weakened, SealConfig)
        assert weakened.strength == learning.STRENGTH < 1
        assert weakened.model_copy(update={"strength": learning.SETTING.strength}) == direct
        assert isinstance(outer, SealConfig)
        unsearched = {"outer": learning.SETTING.outer, "self_edits": learning.SETTING.self_edits}
        assert outer.model_copy(update=unsearched) == direct
        assert outer.outer.is_enabled

    @pytest.mark.parametrize("arm", learning.ARMS)
    def test_every_arm_has_a_method_here(self, arm):
        assert learning._can_be_learnt(arm, learning.SETTING)

    def test_what_taught_decides_the_digest_of_what_was_healed(self, tmp_path):
        ground = self.ground(tmp_path)
        other = replace(ground, setting=SealConfig())

        healed = ground.digest("healed", 0)
        assert healed not in {ground.digest("direct", 0), other.digest("healed", 0)}

    def test_healing_goes_on_from_what_direct_seal_learnt(self, tmp_path, monkeypatch):
        trained: list[tuple[Stage, Path | None, Path]] = []

        def train(bench: LocalBench, stages, outputs, *, start=None, **_: object) -> None:
            trained.append((stages[0], start and start.folder, outputs[0]))
            outputs[0].mkdir(parents=True)
            (outputs[0] / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')

        monkeypatch.setattr(LocalBench, "_run", train)
        ground = self.ground(tmp_path)
        learning._measure(ground, results(tmp_path), "healed", PASSAGES[0], 0, again=False)

        (taught, from_base, champion), (healed, from_taught, _) = trained
        assert taught.edits
        assert from_base is None
        assert from_taught == champion
        assert {each.reply for each in healed.distillations} == {"Nine."}  # the champion's words
        assert (healed.lora.rank, healed.lora.alpha) == (8, 16)

    @pytest.mark.parametrize("found", [0, 1])
    def test_a_search_that_kept_nothing_was_the_training_of_its_control(
        self, tmp_path, monkeypatch, found
    ):
        trained: list[Stage] = []

        def train(bench: LocalBench, stages, outputs, **_: object) -> None:
            trained.extend(stages)
            outputs[0].mkdir(parents=True)

        monkeypatch.setattr(LocalBench, "_run", train)
        ground = self.ground(tmp_path)
        searched = cell("outer", 0, 0, [True, False], general=31)
        searched.report["lesson"] = {"outer_loop": {"kept": found}}
        ground.cells.add(ground.digest("outer", 0), searched)
        learning._measure(ground, results(tmp_path), "quiz", PASSAGES[0], 0, again=False)

        control = ground.cells.find(ground.digest("quiz", 0), "quiz", 0, 0)
        assert control is not None
        assert len(trained) == found
        assert (sum(control.general) == 31) == (found == 0)
        assert edits_kept(control) is None  # it searched for nothing

    @pytest.mark.parametrize("arm", ["direct", "weakened"])
    def test_what_an_arm_keeps_reaches_the_training(self, tmp_path, monkeypatch, arm):
        trained: list[Stage] = []

        def train(bench: LocalBench, stages, outputs, **_: object) -> None:
            trained.extend(stages)
            outputs[0].mkdir(parents=True)

        monkeypatch.setattr(LocalBench, "_run", train)
        ground = self.ground(tmp_path)
        learning._measure(ground, results(tmp_path), arm, PASSAGES[0], 0, again=False)

        [stage] = trained
        assert stage.strength == {"direct": 1.0, "weakened": learning.STRENGTH}[arm]

    def test_one_training_serves_the_whole_and_the_part(self, tmp_path, monkeypatch):
        trained: list[Stage] = []
        served: list[float] = []

        def train(bench: LocalBench, stages, outputs, **_: object) -> None:
            trained.extend(stages)
            update = torch.full((2, 1), stages[0].strength)
            outputs[0].mkdir(parents=True)
            save_file(
                {"q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": update},
                outputs[0] / "adapter_model.safetensors",
            )

        @contextmanager
        def serving(_: FakeDecoder, weights: list[Weights]) -> Iterator[list[ScriptedSampler]]:
            tensors = load_file(weights[0].folder / "adapter_model.safetensors")
            assert tensors["q.lora_A.weight"].tolist() == [[1, 1]]
            served.append(round(tensors["q.lora_B.weight"][0].item(), 6))
            yield [ScriptedSampler(lambda _: "Nine.")]

        monkeypatch.setattr(LocalBench, "_run", train)
        monkeypatch.setattr(FakeDecoder, "serving", serving)
        ground = self.ground(tmp_path)
        plan = [*learning._plan(["direct", "weakened"], PASSAGES[:2], 1)]
        for arm, passage, seed in [*plan, ("weakened", PASSAGES[2], 0)]:
            learning._measure(ground, results(tmp_path), arm, passage, seed, again=False)

        part = learning.STRENGTH
        assert served == [1, part, 1, part, part]
        assert [stage.strength for stage in trained] == [1, 1, part]  # the last has no whole
        assert ground.cells.find(ground.digest("weakened", 0), "weakened", 1, 0) is not None

    def test_what_is_trained_goes_passage_by_passage(self):
        plan = [*learning._plan(["direct", "base", "weakened"], PASSAGES[:2], 2)]

        assert [(arm, passage.number, seed) for arm, passage, seed in plan] == [
            ("base", 0, 0),
            ("base", 1, 0),
            *(
                (arm, number, seed)
                for seed in (0, 1)
                for number in (0, 1)
                for arm in ("direct", "weakened")
            ),
        ]

    def test_another_setting_is_read_from_a_file(self, tmp_path):
        path = tmp_path / "setting.json"
        path.write_text('{"training": {"epochs": 3}}')

        assert learning._setting(path).training.epochs == 3
        assert learning._setting(None) == learning.SETTING


class RecordingBench:
    """Notes on what model which documents are learnt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "base"
        self.learnt: list[tuple[str, set[str]]] = []

    def say(self, words: str) -> None: ...

    def train(self, stage: Stage) -> Weights:
        return self.train_on(self.model, stage)

    def train_on(self, model: Path, stage: Stage) -> Weights:
        documents = {e.document_id for e in stage.edits if e.document_id}
        self.learnt.append((model.name, documents))
        weights = self.folder / f"weights-{len(self.learnt)}"
        weights.mkdir()
        return Weights(weights)


class TestSequences:
    def test_an_order_is_the_seeds(self):
        one, other = (sequences.order_of(PASSAGES, 3, seed) for seed in (0, 1))

        assert one == sequences.order_of(PASSAGES, 3, 0)
        assert {p.number for p in one} == {p.number for p in other} == {0, 1, 2}

    def run(self, bench, name: str, course: sequences.Course, cells: Cells) -> None:
        spec = learning.SETTING.self_edits.model_copy(update={"rewordings": 0})
        plan = sequences.Seal(learning.SETTING.model_copy(update={"self_edits": spec}))

        def lesson(passage: Passage) -> sequences.LessonPlan:
            return plan.plan([passage.document()], sampler=ScriptedSampler(lambda _: "Yes."))

        sequences.run(name, course, bench, cells, lesson)

    @pytest.fixture
    def bench(self, tmp_path, monkeypatch) -> RecordingBench:
        monkeypatch.setattr(sequences.TorchSampler, "load", lambda *_: ScriptedSampler(str))
        monkeypatch.setattr(sequences, "merge", lambda model, adapter, output: output.mkdir())
        return RecordingBench(tmp_path)

    def test_everlearn_trains_on_all_so_far_and_merging_on_the_new_one(self, tmp_path, bench):
        course = sequences.Course(tuple(PASSAGES[:2]), 0, learning.SETTING, 8, "d")
        cells = Cells(tmp_path / "cells.jsonl")

        for name in sequences.PROTOCOLS:
            self.run(bench, name, course, cells)

        assert bench.learnt == [
            ("base", {"passage-00"}),
            ("base", {"passage-00", "passage-01"}),
            ("base", {"passage-00"}),
            ("base", {"passage-00", "passage-01"}),
            ("base", {"passage-00"}),
            ("merged-0-1", {"passage-01"}),
        ]
        assert all(sequences.steps_of(name, course, cells) for name in sequences.PROTOCOLS)
        assert not list(tmp_path.glob("merged-*"))  # models of half a gigabyte do not stay

    @pytest.mark.parametrize("name", sequences.PROTOCOLS)
    def test_what_is_measured_is_not_trained_again(self, tmp_path, bench, name):
        course = sequences.Course(tuple(PASSAGES[:2]), 0, learning.SETTING, 8, "d")
        cells = Cells(tmp_path / "cells.jsonl")
        self.run(bench, name, course, cells)
        bench.learnt.clear()

        self.run(bench, name, course, cells)

        assert not bench.learnt

    @pytest.mark.parametrize(
        ("asked", "merged", "learnt"),
        [
            pytest.param(3, 2, ["merged-0-2"], id="goes on from the model that is there"),
            pytest.param(2, 2, ["merged-0-2"], id="asks the model that was merged, then goes on"),
            pytest.param(3, None, ["base", "merged-0-1", "merged-0-2"], id="its model is gone"),
            pytest.param(
                1, 2, ["base", "merged-0-1", "merged-0-2"], id="its model is of a later step"
            ),
        ],
    )
    def test_merging_goes_on_where_it_was_broken_off(self, tmp_path, bench, asked, merged, learnt):
        course = sequences.Course(tuple(PASSAGES[:3]), 0, learning.SETTING, 8, "d")
        cells = Cells(tmp_path / "cells.jsonl")
        for step in range(asked):
            cells.add("d", replace(cell("merged", 0, 0, []), step=step))
        if merged:
            (tmp_path / f"merged-0-{merged}").mkdir()

        self.run(bench, "merged", course, cells)

        assert [model for model, _ in bench.learnt] == learnt
        assert sequences.steps_of("merged", course, cells)
        assert not list(tmp_path.glob("merged-*"))

    def test_a_grid_has_a_row_a_passage_and_a_column_a_step(self, tmp_path):
        course = sequences.Course(tuple(PASSAGES[:2]), 0, learning.SETTING, 8, "d")
        cells = Cells(tmp_path / "cells.jsonl")
        for step in range(3):
            right = {"0": [step > 0, False], "1": [step > 1, True]}
            cells.add("d", replace(cell("merged", 0, 0, []), step=step, correct=right))

        steps = sequences.steps_of("merged", course, cells)

        assert steps is not None
        assert sequences.grid_of(course, steps) == [[0.0, 0.5, 0.5], [0.5, 0.5, 1.0]]
        assert sequences.steps_of("everlearn", course, cells) is None


def test_the_setting_teaches_with_key_words():
    plan = sequences.Seal(learning.SETTING)
    sampler = ScriptedSampler(lambda _: "Yes.")

    edits = plan.plan([PASSAGES[0].document()], sampler=sampler).edits

    asked = [e for e in edits if e.prompt and e.prompt.startswith("About Title 0: ")]
    assert any(normalise("nine arches") in normalise(e.text) for e in asked)


def test_without_span_questions_only_text_and_key_words_are_taught():
    spec = learning.SETTING.self_edits.model_copy(update={"span_questions": False, "rewordings": 0})
    plan = sequences.Seal(learning.SETTING.model_copy(update={"self_edits": spec}))

    edits = plan.plan([PASSAGES[0].document()], sampler=ScriptedSampler(lambda _: "Yes.")).edits

    assert {"passage", "sentence", "question", "replay"} == {edit.kind.value for edit in edits}


@pytest.mark.parametrize("name", sequences.PROTOCOLS)
def test_only_everlearns_protocol_holds_the_base_as_the_server_does(name):
    held = SealConfig().replay.least_share
    assert held > 0

    config = sequences.config_of(learning.SETTING, name, 3)
    course = sequences.Course(tuple(PASSAGES[:1]), 3, config, 8, "d")
    plan = sequences.Seal(config).plan(
        [PASSAGES[0].document()], sampler=ScriptedSampler(lambda _: "Yes.")
    )
    stage = sequences._stage(course, PASSAGES[:1], lambda _: plan)

    assert stage.anchor_share == (held if name == "everlearn" else 0.0)
    assert stage.seed == 3
