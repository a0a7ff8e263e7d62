"""The Generalization Factor: the paper's formula, and no number where it means nothing."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.evaluation.generalization import Scores, generalization_factor

shares = st.floats(0.0, 1.0)
gains = st.floats(1e-6, 1.0)
betas = st.floats(0.1, 10.0)


def of_gains(inner: float, outer: float, beta: float = 2.0) -> float | None:
    return generalization_factor(Scores(0.0, 0.0), Scores(inner, outer), beta=beta)


@given(gains, gains, betas)
def test_it_is_the_papers_formula(inner: float, outer: float, beta: float) -> None:
    expected = (1 + beta**2) * inner * outer / (beta**2 * inner + outer)

    assert of_gains(inner, outer, beta) == pytest.approx(expected, rel=1e-9)


@given(gains, gains, betas)
def test_it_lies_between_the_two_gains(inner: float, outer: float, beta: float) -> None:
    factor = of_gains(inner, outer, beta)

    assert factor is not None
    assert min(inner, outer) * (1 - 1e-9) <= factor <= max(inner, outer) * (1 + 1e-9)


@given(gains, gains, st.floats(1.01, 2.0))
def test_it_grows_with_either_gain_and_more_with_the_one_elsewhere(
    inner: float, outer: float, more: float
) -> None:
    factor = of_gains(inner, outer)
    assert factor is not None

    assert (of_gains(inner * more, outer) or 0) > factor
    assert (of_gains(inner, outer * more) or 0) > factor
    assert (of_gains(inner, inner * more) or 0) > (of_gains(inner * more, inner) or 0)


@given(shares, shares, shares, shares)
@example(0.0, 0.0, 1.0, 2.2e-309)
@example(0.0, 0.0, 5e-324, 1.0)
def test_there_is_none_unless_both_gains_are_above_0(
    a: float, b: float, c: float, d: float
) -> None:
    factor = generalization_factor(Scores(a, b), Scores(c, d))

    assert (factor is None) is not (c > a and d > b)
    assert factor is None or 0 < factor <= 1


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_a_beta_that_is_none_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        of_gains(0.1, 0.1, beta)


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        of_gains(math.nan, 0.1)
