"""Bounds and procedures hold their level, counted out exactly or drawn from fixed seeds."""

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evaluation.intervals import (
    holm,
    items_for_bound,
    lower_bound,
    score_interval,
    wilson_interval,
)

ALPHA = 0.05


def outcomes(items: int, gain: float, loss: float) -> Iterator[tuple[int, int, float]]:
    """(gained, lost, probability) of all outcomes that are not nearly impossible."""
    for gained in range(items + 1):
        for lost in range(items - gained + 1):
            same = items - gained - lost
            ways = math.lgamma(items + 1) - sum(
                math.lgamma(count + 1) for count in (gained, lost, same)
            )
            chance = math.exp(ways) * gain**gained * loss**lost * (1 - gain - loss) ** same
            if chance > 1e-10:
                yield gained, lost, chance


@pytest.mark.parametrize("items", [5, 12, 40, 100])
@pytest.mark.parametrize(
    ("gain", "loss"), [(0.02, 0.02), (0.02, 0.12), (0.1, 0.2), (0.3, 0.3), (0.5, 0.2)]
)
def test_the_bound_covers_as_often_as_it_says(items: int, gain: float, loss: float) -> None:
    covered = sum(
        chance
        for gained, lost, chance in outcomes(items, gain, loss)
        if lower_bound(gained=gained, lost=lost, items=items, alpha=ALPHA) <= gain - loss
    )

    assert covered >= 0.93  # Wald's: 0.8 at 12 items, where it often sees nothing differ


def test_the_bound_covers_at_five_hundred_items() -> None:
    rng, covered = random.Random(5), 0
    for _ in range(400):
        draws = rng.choices((1, -1, 0), (0.03, 0.08, 0.89), k=500)
        gained, lost = draws.count(1), draws.count(-1)
        bound = lower_bound(gained=gained, lost=lost, items=500, alpha=ALPHA)
        covered += bound <= -0.05

    assert 0.92 <= covered / 400 <= 0.98


def test_nothing_lost_of_few_items_proves_little_and_of_many_much() -> None:
    few = lower_bound(gained=0, lost=0, items=40, alpha=ALPHA)
    many = lower_bound(gained=0, lost=0, items=500, alpha=ALPHA)

    assert few == pytest.approx(-0.0634, abs=1e-3)
    assert many == pytest.approx(-0.0054, abs=1e-3)
    assert lower_bound(gained=0, lost=0, items=0, alpha=ALPHA) == -1.0


def test_the_interval_holds_what_was_seen_and_mirrors() -> None:
    low, high = score_interval(gained=7, lost=2, items=30)

    assert low < 5 / 30 < high
    mirrored = score_interval(gained=2, lost=7, items=30)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)
    assert score_interval(gained=0, lost=12, items=12)[0] == -1.0


def test_the_items_asked_for_prove_it_about_as_often_as_promised() -> None:
    margin, gain, loss = 0.1, 0.05, 0.05
    total = items_for_bound(gained=5, lost=5, items=100, margin=margin, alpha=ALPHA, power=0.8)
    assert total is not None
    rng, proven = random.Random(3), 0
    for _ in range(400):
        draws = rng.choices((1, -1, 0), (gain, loss, 1 - gain - loss), k=total)
        bound = lower_bound(gained=draws.count(1), lost=draws.count(-1), items=total, alpha=ALPHA)
        proven += bound > -margin

    assert 0.7 <= proven / 400 <= 0.92


def test_no_number_of_items_proves_a_loss_away() -> None:
    assert items_for_bound(gained=0, lost=20, items=100, margin=0.1, alpha=ALPHA, power=0.8) is None


def test_holm_steps_down_and_stops() -> None:
    assert holm([0.01, 0.02, 0.2], ALPHA) == [True, True, False]
    assert holm([0.2, 0.024, 0.026], ALPHA) == [False, False, False]  # 0.024 > 0.05 / 3
    assert holm([0.016, 0.026, 0.06], ALPHA) == [True, False, False]
    assert holm([], ALPHA) == []


def test_holm_raises_few_false_alarms_and_sees_more_than_bonferroni() -> None:
    rng, alarms = random.Random(11), 0
    for _ in range(2000):
        alarms += any(holm([rng.random() for _ in range(10)], ALPHA))

    assert alarms / 2000 <= 0.065  # ten tests at alpha each: 0.40
    assert sum(holm([0.001, 0.006, 0.0062, 0.008], ALPHA)) == 4


def test_wilson_is_never_certain() -> None:
    assert wilson_interval(0, 50) == pytest.approx((0.0, 0.0713), abs=1e-3)
    assert wilson_interval(50, 50) == pytest.approx((0.9287, 1.0), abs=1e-3)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilsons_lower_end_is_below_the_share_and_rises_with_the_trials(
    some: int, trials: int
) -> None:
    successes = min(some, trials)

    lower, _ = wilson_interval(successes, trials)

    assert 0 <= lower <= successes / trials + 1e-12
    assert wilson_interval(2 * successes, 2 * trials)[0] >= lower - 1e-12


def test_wilsons_interval_is_the_textbooks() -> None:
    lower, _ = wilson_interval(81, 263)  # Newcombe 1998, method 3

    assert lower == pytest.approx(0.2553, abs=5e-5)
