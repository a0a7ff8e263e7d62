"""The judge may look after every reply, and still errs no more often than it says."""

import json
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.services.judge import (
    Comparison,
    Pair,
    Rules,
    Verdict,
    decide,
    harmful,
    in_time,
    in_turn,
)

ALPHA = 0.05
MARGINS = {"failed": 0.02, "slow": 0.10, "malformed": 0.02, "feedback": 0.10}
RULES = Rules(ALPHA, 50, frozenset({"failed", "slow", "malformed"}))

Draw = Callable[[random.Random], Pair]


def coins(challenger: float, champion: float) -> Draw:
    return lambda rng: Pair(float(rng.random() < challenger), float(rng.random() < champion))


def against_nine(challenger: float, champion: float) -> Draw:
    """What a canary of ten percent compares: one reply with nine."""

    def draw(rng: random.Random) -> Pair:
        block = sum(rng.random() < champion for _ in range(9)) / 9
        return Pair(float(rng.random() < challenger), block)

    return draw


def verdicts(rng: random.Random, draws: dict[str, Draw], most: int) -> Iterator[tuple[int, str]]:
    """The verdict after every reply, until there is one."""
    comparisons = {name: Comparison(MARGINS[name], ALPHA) for name in draws}
    for replies in range(1, most + 1):
        for name, draw in draws.items():
            comparisons[name].take(draw(rng))
        verdict, _ = decide(comparisons, replies=replies, rules=RULES)
        if verdict is not Verdict.CONTINUE:
            yield replies, verdict
            return


def ends(draws: dict[str, Draw], *, runs: int, most: int) -> list[tuple[int, str]]:
    return [end for seed in range(runs) for end in verdicts(random.Random(seed), draws, most)]


@pytest.mark.parametrize(
    "draw",
    [coins(0.05, 0.05), coins(0.12, 0.10), against_nine(0.05, 0.05)],
    ids=["equal", "worse by the margin", "one against nine"],
)
def test_arms_within_the_margin_are_hardly_ever_aborted_however_often_one_looks(draw: Draw) -> None:
    runs, aborted = 400, 0
    for seed in range(runs):
        rng, comparison = random.Random(seed), Comparison(MARGINS["failed"], ALPHA)
        for _ in range(500):
            comparison.take(draw(rng))
            if harmful({"failed": comparison}, ALPHA):
                aborted += 1
                break

    assert aborted <= ALPHA * runs


@pytest.mark.parametrize(
    "draw", [coins(0.10, 0.05), against_nine(0.08, 0.05)], ids=["one to one", "one against nine"]
)
def test_a_challenger_worse_than_the_margin_is_hardly_ever_promoted(draw: Draw) -> None:
    runs = 400
    draws = {"failed": draw, "slow": coins(0.0, 0.0), "malformed": coins(0.0, 0.0)}

    found = ends(draws, runs=runs, most=500)

    assert sum(verdict == Verdict.PROMOTE for _, verdict in found) <= ALPHA * runs


def test_a_clean_challenger_is_promoted_within_four_hundred_replies() -> None:
    clean = {
        "failed": against_nine(0.0, 0.0),
        "slow": against_nine(0.1, 0.1),
        "malformed": against_nine(0.0, 0.0),
    }

    found = ends(clean, runs=60, most=400)

    promoted = [after for after, verdict in found if verdict == Verdict.PROMOTE]
    assert len(promoted) >= 54
    assert min(promoted) >= 150


def test_rare_faults_of_both_arms_only_make_it_longer() -> None:
    faulty = {
        "failed": against_nine(0.002, 0.002),
        "slow": against_nine(0.1, 0.1),
        "malformed": against_nine(0.002, 0.002),
    }

    found = ends(faulty, runs=40, most=1500)

    assert sum(verdict == Verdict.PROMOTE for _, verdict in found) >= 36


def test_a_challenger_that_fails_often_is_aborted_soon() -> None:
    broken = {"failed": coins(0.3, 0.0), "slow": coins(0.1, 0.1), "malformed": coins(0.0, 0.0)}

    found = ends(broken, runs=100, most=400)

    assert [verdict for _, verdict in found] == [Verdict.ABORT] * 100
    after = sorted(replies for replies, _ in found)
    assert after[50] <= 40
    assert after[95] <= 80


def test_no_promotion_before_enough_replies() -> None:
    comparisons = {name: Comparison(0.5, ALPHA) for name in RULES.required}
    for _ in range(49):
        for comparison in comparisons.values():
            comparison.take(Pair(0, 0))

    assert decide(comparisons, replies=49, rules=RULES)[0] is Verdict.CONTINUE
    assert decide(comparisons, replies=50, rules=RULES)[0] is Verdict.PROMOTE


def test_a_required_signal_without_data_keeps_the_verdict_open_and_a_scarce_other_does_not() -> (
    None
):
    comparisons = {name: Comparison(0.5, ALPHA) for name in sorted(RULES.required)}
    comparisons["feedback"] = Comparison(0.1, ALPHA)
    for name in ("failed", "slow"):
        for _ in range(60):
            comparisons[name].take(Pair(0, 0))
    verdict, why = decide(comparisons, replies=60, rules=RULES)
    assert (verdict, why) == (Verdict.CONTINUE, "not sure yet of: malformed")

    for _ in range(60):
        comparisons["malformed"].take(Pair(0, 0))
    comparisons["feedback"].take(Pair(1, 0))
    assert decide(comparisons, replies=60, rules=RULES)[0] is Verdict.PROMOTE
    for _ in range(19):
        comparisons["feedback"].take(Pair(0, 1))
        comparisons["feedback"].take(Pair(1, 0))
    assert decide(comparisons, replies=60, rules=RULES)[0] is Verdict.CONTINUE


def test_the_reason_of_an_abort_names_the_signal_and_its_figures() -> None:
    comparison = Comparison(0.02, ALPHA)
    for _ in range(30):
        comparison.take(Pair(1, 0))

    _, why = decide({"failed": comparison}, replies=30, rules=RULES)

    assert why.startswith("failed: 100.0% against 0.0% in 30 pairs (e = ")


def test_the_interval_holds_the_true_difference_at_every_look() -> None:
    runs, missed = 200, 0
    for seed in range(runs):
        rng, comparison = random.Random(seed), Comparison(0.1, ALPHA)
        draw = coins(0.3, 0.2)
        for _ in range(300):
            comparison.take(draw(rng))
        report = comparison.report()
        missed += not report["difference_low"] <= 0.1 <= report["difference_high"]
        assert report["difference_high"] - report["difference_low"] < 0.6
    assert missed <= ALPHA * runs


VALUES = st.floats(0, 1)
PAIRS = st.lists(st.builds(Pair, VALUES, VALUES), max_size=60)


@given(PAIRS, st.floats(0.001, 0.999))
def test_wealth_stays_positive_and_finite_whatever_comes(pairs: list[Pair], margin: float) -> None:
    comparison = Comparison(margin, ALPHA)
    for pair in pairs:
        comparison.take(pair)

    assert 0 < comparison.harm_e < float("inf")
    assert 0 < comparison.safe_e < float("inf")
    report = comparison.report()
    assert report["difference_low"] >= -1
    assert report["difference_high"] <= 1


@given(PAIRS, PAIRS)
def test_evidence_goes_on_from_what_was_kept(before: list[Pair], after: list[Pair]) -> None:
    whole, kept = Comparison(0.1, ALPHA), Comparison(0.1, ALPHA)
    for pair in before:
        whole.take(pair)
        kept.take(pair)
    kept = Comparison.from_json(json.loads(json.dumps(kept.to_json())))
    for pair in after:
        whole.take(pair)
        kept.take(pair)

    assert kept.report() == whole.report()


def test_a_challenger_is_compared_with_those_around_it() -> None:
    arms = [(False, 1.0), (False, 0.0), (True, 1.0), (True, 0.0), (True, 1.0), (False, 1.0)]

    assert in_time(arms) == [Pair(1.0, 0.5), Pair(0.5, 1.0)]


@given(st.lists(st.tuples(st.booleans(), VALUES)))
def test_no_reply_counts_in_two_pairs(arms: list[tuple[bool, float]]) -> None:
    challengers = sum(is_challenger for is_challenger, _ in arms)

    assert len(in_time(arms)) <= min(challengers, len(arms) - challengers)


def test_in_turn_what_is_left_over_says_nothing() -> None:
    assert in_turn([1.0, 0.0, 1.0], [0.0, 0.5]) == [Pair(1.0, 0.0), Pair(0.0, 0.5)]
