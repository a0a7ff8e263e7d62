"""The figures of learning from prompts, computed from the cells, and their curves."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

from adapters.evaluation.generalization import Scores, generalization_factor
from benchmarks.cells import Cell, Cells
from benchmarks.curves import Panel, curves
from benchmarks.intervals import Interval, Table, differences, interval
from benchmarks.prompt_studies import START, Study
from benchmarks.results import Aim, Results

Digest: TypeAlias = Callable[[Study, str, int], str]

DOUBLED = Aim(2.0)
"""TTRL: held-out sampled pass@1 doubles."""
VALID = Aim(95.0, of_ratio=False)
"""SPECS: per cent of replies in the form."""
KEPT_GENERAL = Aim(-1.0, of_ratio=False)
"""Points that the general suite may lose."""


def report(
    results: Results,
    cells: Cells,
    digest: Digest,
    studies: Sequence[Study],
    seeds: Sequence[int],
    images: Path,
    model: str,
) -> None:
    """A line for each figure of which all seeds are there; arms that are not whole are named."""
    panels: list[Panel] = []
    for study in studies:
        start = _found(cells, digest, study, START, seeds)
        if start is None:
            sys.stderr.write(f"{study.name}: the start is not measured yet\n")
            continue
        lines: dict[str, Sequence[float]] = {}
        for arm in (START, *study.arms):
            of_arm = _found(cells, digest, study, arm, seeds)
            if of_arm is None:
                sys.stderr.write(f"{study.name}, {arm}: not all seeds are measured yet\n")
                continue
            case = f"{model}, {study.name}: {arm}"
            if not results.has(case):
                _add(results, case, study, arm, of_arm, start)
                results.finish(case)
            if curve := curve_of(of_arm):
                lines[arm] = curve
        if lines:  # SePT has no rewards
            most = max(1.0, *(max(line) for line in lines.values()))
            panels.append(Panel(study.name, lines, _levels(start), most))
    if panels:
        images.mkdir(parents=True, exist_ok=True)
        drawing = curves(f"Mean reward, or share of right replies, of each step, {model}", panels)
        (images / f"bench-learning-prompts-{model}.svg").write_text(drawing)


def curve_of(cells: Sequence[Cell]) -> list[float]:
    """Mean reward a step over the seeds, as far as all of them went; empty without rewards."""
    found = [_rewards(cell.report.get("lesson")) for cell in cells]
    steps = min(map(len, found), default=0)
    return [mean(curve[step] for curve in found) for step in range(steps)]


def _found(
    cells: Cells, digest: Digest, study: Study, arm: str, seeds: Sequence[int]
) -> list[Cell] | None:
    found = [cells.find(digest(study, arm, seed), study.case(arm), 0, seed) for seed in seeds]
    whole = [cell for cell in found if cell is not None]
    return whole if len(whole) == len(found) else None


def _add(
    results: Results,
    case: str,
    study: Study,
    arm: str,
    cells: Sequence[Cell],
    start: Sequence[Cell],
) -> None:
    before, after = table(start, "sampled"), table(cells, "sampled")
    aim = DOUBLED if arm == study.name == "TTRL" else None
    own, first = interval(after), interval(before)
    results.add(case, "pass@1", 100 * own.mean, "%", baseline=100 * first.mean, aim=aim)
    results.add(case, "pass@1, low", 100 * own.low, "%")
    results.add(case, "pass@1, high", 100 * own.high, "%")
    for label in ("greedy", "other kind", "form", "distinct", "majority", "colder"):
        if _has(cells, label):
            aim = VALID if (label, arm) == ("form", "SPECS") else None
            found = interval(table(cells, label))
            results.add(case, label, 100 * found.mean, "%", aim=aim)
    if arm == START:
        return
    _add_interval(results, case, "gain in pass@1", interval(differences(after, before)))
    if _has(start, "majority"):
        above = interval(differences(after, table(start, "majority")))
        _add_interval(results, case, "pass@1 less the start's maj@16", above)
    if study.name == "SPECS":
        _add_generalization(results, case, cells, start)
    general = interval(differences(_general(cells), _general(start)))
    results.add(case, "general suite", 100 * general.mean, "points", aim=KEPT_GENERAL)
    results.add(case, "seconds a seed", mean(cell.seconds for cell in cells), "s")


def _add_generalization(
    results: Results, case: str, cells: Sequence[Cell], start: Sequence[Cell]
) -> None:
    """The paper's factor, in points like the gains that it is made of; no line where there is none."""
    scores = [
        Scores(interval(table(one, "sampled")).mean, interval(table(one, "other kind")).mean)
        for one in (start, cells)
    ]
    if (factor := generalization_factor(*scores)) is not None:
        results.add(case, "generalization factor", 100 * factor, "points")


def _add_interval(results: Results, case: str, metric: str, found: Interval) -> None:
    results.add(case, metric, 100 * found.mean, "points")
    results.add(case, f"{metric}, low", 100 * found.low, "points")
    results.add(case, f"{metric}, high", 100 * found.high, "points")


def table(cells: Sequence[Cell], label: str) -> Table:
    """A share for each prompt, by seed; all prompts together are one group to draw from."""
    return [[[float(share) for share in _values(cell)[label]] for cell in cells]]


def _general(cells: Sequence[Cell]) -> Table:
    return [[[float(right) for right in cell.general] for cell in cells]]


def _has(cells: Sequence[Cell], label: str) -> bool:
    return all(label in _values(cell) for cell in cells)


def _values(cell: Cell) -> Mapping[str, Any]:
    values: Any = cell.report["values"]
    found: Mapping[str, Any] = values
    return found


def _levels(start: Sequence[Cell]) -> dict[str, float]:
    names = {"majority": "start, maj@16", "sampled": "start, pass@1"}
    return {
        words: interval(table(start, label)).mean
        for label, words in names.items()
        if _has(start, label)
    }


def _rewards(lesson: object) -> list[float]:
    """The curve in a method's report, wherever it keeps it: rewards, or shares of right replies."""
    if isinstance(lesson, dict):
        rows = lesson.get("curve") or lesson.get("steps")
        if isinstance(rows, list):
            return [
                float(row.get("reward", row.get("right")))
                for row in rows
                if "reward" in row or "right" in row
            ]
        for value in lesson.values():
            if found := _rewards(value):
                return found
    return []
