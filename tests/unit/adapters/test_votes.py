"""Which answers are the same, and who wins the vote."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.rewards.equivalence import are_equal, cluster
from adapters.rewards.formulas import Comparer
from adapters.rewards.votes import tally
from adapters.spec import AnswerKind, AnswerSpec

NUMBER = AnswerSpec(kind=AnswerKind.NUMBER)
MATH = AnswerSpec(kind=AnswerKind.MATH)
JSON = AnswerSpec(kind=AnswerKind.JSON)
TOWER = "9^{9^{9^{9^9}}}"
"""A formula that no computer evaluates."""


@pytest.mark.parametrize(
    ("a", "b", "spec"),
    [
        ("1/2", "0.5", NUMBER),
        ("50 %", "1/2", NUMBER),
        ("\\frac12", ".50", NUMBER),
        ("1,234", "1234.0", NUMBER),
        ("twelve", "12", NUMBER),
        ("$8", "8", NUMBER),
        ("\u22123", "-3", NUMBER),
        ("1 1/2", "3/2", NUMBER),
        ("1e3", "1000", NUMBER),
        ("1/2", "\\frac{2}{4}", MATH),
        ("x^2+2x+1", "(x+1)^2", MATH),
        ("\\sqrt{8}", "2\\sqrt{2}", MATH),
        ("x = 5", "5", MATH),
        ('{"a": 1, "b": [1.0]}', '{"b": [1], "a": 1.0}', JSON),
        ("B) Paris", "b", AnswerSpec(kind=AnswerKind.CHOICE)),
        ("Yes", "yes", AnswerSpec(kind=AnswerKind.LABEL, labels=("yes", "no"))),
        ("The Cat", "the  cat.", AnswerSpec(kind=AnswerKind.TEXT)),
    ],
)
def test_equal_answers_are_equal_both_ways(a: str, b: str, spec: AnswerSpec) -> None:
    assert are_equal(a, b, spec)
    assert are_equal(b, a, spec)
    assert cluster([a, None, b], spec) == [0, None, 0]


@pytest.mark.parametrize(
    ("a", "b", "spec"),
    [
        ("8", "9", NUMBER),
        ("50 %", "50", NUMBER),
        ("0.333", "1/3", NUMBER),
        ("-3", "3", NUMBER),
        ("", "", NUMBER),
        ("eels", "eels", NUMBER),
        ("x", "y", MATH),
        ("x^2", "x^3", MATH),
        ('{"a": true}', '{"a": 1}', JSON),
        ('["1"]', "[1]", JSON),
        ("[1, 2]", "[2, 1]", JSON),
        ("A", "B", AnswerSpec(kind=AnswerKind.CHOICE)),
        ("-5", "5", AnswerSpec(kind=AnswerKind.REGEX, pattern=".+")),
    ],
)
def test_others_are_not(a: str, b: str, spec: AnswerSpec) -> None:
    assert not are_equal(a, b, spec)
    assert not are_equal(b, a, spec)


def test_a_formula_that_takes_for_ever_is_unequal_and_the_next_one_is_compared() -> None:
    comparer = Comparer(limit_s=0.5)
    verdicts: list[bool] = []

    def ask() -> None:  # no main thread, as in a worker's pool
        verdicts.append(comparer.are_equal("1", "1.0"))
        verdicts.append(comparer.are_equal(TOWER, f"{TOWER}-1"))
        verdicts.append(comparer.are_equal("x+x", "2x"))

    began = time.monotonic()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    comparer.close()

    assert verdicts == [True, False, True]
    assert time.monotonic() - began < 30


def test_a_formula_that_hangs_again_and_again_is_compared_no_more() -> None:
    comparer = Comparer(limit_s=0.05)
    for number in range(3):
        assert not comparer.are_equal(TOWER, f"{TOWER}-{number}")

    began = time.monotonic()
    assert not any(comparer.are_equal(TOWER, f"x+{number}") for number in range(1000))
    assert time.monotonic() - began < 10  # 1,000 waits would take 50
    comparer.close()


def test_a_formula_is_not_run_as_code() -> None:
    comparer = Comparer()

    assert not comparer.are_equal("__import__('os').getpid()", "1")
    assert not comparer.are_equal("x" * 300, "x" * 300)

    comparer.close()


def test_clusters_are_what_is_linked_whatever_the_order() -> None:
    answers = ["x+1", "1/2", None, "1+x", "0.5", "y"]

    assert cluster(answers, MATH) == [0, 1, None, 0, 1, 2]
    assert cluster(answers[::-1], MATH) == [0, 1, 2, None, 1, 2]


def test_the_majority_wins_and_is_a_share_of_all_votes() -> None:
    outcome = tally([0, 0, 1, None])

    assert (outcome.winner, outcome.agreement, outcome.answered) == (0, 0.5, 0.75)
    assert outcome.answers == 2


@pytest.mark.parametrize("clusters", [[], [None, None], [None, None, None, 0, 1]])
def test_no_answer_never_wins_and_neither_does_a_tie(clusters: list[int | None]) -> None:
    assert tally(clusters).winner is None


def test_one_vote_beats_any_number_of_no_answers() -> None:
    outcome = tally([None, None, 0, None])

    assert (outcome.winner, outcome.agreement) == (0, 0.25)


VOTES = st.lists(st.sampled_from([None, "1/2", "0.5", "50 %", "2", "two", "3", "eels", ""]))


@settings(deadline=None)
@given(VOTES, st.randoms(use_true_random=False))
def test_the_outcome_does_not_depend_on_the_order(votes: list[str | None], draw: object) -> None:
    shuffled = list(votes)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]

    def outcome(answers: list[str | None]) -> tuple[set[str | None], float, float, bool]:
        clusters = cluster(answers, NUMBER)
        counted = tally(clusters)
        winners = {
            answer
            for answer, number in zip(answers, clusters, strict=True)
            if number is not None and number == counted.winner
        }
        return winners, counted.agreement, counted.answered, counted.is_tie

    assert outcome(votes) == outcome(shuffled)


@settings(deadline=None)
@given(VOTES)
def test_what_says_nothing_never_wins(votes: list[str | None]) -> None:
    clusters = cluster(votes, NUMBER)
    counted = tally(clusters)

    for answer, number in zip(votes, clusters, strict=True):
        if answer in (None, "", "eels"):
            assert number is None
    assert 0 <= counted.agreement <= counted.answered <= 1
    assert (counted.winner is None) == (counted.is_tie or counted.answered == 0)


@settings(deadline=None)
@given(VOTES.filter(bool))
def test_equality_and_clusters_say_the_same(votes: list[str | None]) -> None:
    clusters = cluster(votes, NUMBER)

    for one, first in zip(votes, clusters, strict=True):
        for other, second in zip(votes, clusters, strict=True):
            if one is not None and other is not None and first is not None:
                assert are_equal(one, other, NUMBER) == (first == second)
