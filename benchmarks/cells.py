"""What was measured of each cell (an arm, a passage, a seed), kept so that a run can go on.

One JSON line a cell, with the replies themselves, so that every figure can be computed again. A cell
belongs to what decided it: the digest of its settings. Lines of other settings stay, and are not used.

A second file goes with the repository: the same without texts, which quote passages that are not ours
to hand on. So another machine adds seeds to those that were measured here.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from adapters.types import JSON
from benchmarks.results import current_commit


@dataclass(frozen=True, slots=True)
class Cell:
    """The answers of one set of weights."""

    arm: str
    passage: int
    seed: int
    step: int = 0
    """How many passages were learnt one after another; 0 outside of sequences."""
    correct: dict[str, list[bool]] = field(default_factory=dict)
    """By the passage asked about (its number as text): one entry a question."""
    general: list[bool] = field(default_factory=list)
    """One entry an item of the general suite; empty where it was not asked."""
    replies: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    report: dict[str, JSON] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What tells it from others of the same settings."""
        return (self.arm, self.passage, self.seed, self.step)

    def own(self) -> list[bool]:
        """The answers to the passage's own questions."""
        return self.correct[str(self.passage)]


class Cells:
    """The cells of one benchmark, in a file that only grows; the last of a key counts.

    Args:
        path: with the replies, on this machine.
        published: without them, with the repository.
    """

    def __init__(self, path: Path, published: Path | None = None) -> None:
        self._files = {path: False, **({published: True} if published else {})}
        self._commit = current_commit()
        self._cells: dict[tuple[Any, ...], Cell] = {}
        for file in reversed(self._files):
            for digest, cell in _read(file):
                self._cells[digest, *cell.key] = cell

    def find(self, digest: str, arm: str, passage: int, seed: int, step: int = 0) -> Cell | None:
        """The cell, if it was measured with these settings."""
        return self._cells.get((digest, arm, passage, seed, step))

    def add(self, digest: str, cell: Cell) -> None:
        """Write it down for good."""
        for path, is_public in self._files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written = _without_texts(cell) if is_public else cell
            row = {"digest": digest, "commit": self._commit, "cell": asdict(written)}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        self._cells[digest, *cell.key] = cell


def _without_texts(cell: Cell) -> Cell:
    """The same figures; a method's report may quote what it was taught, as replies do."""
    report = {key: _figures(value) for key, value in cell.report.items()}
    return replace(cell, replies={}, report=report)


def _figures(value: JSON) -> JSON:
    if isinstance(value, dict):
        return {key: _figures(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_figures(inner) for inner in value]
    return None if isinstance(value, str) else value


def accuracy(answers: Sequence[bool]) -> float:
    """The share that is right; 0 of nothing."""
    return sum(answers) / len(answers) if answers else 0.0


def _read(path: Path) -> list[tuple[str, Cell]]:
    """The lines that can be read; one torn by a run that was killed is passed over."""
    found: list[tuple[str, Cell]] = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                row = json.loads(text)
                found.append((row["digest"], Cell(**row["cell"])))
            except (ValueError, TypeError, KeyError):
                continue
    return found
