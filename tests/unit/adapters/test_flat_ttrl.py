"""The example for readers does what it says."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize(
    ("reward", "least", "most"), [("majority", 0.25, 1.0), ("random", -0.1, 0.1)]
)
def test_flat_ttrl_learns_from_the_majority_alone(reward: str, least: float, most: float) -> None:
    main = runpy.run_path(str(EXAMPLES / "flat_ttrl.py"))["main"]

    before, after = main(reward)

    assert least < after - before < most
