"""The locked set-up: it has to suit every Python 3.11, Debian 12's 3.11.2 as well as the newest."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.constraints import LEFT_OUT, MODEL_WHEEL

ROOT = Path(__file__).parents[2]
OLDEST = "3.11.0"
"""The oldest that pyproject.toml admits."""


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def _needs(name: str) -> Iterator[str]:
    """What the package asks for on the oldest Python, extras aside."""
    here = {"python_full_version": OLDEST, "python_version": "3.11", "extra": ""}
    for text in distribution(name).requires or ():
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate(here):
            yield canonicalize_name(need.name)


def test_every_pin_installs_on_the_oldest_python() -> None:
    refusing = {}
    for name in _pins():
        try:
            bounds = distribution(name).metadata["Requires-Python"]
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed: this is not the locked set-up")
        if bounds and not Requirement(f"python{bounds}").specifier.contains(OLDEST):
            refusing[name] = bounds
    assert not refusing


def test_what_the_pins_ask_for_on_the_oldest_python_is_pinned() -> None:
    pins = {canonicalize_name(name) for name in _pins()}
    model = MODEL_WHEEL.split("==")[0]  # its weights are read, its engine is not used
    missing = {
        f"{need}, for {name}"
        for name in _pins()
        if name != model
        for need in _needs(name)
        if need not in pins | LEFT_OUT
    }
    assert not missing
