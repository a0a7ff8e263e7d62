"""Fixtures of the contract tests: an engine of our own making, and a gateway over it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_engine import FakeEngine, Served, serve
from tests.support.world import World, running_world


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def served_engine(engine: FakeEngine) -> Iterator[Served]:
    with serve(engine.app()) as served:
        yield served


@pytest.fixture
def world(
    tmp_path: Path, paper_artifacts: None, engine: FakeEngine, served_engine: Served
) -> Iterator[World]:
    with running_world(tmp_path, engine, served_engine.url) as made:
        yield made
