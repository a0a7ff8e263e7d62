"""The final answer in a reply: found in chatty replies, and not where it is ambiguous."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.rewards.equivalence import are_equal
from adapters.rewards.extraction import extract
from adapters.spec import AnswerKind, AnswerSpec

NUMBER = AnswerSpec(kind=AnswerKind.NUMBER)
MATH = AnswerSpec(kind=AnswerKind.MATH)
CHOICE = AnswerSpec(kind=AnswerKind.CHOICE)
LABEL = AnswerSpec(kind=AnswerKind.LABEL, labels=("positive", "negative", "very positive"))
JSON = AnswerSpec(kind=AnswerKind.JSON)
TEXT = AnswerSpec(kind=AnswerKind.TEXT)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("8", "8"),
        ("8.", "8"),
        ("**8**", "8"),
        ("8 apples", "8"),
        ("$1,234.50", "1234.50"),
        ("50%", "50 %"),
        ("-3", "-3"),
        ("twelve", "twelve"),
        ("The answer is **8**.", "8"),
        ("The answer to 3 + 5 is 8.", "8"),
        ("The answer is:\n\n8", "8"),
        ("Answer: 8", "8"),
        ("Answer: eight", "eight"),
        ("#### 1,234", "1234"),
        ("<answer>8</answer>", "8"),
        ("3 + 5 = 8", "8"),
        ("3+5=8", "8"),
        ("5 - 3 = 2.", "2"),
        ("The answer is 3 + 5 = 8.", "8"),
        ("The sum of 3 and 5 is 8.", "8"),
        ("Sure! 3 + 5 is equal to 8.", "8"),
        ("There are 12 apples.", "12"),
        ("Of 3, 5 and 7, the largest is 7", "7"),
        ("3 + 5 = 8, then 8 * 2 = 16. So we have 16 apples.", "16"),
        ("8\n\nExplanation: 3 + 5 = 8", "8"),
        ("\\boxed{\\frac12}", "1/2"),
        ("The final answer is: $\\boxed{8}$", "8"),
        ("First \\boxed{8}, so \\boxed{8.0}.", "8.0"),
        ("The answer is \\(\\frac{3}{4}\\).", "3/4"),
        ("<think>maybe 3</think>The answer is 8.", "8"),
        ("Solution: First we add. The answer is 8.", "8"),
        ("One step.\n" * 5_000 + "The answer is 8.", "8"),
        ("The result is -2.", "-2"),
        ("4 + 9 equals 13, which is a prime number.", "13"),
        ("We can only answer 12.", "12"),
        ("twenty-one", "twenty-one"),
    ],
)
def test_a_number_is_found(reply: str, answer: str) -> None:
    assert extract(reply, NUMBER) == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("The answer is negative 3.", "-3"),
        ("The answer is minus 3.", "-3"),
        ("Negative 3", "-3"),
        ("**minus 3**", "-3"),
        ("\\boxed{\\text{minus } 3}", "-3"),
        ("#### minus $1,234", "-1234"),
        ("The sum is minus 3.", "-3"),
        ("That gives negative 3 apples.", "-3"),
        ("5 minus 8 equals minus 3", "-3"),
        ("10 minus 3 = 7", "7"),
        ("10 minus 3 is 7", "7"),
        ("The answer is 10 minus 3.", None),
        ("The answer is ten minus 3, which is 7.", None),
    ],
)
@pytest.mark.parametrize("spec", [NUMBER, MATH])
def test_a_sign_may_be_a_word(reply: str, answer: str | None, spec: AnswerSpec) -> None:
    assert extract(reply, spec) == answer


@pytest.mark.parametrize(
    "reply",
    [
        "The answer is not 8.",
        "The answer is definitely not 8.",
        "The answer is not equal to 8.",
        "The answer cannot be 8.",
        "The answer is Not 8 apples.",
        "The answer is not negative 3.",
        "The answer is neither 7 nor 8.",
        "The answer is not 7 or 8.",
        "It is not **8**.",
        "That never gives 8.",
        "8 is not right.",
        "8 isn't right.",
    ],
)
@pytest.mark.parametrize("spec", [NUMBER, MATH])
def test_a_denied_number_is_no_answer(reply: str, spec: AnswerSpec) -> None:
    assert extract(reply, spec) is None


@pytest.mark.parametrize(
    "reply",
    [
        "It is not 7, it is 8.",
        "It is not 7: it is 8",
        "No, it is 8.",
        "I am not sure, but the answer is 8.",
        "The answer is not unique: 8",
        "That is not hard. The answer is 8.",
        "8 with no remainder",
        "The share with no remainder is 8.",
    ],
)
def test_another_denial_does_not_count(reply: str) -> None:
    assert extract(reply, NUMBER) == "8"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   ",
        "I can not help with that.",
        "See chapter 3 of the book.",
        "I cannot say. See chapter 3.",
        "8 or 9",
        "The answer is 8 or 9.",
        "The answer is 8. No, the answer is 9.",
        "The answer is unknown, 3 and 5 do not suffice.",
        "\\boxed{8} or \\boxed{9}",
        "<think>3 + 5 = 8",
        "It was on 2020-05-01",
        "3/4/2020",
        "at 5:30",
        "QX-88",
        "The answer is the 2nd.",
        "3 + 5 = ",
        "8\n\nNo, 3 + 5 = 9",
        "The answer is 8. What is 4 + 5? The answer is 9.",
        "The answer is 8. Or is it? The answer is unknown.",
        "The answer is 1/0.",
        "45 = 4 times",
        "One Five.",
        "Five five.",
    ],
)
def test_no_number_is_better_than_a_wrong_one(reply: str) -> None:
    assert extract(reply, NUMBER) is None


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("\\boxed{\\frac12}", "\\frac12"),
        ("So we get \\boxed{x^{2} + 1}.", "x^{2} + 1"),
        ("The answer is $x^2+1$.", "x^2+1"),
        ("The answer is x^2 + 1.", "x^2 + 1"),
        ("$y = 2x$", "2x"),
        ("2x + 1", "2x + 1"),
        ("The answer is **8**.", "8"),
        ("3 + 5 = 8", "8"),
        ("\\boxed{1} \\boxed{2}", None),
        ("\\boxed{1", None),
        ("It depends on $x$ and $y$.", None),
        ("I do not know.", None),
    ],
)
def test_a_formula_is_found(reply: str, answer: str | None) -> None:
    assert extract(reply, MATH) == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B) Paris", "B"),
        ("B. Paris", "B"),
        ("**B**", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is (b).", "B"),
        ("The correct option is **B) Paris**.", "B"),
        ("Answer: B because it is the capital.", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("A) Rome\nB) Paris\n\nAnswer: B", "B"),
        ("A) Rome\nB) Paris", None),
        ("A dog is an animal.", None),
        ("The answer is a dog.", None),
        ("I think so.", None),
        ("Paris", None),
    ],
)
def test_a_choice_is_found(reply: str, answer: str | None) -> None:
    assert extract(reply, CHOICE) == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("positive", "positive"),
        ("Positive.", "positive"),
        ("The label is **negative**.", "negative"),
        ("I would call it very positive.", "very positive"),
        ("Answer: negative. It is not positive.", "negative"),
        ("It is not positive.", None),
        ("positive or negative", None),
        ("neutral", None),
        ("positively", None),
    ],
)
def test_a_label_is_found(reply: str, answer: str | None) -> None:
    assert extract(reply, LABEL) == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ('{"b": 1, "a": 2.0}', '{"a":2,"b":1}'),
        ('Here it is:\n```json\n{"a": 1}\n```\nDone.', '{"a":1}'),
        ('Sure: {"a": [1, 2]} as asked.', '{"a":[1,2]}'),
        ("true", "true"),
        ('"text"', '"text"'),
        ('{"a": 1} or {"a": 2}', None),
        ('{"a": 1, "a": 2}', None),
        ('{"a": NaN}', None),
        ('{"a": 1', None),
        ("no JSON", None),
        ("[" * 15_000, None),
    ],
)
def test_json_is_found(reply: str, answer: str | None) -> None:
    assert extract(reply, JSON) == answer


@pytest.mark.parametrize(
    ("pattern", "reply", "answer"),
    [
        (r"id=(\d+)", "id=7 it is", "7"),
        (r"(x)?(?P<answer>\d+)", "x12", "12"),
        (r"\d+", "12", "12"),
        (r"\d+", "12 13", None),
        (r"\d+", "12 and 12", "12"),
        (r"(\d+)?b", "b", None),
        (r"\d+", "none", None),
    ],
)
def test_a_pattern_finds_its_answer(pattern: str, reply: str, answer: str | None) -> None:
    assert extract(reply, AnswerSpec(kind=AnswerKind.REGEX, pattern=pattern)) == answer


def test_a_pattern_that_hangs_ends_without_an_answer() -> None:
    spec = AnswerSpec(kind=AnswerKind.REGEX, pattern=r"^(a|aa|b?a)+$")
    began = time.monotonic()

    assert extract("a" * 5_000 + "c", spec) is None
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "part", ["<answer>", "\\(", "1,111,", "**", "</think>", "```\n", "is ", "{"]
)
@pytest.mark.parametrize("spec", [NUMBER, MATH, CHOICE, LABEL, JSON, TEXT])
def test_a_hostile_reply_takes_no_time(part: str, spec: AnswerSpec) -> None:
    began = time.process_time()

    extract(part * (19_999 // len(part)), spec)

    assert time.process_time() - began < 2


def test_text_is_the_whole_reply_in_any_case() -> None:
    assert extract("  The Cat.\n", TEXT) == extract("the cat", TEXT) == "the cat"
    assert extract("-5", TEXT) != extract("5", TEXT)
    assert extract("...", TEXT) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "label"}, "need two labels"),
        ({"kind": "regex"}, "need a pattern"),
        ({"kind": "regex", "pattern": "(a"}, "no regular expression"),
    ],
)
def test_a_kind_without_what_it_needs_is_refused(fields: dict[str, str], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        AnswerSpec(**fields)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=200)
@given(
    st.text(max_size=200),
    st.sampled_from([NUMBER, CHOICE, LABEL, JSON, TEXT]),
)
def test_whatever_is_said_an_answer_is_none_or_equals_itself(reply: str, spec: AnswerSpec) -> None:
    answer = extract(reply, spec)

    assert answer is None or (answer.strip() and are_equal(answer, answer, spec))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(-(10**6), 10**6),
    st.sampled_from(["{}", "{}.", "The answer is {}.", "**{}**", "1 + 1 = {}", "It is {} cats."]),
)
def test_a_plain_number_is_read_exactly(number: int, form: str) -> None:
    answer = extract(form.format(number), NUMBER)

    assert answer is not None
    assert are_equal(answer, str(number), NUMBER)
