"""The statistics agree with brute force, and behave as statistics of pairs must."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evaluation.metrics import (
    bootstrap_interval,
    items_for_power,
    mcnemar_one_sided,
    mcnemar_two_sided,
    smallest_conclusive,
)

COUNT = st.integers(0, 60)


def test_known_values():
    assert mcnemar_one_sided(gained=8, lost=0) == 1 / 256
    assert mcnemar_one_sided(gained=0, lost=0) == 1.0
    assert mcnemar_two_sided(gained=8, lost=1) == pytest.approx(0.0390625)
    assert mcnemar_two_sided(gained=3, lost=3) == 1.0


@given(gained=st.integers(0, 6), lost=st.integers(0, 6))
def test_p_values_agree_with_tossing_every_coin(gained: int, lost: int):
    pairs = gained + lost
    tosses = [sum(coins) for coins in itertools.product((0, 1), repeat=pairs)]
    one_sided = sum(heads >= gained for heads in tosses) / len(tosses)
    distance = abs(gained - lost)
    two_sided = sum(abs(2 * heads - pairs) >= distance for heads in tosses) / len(tosses)

    assert mcnemar_one_sided(gained=gained, lost=lost) == pytest.approx(one_sided)
    assert mcnemar_two_sided(gained=gained, lost=lost) == pytest.approx(two_sided)


@given(gained=COUNT, lost=COUNT)
def test_the_two_sided_test_does_not_know_the_sides(gained: int, lost: int):
    assert mcnemar_two_sided(gained=gained, lost=lost) == mcnemar_two_sided(
        gained=lost, lost=gained
    )


@given(gained=COUNT, lost=COUNT)
def test_both_one_sided_tests_share_the_middle(gained: int, lost: int):
    shared = math.comb(gained + lost, gained) / 2 ** (gained + lost)
    together = mcnemar_one_sided(gained=gained, lost=lost) + mcnemar_one_sided(
        gained=lost, lost=gained
    )

    assert together == pytest.approx(1.0 + shared)


@given(gained=COUNT, lost=COUNT)
def test_more_gain_or_less_loss_never_raises_p(gained: int, lost: int):
    p = mcnemar_one_sided(gained=gained, lost=lost)

    assert mcnemar_one_sided(gained=gained + 1, lost=lost) <= p
    assert lost == 0 or mcnemar_one_sided(gained=gained, lost=lost - 1) <= p


@pytest.mark.parametrize(("alpha", "pairs"), [(0.05, 5), (0.025, 6), (0.01, 7), (0.3, 2)])
def test_smallest_conclusive_number_of_pairs(alpha: float, pairs: int):
    assert smallest_conclusive(alpha) == pairs
    assert mcnemar_one_sided(gained=pairs, lost=0) <= alpha
    assert mcnemar_one_sided(gained=pairs - 1, lost=0) > alpha


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.data())
def test_the_interval_turns_round_with_the_sides(sizes: tuple[int, int], data: st.DataObject):
    items, gained = sizes
    lost = data.draw(st.integers(0, items - gained))

    low, high = bootstrap_interval(gained=gained, lost=lost, items=items)

    assert -1.0 <= low <= high <= 1.0
    mirrored = bootstrap_interval(gained=lost, lost=gained, items=items)
    assert mirrored == pytest.approx((-high, -low), abs=2.5 / items)


def test_the_interval_agrees_with_resampling_the_pairs_themselves():
    differences = np.array([1] * 9 + [-1] * 2 + [0] * 13)
    rng = np.random.default_rng(1)
    means = rng.choice(differences, size=(20_000, differences.size)).mean(axis=1)

    interval = bootstrap_interval(gained=9, lost=2, items=24)

    assert interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1 / 24)
    assert interval == bootstrap_interval(gained=9, lost=2, items=24)


def test_no_items_have_no_interval():
    assert bootstrap_interval(gained=0, lost=0, items=0) == (0.0, 0.0)


@pytest.mark.parametrize(("gained", "lost", "items"), [(3, 0, 12), (4, 1, 20), (6, 2, 20)])
def test_the_items_for_power_suffice_in_simulation(gained: int, lost: int, items: int):
    needed = items_for_power(gained=gained, lost=lost, items=items, alpha=0.05, power=0.8)

    assert needed is not None
    assert needed > items
    shares = [gained / items, lost / items, 1 - (gained + lost) / items]
    draws = np.random.default_rng(0).multinomial(needed, shares, size=4000)
    hits = [mcnemar_one_sided(gained=int(g), lost=int(x)) <= 0.05 for g, x, _ in draws]
    assert 0.77 <= np.mean(hits) <= 0.9


def test_no_number_of_items_shows_a_gain_that_is_not_there():
    for gained, lost in ((0, 0), (2, 2), (1, 3)):
        found = items_for_power(gained=gained, lost=lost, items=12, alpha=0.05, power=0.8)
        assert found is None
    assert items_for_power(gained=101, lost=100, items=400, alpha=0.05, power=0.8) is None
