"""Graders: the same answer in other dress is right, another answer is not."""

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evaluation.exam import sit_exam
from adapters.evaluation.grading import grade, grader_of
from adapters.rewards.exact import is_exact
from adapters.rewards.numbers import is_number_right, quantities_in
from adapters.types import ChatMessage, ExamItem, Grader, ItemKind, build_item
from tests.support.workbench import ScriptedSampler


def item(grader: Grader, *answers: str, prompt: str = "How many?") -> ExamItem:
    return build_item(ItemKind.USER, "doc", prompt=prompt, answers=answers, grader=grader)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12 cranes", 12),
        ("It has twelve.", 12),
        ("a dozen", 12),
        ("4,312", 4312),
        ("4 312 pears", 4312),
        ("4\u202f312", 4312),
        ("four thousand three hundred and twelve", 4312),
        ("Twenty-one", 21),
        ("one hundred", 100),
        ("two hundred thousand", 200_000),
        ("3 million", 3e6),
        ("2.5 thousand", 2500),
        ("$1,000.50", 1000.5),
        ("12km", 12),
        ("1.5e3", 1500),
        ("-5", -5),
        ("minus five", -5),
        ("minus 5", -5),
        ("It was Minus 5.5 degrees.", -5.5),
        ("negative 5", -5),
        ("negative five", -5),
        ("One.", 1),
        ("7.4 kg.", 7.4),
    ],
)
def test_a_number_is_read_in_figures_and_words(text: str, value: float) -> None:
    [found] = quantities_in(text)

    assert math.isclose(found.value, value)
    assert is_number_right(text, [repr(float(value))])


@pytest.mark.parametrize(
    "text",
    [
        "3 May 1902",
        "May 3rd, 1902",
        "in May 1902",
        "1902-05-03",
        "3/5/1902",
        "at 12:30",
        "the 12th",
        "part QX-88",
        "1.2.3",
        "someone",
        "",
    ],
)
def test_dates_times_ordinals_and_codes_are_no_numbers(text: str) -> None:
    assert quantities_in(text) == []


@pytest.mark.parametrize(
    ("reply", "answer", "is_right"),
    [
        ("twelve", "12", True),
        ("On 3 May 1902 it had 12.", "12", True),
        ("one of the 12", "12", True),
        ("50 percent", "50", True),
        ("50%", "0.5", True),
        ("0.5", "50 %", True),
        ("0.5", "50", False),
        ("120", "12", False),
        ("12 or 13", "12", False),
        ("twenty", "22", False),
        ("minus 5", "5", False),
        ("10 to 12", "10", False),
        ("1.000,5", "1", False),
        ("I do not know.", "12", False),
        ("12", "3 May 1902", False),
    ],
)
def test_the_one_number_of_a_reply_decides(reply: str, answer: str, is_right: bool) -> None:
    assert is_number_right(reply, [answer]) is is_right


def test_a_number_that_the_question_names_is_no_answer() -> None:
    question = "How many cranes had the harbour in 1902?"

    assert is_number_right("In 1902 it had twelve cranes.", ["12"], question=question)
    assert not is_number_right("In 1902.", ["12"], question=question)
    assert is_number_right("In 1902.", ["1902"], question=question)


@given(st.integers(0, 10**12), st.sampled_from(["{}", "{:,}", "It is {:,} tons.", "about {} of"]))
def test_every_whole_number_is_itself_however_written(number: int, form: str) -> None:
    assert is_number_right(form.format(number), [str(number)])
    assert not is_number_right(form.format(number), [str(number + max(1, number // 1000))])


@given(st.text(max_size=80), st.text(max_size=40))
def test_any_text_can_be_read_for_numbers(reply: str, answer: str) -> None:
    is_number_right(reply, [answer], question=answer)

    assert all(not math.isnan(found.value) for found in quantities_in(reply))


@given(st.floats(1e-3, 1e9), st.floats(-9e-7, 9e-7))
def test_the_tolerance_is_relative(value: float, off: float) -> None:
    assert is_number_right(f"{value * (1 + off / 2):.12f}", [f"{value:.12f}"])
    assert not is_number_right(f"{value * 1.01:.12f}", [f"{value:.12f}"])


def test_exact_takes_white_space_aside_and_nothing_else() -> None:
    grid = "1 2\n3 4"

    assert is_exact(" 1  2 \n\n3 4\n", [grid])
    assert not is_exact("1 2 3 4", [grid])
    assert not is_exact("12\n34", [grid])
    assert not is_exact("The grid is\n1 2\n3 4", [grid])
    assert not is_exact("Label", ["label"])
    assert not is_exact("", [""])


def test_exact_compares_json_however_it_is_laid_out() -> None:
    value = {"a": [1, 2], "b": "x y"}

    assert is_exact(json.dumps(value, indent=4), [json.dumps(value)])
    assert not is_exact('{"a":[1,2],"b":"xy"}', [json.dumps(value)])
    assert not is_exact('{"a":[1,2]', [json.dumps(value)])


_CELLS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4)


@given(_CELLS, _CELLS)
def test_two_grids_are_the_same_only_when_they_are(
    one: list[list[int]], two: list[list[int]]
) -> None:
    def drawn(rows: list[list[int]], gap: str) -> str:
        return "\n".join(gap.join(map(str, row)) for row in rows)

    assert is_exact(drawn(one, "  "), [drawn(two, " ")]) is (one == two)


@given(st.text(max_size=60))
def test_a_text_is_exactly_itself(text: str) -> None:
    assert is_exact(f"\n {text} ", [text]) is bool(text.split())


def yes_to(words: str) -> ScriptedSampler:
    """A judge that likes replies with these words."""

    def reply(conversation: Sequence[ChatMessage]) -> str:
        return "Yes." if words in conversation[-1]["content"] else "Maybe."

    return ScriptedSampler(reply)


def test_each_item_is_graded_by_its_own_grader() -> None:
    items = [
        item(Grader.MATCH, "Ada"),
        item(Grader.NUMERIC, "12"),
        item(Grader.EXACT, "1 2"),
        item(Grader.JUDGE, "the lamp was automated"),
        item(Grader.JUDGE, "the lamp was automated"),
    ]
    replies = ["It was Ada.", "twelve", "It is 1 2", "Its light runs by itself.", "No lamp."]

    assert grade(items, replies, yes_to("runs by itself")) == [True, True, False, True, False]


def test_without_a_trusted_judge_its_items_are_matched_and_said_to_be() -> None:
    asked = item(Grader.JUDGE, "the lamp was automated")

    assert grade([asked, asked], ["Because the lamp was automated.", "It runs itself."]) == [
        True,
        False,
    ]
    assert grader_of(asked, is_judge_trusted=False) is Grader.MATCH
    assert grader_of(asked, is_judge_trusted=True) is Grader.JUDGE


def test_an_exam_uses_each_items_grader() -> None:
    items = [item(Grader.NUMERIC, "12"), item(Grader.JUDGE, "a dozen", prompt="Who?")]
    sampler = ScriptedSampler(lambda _: "twelve of them")

    [by_number, by_judge] = sit_exam(items, sampler, judge_sampler=yes_to("twelve of them"))
    [_, by_match] = sit_exam(items, sampler)

    assert (by_number.is_correct, by_judge.is_correct, by_match.is_correct) == (True, True, False)


def test_replies_that_do_not_fit_the_items_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        grade([item(Grader.MATCH, "a")], [])
