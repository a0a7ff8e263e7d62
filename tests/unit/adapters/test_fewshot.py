"""SEAL few-shot: what the model chooses is checked, tried on left-out examples, and trained once."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest

from adapters.evaluation.exam import sit_exam
from adapters.lesson import stages_from_json, stages_to_json
from adapters.methods import Assignment, build_method
from adapters.methods.fewshot_edit import InvalidEdit, edit_prompt, read_edit
from adapters.methods.seal_fewshot import SealFewShot
from adapters.methods.task_lessons import ASKED, TOO_LONG, asking_prompt, task_lesson
from adapters.rewards.exact import is_exact
from adapters.spec import METHOD_CONFIG, FewShotConfig, FewShotReplay
from adapters.task_prompts import exam_items, task_prompt
from adapters.types import ChatMessage, EditKind, Example, Grader, Task
from tests.support.workbench import PaperBench, Script, ScriptedSampler

CONFIG = FewShotConfig(replay=FewShotReplay(prompts=2, prompts_per_epoch=1, least_share=0.7))
GRIDS = Task(
    "tsk_grid",
    "recolour",
    "",
    (Example("1 0\n0 2", "2 0\n0 1"), Example("1 1\n2 0", "2 2\n1 0"), Example("0 2", "0 1")),
    (Example("2 2\n2 1", "1 1\n1 2"),),
    "grid",
)
LABELS = Task(
    "tsk_text",
    "kinds",
    "Fruit or root?",
    (
        Example("a red apple", "fruit"),
        Example("a carrot", "root"),
        Example("a pear", "fruit"),
        Example("one turnip", "root"),
    ),
    (Example("a plum", "fruit"),),
)


def edit_json(**changes: Any) -> str:
    augmentations = dict.fromkeys(("basic", "size", "chained", "repeated", "colours"), False)
    training = {"loss_on": "output", "learning_rate": 0.0005, "epochs": 2}
    augmentations |= {name: value for name, value in changes.items() if name in augmentations}
    training |= {name: value for name, value in changes.items() if name in training}
    return json.dumps({"augmentations": augmentations, "training": training})


def asked_input(conversation: Sequence[ChatMessage]) -> str:
    return re.findall(r"Input:\n(.*?)\nOutput:", conversation[-1]["content"], re.S)[-1]


def truth(task: Task) -> dict[str, str]:
    return {each.input: each.output for each in (*task.examples, *task.tests)}


def bench_of(
    task: Task,
    edits: Sequence[str],
    *,
    learns: Callable[[int], bool] = lambda number: True,
    base_knows: int = 0,
    diverging: frozenset[int] = frozenset(),
) -> PaperBench:
    """The base writes these edits in turn, and knows the first examples; trial n learns or not."""
    writings = cycle(edits)
    known = dict(list(truth(task).items())[:base_knows])

    def base(conversation: Sequence[ChatMessage]) -> str:
        text = conversation[-1]["content"]
        if text == edit_prompt(task):
            return next(writings)
        return known.get(asked_input(conversation), "no idea") if "Output:" in text else "Yes."

    def trained(weights: Any) -> Script:
        number = int(weights.folder.name.removeprefix("trial-"))
        right = truth(task) if learns(number) else {}
        return lambda conversation: right.get(asked_input(conversation), "")

    return PaperBench(ScriptedSampler(base), trained, diverging=diverging)


def learn(task: Task, bench: PaperBench, **changes: Any) -> Any:
    method = build_method(CONFIG.model_copy(update=changes))
    return method.learn(Assignment(tasks=(task,)), bench)


def test_the_best_self_edit_is_trained_on_all_examples() -> None:
    plain, turned = edit_json(), edit_json(basic=True, learning_rate=0.001)
    bench = bench_of(GRIDS, [plain, turned], learns=lambda number: number >= 3)

    outcome = learn(GRIDS, bench, candidates=2)

    [(stage, start)] = bench.trainings
    assert (stage.anchors_per_epoch, stage.anchor_share) == (1, 0.7)
    assert start is None
    assert stage.training.learning_rate == 0.001
    taught = {edit.text for edit in stage.edits if edit.kind is EditKind.TASK}
    assert {example.output for example in GRIDS.examples} <= taught
    assert [tried["right"] for tried in outcome.report["fewshot"]["tried"]] == [0, 3]
    assert outcome.report["fewshot"]["chosen"] == 1
    assert bench.stages == ["self_edits", "try_out", "training"]


def test_each_trial_leaves_its_example_out_of_all_that_it_sees() -> None:
    bench = bench_of(GRIDS, [edit_json(basic=True, colours=True, loss_on="all")])

    learn(GRIDS, bench, candidates=1)

    assert len(bench.trials) == 3
    inputs = [example.input for example in GRIDS.examples]
    hidden = []
    for trial in bench.trials:
        text = "\n\n".join(f"{edit.prompt}{edit.text}" for edit in trial.edits)
        hidden.append([one for one in inputs if f"Input:\n{one}\nOutput:" not in text])
    assert sorted(map(tuple, hidden)) == sorted((one,) for one in inputs)


def test_tests_are_neither_shown_nor_taught_nor_scored_on() -> None:
    bench = bench_of(GRIDS, [edit_json(basic=True, size=True, chained=True, colours=True)])

    learn(GRIDS, bench, candidates=1)

    [test] = GRIDS.tests
    asked = "\n".join(message["content"] for said in bench.base.asked for message in said)
    stages = [*bench.trials, *(stage for stage, _ in bench.trainings)]
    taught = "\n\n".join(f"{edit.prompt}{edit.text}" for stage in stages for edit in stage.edits)
    assert f"Input:\n{test.input}\n" not in asked
    assert f"Input:\n{test.input}\n" not in taught


def test_a_view_that_holds_a_tests_input_is_left_out() -> None:
    turned = replace(GRIDS, tests=(Example("0 1\n2 0", "0 2\n1 0"),))  # example 1, mirrored
    edit, _ = read_edit(edit_json(basic=True))

    lesson = task_lesson(turned, edit, CONFIG)

    assert lesson.dropped[ASKED] >= 1
    assert "Input:\n0 1\n2 0\nOutput:" not in "".join(str(edit.prompt) for edit in lesson.edits)


def test_what_is_wrong_with_an_edit_is_said_without_the_models_words() -> None:
    """The reason stays in the run's report when the task has been forgotten."""
    said = json.loads(edit_json())
    for place in (said, said["training"]):
        place["the code is 4711"] = 1
        with pytest.raises(InvalidEdit) as refused:
            read_edit(json.dumps(said))
        assert "4711" not in str(refused.value)
        del place["the code is 4711"]


def test_nothing_is_trained_where_no_self_edit_beats_the_base() -> None:
    bench = bench_of(GRIDS, [edit_json()], learns=lambda _: False)

    outcome = learn(GRIDS, bench)

    assert outcome.weights is None
    assert "0 of 3 against 0" in outcome.report["no_update"]
    assert outcome.report["fewshot"]["base_right"] == 0
    assert bench.trainings == []


def test_as_good_as_the_base_is_not_better() -> None:
    bench = bench_of(GRIDS, [edit_json()], base_knows=3)

    assert learn(GRIDS, bench).weights is None


def test_of_equal_scores_the_cheaper_wins() -> None:
    bench = bench_of(GRIDS, [edit_json(epochs=5), edit_json(epochs=2), edit_json(epochs=9)])

    outcome = learn(GRIDS, bench, candidates=3)

    assert outcome.report["fewshot"]["chosen"] == 1
    assert bench.trainings[0][0].training.epochs == 2


def test_what_is_invalid_repeated_or_too_dear_is_dropped_with_its_reason() -> None:
    replies = [
        "I would turn them.",
        edit_json(epochs=0),
        edit_json(basic=True, chained=True, colours=True, epochs=20),
        edit_json(),
        f"Sure! Here it is: {edit_json()} Good luck.",
    ]
    bench = bench_of(GRIDS, replies)

    report = learn(GRIDS, bench).report["fewshot"]

    assert report["asked"] == 5
    assert report["repaired"] == 1
    assert report["dropped"] == {
        "invalid: no JSON": 1,
        "invalid: not of the form: training.epochs": 1,
        "the same as another": 1,
        "too many steps": 1,
    }
    assert len(report["tried"]) == 1
    assert not report["is_default"]


def test_the_fixed_edit_stands_in_where_none_is_valid() -> None:
    bench = bench_of(LABELS, ["no"])

    outcome = learn(LABELS, bench)

    assert outcome.weights is not None
    assert outcome.report["fewshot"]["is_default"]
    assert outcome.report["fewshot"]["dropped"] == {"invalid: no JSON": 5}


def test_a_trial_that_diverges_counts_as_wrong() -> None:
    bench = bench_of(GRIDS, [edit_json()], diverging=frozenset({1}))

    report = learn(GRIDS, bench, candidates=1).report["fewshot"]

    assert report["tried"][0]["right"] == 2
    assert report["diverged"] == 1


def test_a_second_attempt_trains_the_same_without_asking_again() -> None:
    bench = bench_of(GRIDS, [edit_json(), edit_json(colours=True)])
    first = learn(GRIDS, bench, candidates=2)
    again = bench_of(GRIDS, ["never asked"])
    again.kept = json.loads(json.dumps(bench.kept))
    [(kept, _)] = bench.trainings

    second = learn(GRIDS, again, candidates=2)

    assert again.base.asked == []
    assert again.trainings[0][0] == kept
    assert stages_from_json(stages_to_json([kept])) == [kept]  # as the run's record gives it back
    assert second.report == first.report


def test_one_example_is_trained_by_the_choice_untried() -> None:
    bench = bench_of(replace(GRIDS, examples=GRIDS.examples[:1]), [edit_json()])

    outcome = learn(replace(GRIDS, examples=GRIDS.examples[:1]), bench)

    assert outcome.weights is not None
    assert outcome.report["fewshot"]["left_out"] == 0
    assert bench.trials == []


def test_an_example_too_long_for_a_prompt_is_no_lesson() -> None:
    long = replace(LABELS, examples=(Example("word " * 5000, "a"), Example("term " * 5000, "b")))
    bench = bench_of(long, [edit_json()])

    outcome = learn(long, bench)

    assert outcome.weights is None
    assert "smaller" in outcome.report["no_update"]
    edit, _ = read_edit(edit_json())
    assert task_lesson(long, edit, CONFIG).dropped == {TOO_LONG: 2}


def test_loss_on_all_tokens_adds_the_pair_as_plain_text() -> None:
    output, everything = (read_edit(edit_json(loss_on=on))[0] for on in ("output", "all"))

    few, many = (task_lesson(LABELS, edit, CONFIG).edits for edit in (output, everything))

    assert len(many) == 2 * len(few)
    assert {edit.prompt for edit in many if edit not in few} == {None}


def test_texts_are_varied_only_where_the_outputs_are_labels() -> None:
    edit, _ = read_edit(edit_json(basic=True))
    copied = replace(LABELS, examples=(Example("abc", "cba"), Example("xyz", "zyx")))

    assert len(task_lesson(copied, edit, CONFIG).edits) == 2
    varied = task_lesson(LABELS, edit, CONFIG).edits
    assert any("A CARROT\nOutput:" in str(edit.prompt) for edit in varied)
    assert {edit.text for edit in varied} == {"fruit", "root"}


def test_lessons_keep_to_their_bound_and_the_plain_examples() -> None:
    edit, _ = read_edit(edit_json(basic=True, chained=True, colours=True))
    config = CONFIG.model_copy(update={"most_examples": 10})

    lesson = task_lesson(GRIDS, edit, config)

    assert len(lesson.edits) == 10
    assert [edit.text for edit in lesson.edits[:3]] == [one.output for one in GRIDS.examples]
    assert lesson == task_lesson(GRIDS, edit, config)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"augmentations": {}}',
        edit_json(learning_rate=float("nan")),
        edit_json(learning_rate=1),
        edit_json(epochs=2.5),
        edit_json(basic="yes"),
        edit_json(loss_on="some"),
        edit_json().replace('"size"', '"sise"'),
    ],
)
def test_a_reply_without_a_valid_self_edit_is_refused(reply: str) -> None:
    with pytest.raises(InvalidEdit):
        read_edit(reply)


def test_the_form_that_is_asked_for_is_valid_itself() -> None:
    prompt = edit_prompt(GRIDS)

    assert read_edit(prompt[prompt.index('{"aug') :])[0].training.epochs == 3


def test_the_plain_examples_come_before_all_that_is_made_of_them() -> None:
    edit, _ = read_edit(edit_json(basic=True, size=True, repeated=True))
    config = CONFIG.model_copy(update={"most_examples": 8})  # there are more plain pairs

    lesson = task_lesson(LABELS, edit, config)

    inputs = [
        re.findall(r"Input:\n(.*?)\nOutput:", str(each.prompt), re.S)[-1] for each in lesson.edits
    ]
    assert len(inputs) == 8
    assert set(inputs) <= {each.input for each in LABELS.examples}


def test_tests_that_read_alike_are_one_question() -> None:
    test = LABELS.tests[0]
    twice = replace(LABELS, tests=(test, Example(test.input, "another"), *LABELS.tests[1:]))

    assert exam_items(twice, shown=4, max_tokens=2048) == exam_items(
        LABELS, shown=4, max_tokens=2048
    )


def test_a_view_of_another_shape_is_no_test() -> None:
    row = replace(GRIDS, tests=(Example("1 0 0 2", "2 0 0 1"),))  # an example's cells in one line
    assert any(each.input == "1 0\n0 2" for each in GRIDS.examples)
    edit, _ = read_edit(edit_json())

    assert ASKED not in task_lesson(row, edit, CONFIG).dropped


def test_a_left_out_example_is_asked_as_a_test_is() -> None:
    [item] = exam_items(LABELS, shown=4, max_tokens=2048)
    asked = asking_prompt(LABELS, CONFIG, without=LABELS.examples[0])

    assert item.prompt == task_prompt(LABELS, LABELS.examples, "a plum")
    assert item.grader is Grader.EXACT
    assert item.document_id == LABELS.id
    assert asked == task_prompt(LABELS, LABELS.examples[1:], "a red apple")


def test_an_exam_shows_as_many_examples_as_fit() -> None:
    one_shown = task_prompt(GRIDS, GRIDS.examples[:1], GRIDS.tests[0].input)
    enough = 64 + len(one_shown) + len(GRIDS.tests[0].output)

    [item] = exam_items(GRIDS, shown=4, max_tokens=enough)
    [less] = exam_items(GRIDS, shown=4, max_tokens=enough - 1)

    assert item.prompt == one_shown
    assert less.prompt == task_prompt(GRIDS, (), GRIDS.tests[0].input)


def test_exact_answers_differ_in_white_space_at_most() -> None:
    assert is_exact(" 1 0\n0  1\n", ["1 0\n0 1"])
    assert not is_exact("1 0 0 1", ["1 0\n0 1"])
    assert not is_exact("The answer is 1 0\n0 1", ["1 0\n0 1"])
    assert not is_exact("", [""])
    items = exam_items(LABELS, shown=0, max_tokens=2048)
    said = [sit_exam(items, ScriptedSampler(lambda _, r=r: r)) for r in ("fruit", "fruit, I think")]
    assert [answer.is_correct for (answer,) in said] == [True, False]


def test_the_config_is_read_by_its_type() -> None:
    read = METHOD_CONFIG.validate_python({"type": "seal-fewshot", "candidates": 7})

    assert isinstance(read, FewShotConfig)
    assert isinstance(build_method(read), SealFewShot)
    assert read.training.batch_size == 2
