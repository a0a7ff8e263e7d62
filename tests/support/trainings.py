"""A trainer without a process: what it is told to do stands in for `workers.training.Trainer`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

Train = Callable[..., dict[str, Any]]
"""Takes a job, and `folder` and `heart` by name; gives the closing report."""


class ScriptedTrainer:
    """Trains by a function."""

    def __init__(self, train: Train) -> None:
        self._train = train
        self.is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def train(self, job: dict[str, Any], *, folder: Path, heart: object) -> dict[str, Any]:
        return self._train(job, folder=folder, heart=heart)

    def close(self) -> None:
        self.is_closed = True


def scripted(train: Train) -> Callable[[], ScriptedTrainer]:
    """What makes such trainers, to be put in the place of `Trainer`."""
    return lambda: ScriptedTrainer(train)
