"""Grading: what counts as the same answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.rewards.answers import is_correct, normalise


@pytest.mark.parametrize(
    ("reply", "answers"),
    [
        ("The capital is Paris.", ["Paris"]),
        ("it was founded by ILSE BRANDVOLD", ["Ilse Brandvold"]),
        ("It holds 4312 pieces", ["4,312"]),
        ("It holds 4,312 pieces", ["4312"]),
        ("It weighs 7.4 kg.", ["7.4"]),
        ("On March 14", ["14 March", "March 14"]),
        ("That is Okander\u2019s shop", ["Okander"]),
        ("the Pale Heron", ["A Pale Heron"]),
    ],
)
def test_same_answer_in_other_dress_is_right(reply: str, answers: list[str]) -> None:
    assert is_correct(reply, answers)


@pytest.mark.parametrize(
    ("reply", "answers"),
    [
        ("Parisian", ["Paris"]),
        ("It holds 43,120 pieces", ["4312"]),
        ("It weighs 17.4 kg", ["7.4"]),
        ("", ["Paris"]),
        ("anything", []),
        ("anything at all", ["the", "?", ""]),
    ],
)
def test_other_answer_is_wrong(reply: str, answers: list[str]) -> None:
    assert not is_correct(reply, answers)


@given(st.text())
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(), st.text(min_size=1), st.text())
def test_an_answer_among_other_words_is_found(before: str, answer: str, after: str) -> None:
    if normalise(answer):
        assert is_correct(f"{normalise(before)} {normalise(answer)} {normalise(after)}", [answer])
