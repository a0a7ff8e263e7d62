"""Results: one JSON line each, printed and appended at once, so that a run that stops can resume."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import machine

FOLDER = Path(__file__).parent / "results"
CELLS = "cells"
"""Folder beside the figures: what was measured of each cell, one file a benchmark."""
FINISHED = "finished"
"""Metric of the line that ends a case: without it, a case that was broken off is measured anew."""

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure should be."""

    bound: float
    is_at_least: bool = True
    of_ratio: bool = True
    """Whether the bound is for the ratio to the baseline, or for the value itself."""

    def __str__(self) -> str:
        what = "ratio" if self.of_ratio else "value"
        return f"{what} {'>=' if self.is_at_least else '<='} {self.bound:g}"

    def is_met(self, value: float, ratio: float | None) -> bool | None:
        """None where there is nothing to compare."""
        seen = ratio if self.of_ratio else value
        if seen is None:
            return None
        return seen >= self.bound if self.is_at_least else seen <= self.bound


@dataclass(frozen=True, slots=True)
class Line:
    """One figure."""

    bench: str
    case: str
    metric: str
    value: float
    unit: str
    baseline: float | None
    """What it is compared with, in the same unit."""
    ratio: float | None
    aim: str | None
    is_met: bool | None
    setup: str
    """What else shaped the figure: seconds, pinning, database."""
    seed: int
    commit: str
    machine: str
    at: str


class Results:
    """The lines of one benchmark, in ``benchmarks/results/BENCH.jsonl``.

    Args:
        again: measure also what was measured at this commit with this setup.
    """

    def __init__(
        self,
        bench: str,
        *,
        setup: str,
        seed: int,
        again: bool = False,
        folder: Path = FOLDER,
        commit: str | None = None,
    ) -> None:
        self.path = folder / f"{bench}.jsonl"
        self._bench = bench
        self._setup = setup
        self._seed = seed
        self._commit = commit or current_commit()
        self._machine = machine()
        self._values: dict[tuple[str, str], float] = {}
        self._done: set[str] = set()
        for line in read_lines(self.path):
            if (line.commit, line.setup, line.machine) == (self._commit, setup, self._machine):
                self._values[line.case, line.metric] = line.value
                if line.metric == FINISHED:
                    self._done.add(line.case)
        if again:
            self._done.clear()

    def has(self, case: str) -> bool:
        """Whether the case needs no measuring."""
        return case in self._done

    def value(self, case: str, metric: str) -> float | None:
        """What was measured at this commit, now or earlier."""
        return self._values.get((case, metric))

    def add(
        self,
        case: str,
        metric: str,
        value: float,
        unit: str,
        *,
        baseline: float | None = None,
        aim: Aim | None = None,
    ) -> Line:
        """Write one line down, for good, before anything else happens."""
        ratio = round(value / baseline, 4) if baseline else None
        line = Line(
            bench=self._bench,
            case=case,
            metric=metric,
            value=round(value, 6),
            unit=unit,
            baseline=None if baseline is None else round(baseline, 6),
            ratio=ratio,
            aim=None if aim is None else str(aim),
            is_met=None if aim is None else aim.is_met(value, ratio),
            setup=self._setup,
            seed=self._seed,
            commit=self._commit,
            machine=self._machine,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        text = json.dumps(asdict(line))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(text + "\n")
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        self._values[case, metric] = value
        return line

    def finish(self, case: str) -> None:
        """The case is whole: the next run passes it over."""
        self.add(case, FINISHED, 1, "")
        self._done.add(case)


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file; one torn by a run that was killed is passed over."""
    if not path.exists():
        return
    for text in path.read_text().splitlines():
        try:
            yield Line(**json.loads(text))
        except (ValueError, TypeError):
            continue


def current_commit() -> str:
    """Short hash of the checkout, with ``+changes`` where its files differ from it."""
    commit = _git("rev-parse", "--short=10", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{commit or 'unknown'}{'+changes' if changes else ''}"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
