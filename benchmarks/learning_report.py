"""The figures of learning from documents, computed from the cells: accuracy, gain, what is kept."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TypeAlias

from benchmarks.cells import Cell, Cells, accuracy
from benchmarks.heat_map import Grid, heat_map
from benchmarks.intervals import Interval, Table, differences, interval
from benchmarks.passages import Passage
from benchmarks.results import Aim, Results

Digest: TypeAlias = Callable[[str, int], str]

GridValues: TypeAlias = Sequence[Sequence[float | None]]
"""Accuracy by passage and step, the step before any first."""

BASE, CONTEXT, PASSAGE = "base", "context", "passage"
CONTROLS = (BASE, CONTEXT, PASSAGE)
"""Arms that show what a method is worth; no aim is theirs."""

GAIN_AIM = Aim(14.3, of_ratio=False)
"""The paper's own gain, in points."""
KEPT_AIM = Aim(95.0, of_ratio=False)
"""Per cent of what a passage had when it was just learnt."""
GENERAL_AIM = Aim(-1.0, of_ratio=False)
"""Points that the general suite may lose."""


def report(
    results: Results,
    cells: Cells,
    digest: Digest,
    passages: Sequence[Passage],
    *,
    arms: Sequence[str],
    seeds: int,
) -> None:
    """A line for each figure of which all cells are there; arms that are not whole are named."""
    base = found(cells, digest, BASE, passages, 1)
    for arm in arms:
        runs = 1 if arm in (BASE, CONTEXT) else seeds
        of_arm = found(cells, digest, arm, passages, runs)
        if of_arm is None:
            sys.stderr.write(f"{arm}: not all cells are measured yet\n")
        elif not results.has(arm):
            _add_arm(results, arm, passages, of_arm, base)


def found(
    cells: Cells, digest: Digest, arm: str, passages: Sequence[Passage], seeds: int
) -> list[list[Cell]] | None:
    """The cells of an arm by passage and seed; None where one is missing."""
    rows: list[list[Cell]] = []
    for passage in passages:
        row = [
            cell
            for seed in range(seeds)
            if (cell := cells.find(digest(arm, seed), arm, passage.number, seed)) is not None
        ]
        if len(row) < seeds:
            return None
        rows.append(row)
    return rows


def _add_arm(
    results: Results,
    arm: str,
    passages: Sequence[Passage],
    cells: Sequence[Sequence[Cell]],
    base: Sequence[Sequence[Cell]] | None,
) -> None:
    own = table(cells)
    searched = [number for row in cells for each in row if (number := edits_kept(each)) is not None]
    if searched:
        share = sum(number > 0 for number in searched) / len(searched)
        results.add(arm, "searches that kept an edit", 100 * share, "%")
    for passage, row in zip(passages, cells, strict=True):
        share = mean(accuracy(cell.own()) for cell in row)
        results.add(arm, f"accuracy on {passage.id}", 100 * share, "%")
    _add_interval(results, arm, "accuracy", interval(own), "%")
    if base is not None and arm != BASE:
        aim = None if arm in CONTROLS else GAIN_AIM
        gain = interval(differences(own, table(base)))
        _add_interval(results, arm, "gain over the base", gain, "points", aim)
        if all(cell.general for row in cells for cell in row):
            change = interval(differences(by_item(cells), by_item([base[0][:1]])))
            _add_interval(results, arm, "general suite", change, "points", GENERAL_AIM)
    results.finish(arm)


def _add_interval(
    results: Results, case: str, metric: str, found: Interval, unit: str, aim: Aim | None = None
) -> None:
    results.add(case, metric, 100 * found.mean, unit, aim=aim)
    results.add(case, f"{metric}, low", 100 * found.low, unit)
    results.add(case, f"{metric}, high", 100 * found.high, unit)


def edits_kept(cell: Cell) -> int | None:
    """How many documents the outer loop found an edit for; None where it did not search."""
    lesson = cell.report.get("lesson")
    loop = lesson.get("outer_loop") if isinstance(lesson, dict) else None
    number = loop.get("kept") if isinstance(loop, dict) else None
    return number if isinstance(number, int) else None


def table(cells: Sequence[Sequence[Cell]]) -> Table:
    """Own answers by passage, seed and question, as 0 and 1."""
    return [[[float(right) for right in cell.own()] for cell in row] for row in cells]


def by_item(cells: Sequence[Sequence[Cell]]) -> Table:
    """Answers to the general suite by item: the cells of all passages and seeds are its seeds."""
    flat = [cell for row in cells for cell in row]
    items = len(flat[0].general)
    return [[[float(cell.general[item])] for cell in flat] for item in range(items)]


def kept(grids: Sequence[GridValues]) -> list[float | None]:
    """Of each passage, what is right after the last step over what was when it was just learnt,
    in per cent, over all sequences; None where nothing was right then.

    Args:
        grids: by sequence, passage and step, the step before any first.
    """
    shares: list[float | None] = []
    for place in range(len(grids[0])):
        then = sum(grid[place][place + 1] or 0.0 for grid in grids)
        now = sum(grid[place][-1] or 0.0 for grid in grids)
        shares.append(100 * now / then if then else None)
    return shares


def report_sequences(
    results: Results,
    protocols: Mapping[str, Sequence[GridValues]],
    suites: Mapping[str, Sequence[Sequence[Cell]]],
    images: Path,
) -> None:
    """Lines and the heat map of what was learnt one after another.

    Args:
        protocols: by name, the grids of all sequences that are whole.
        suites: by name, of each of them the cells before the first step and after the last.
    """
    drawn: list[Grid] = []
    for name, grids in protocols.items():
        if not grids:
            continue
        drawn.append(Grid(name, mean_grid(grids)))
        if results.has(name):
            continue
        shares = [share for share in kept(grids) if share is not None]
        then = [grid[i][i + 1] or 0.0 for grid in grids for i in range(len(grid))]
        now = [row[-1] or 0.0 for grid in grids for row in grid]
        results.add(name, "just learnt", 100 * mean(then), "%")
        results.add(name, "after the last step", 100 * mean(now), "%")
        if shares:
            results.add(name, "kept, least of all passages", min(shares), "%", aim=KEPT_AIM)
            results.add(name, "kept, over all", 100 * sum(now) / sum(then), "%")
        change = mean(
            accuracy(after.general) - accuracy(before.general) for before, after in suites[name]
        )
        results.add(name, "general suite", 100 * change, "points", aim=GENERAL_AIM)
        results.finish(name)
    if drawn:
        title = "Questions answered (%) on each passage after each step"
        images.mkdir(parents=True, exist_ok=True)
        (images / "bench-learning-documents.svg").write_text(heat_map(title, drawn))


def mean_grid(grids: Sequence[GridValues]) -> list[list[float | None]]:
    """The mean of each place over the sequences; None where one does not know it."""
    return [
        [
            None if any(value is None for value in values) else mean(v or 0.0 for v in values)
            for values in zip(*rows, strict=True)
        ]
        for rows in zip(*grids, strict=True)
    ]
