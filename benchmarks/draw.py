"""Draws the newest figures of ``benchmarks/results`` as SVG bar charts into ``docs/images``.

Plain SVG, on a ground of its own, so that it reads the same on a light and on a dark page.
``python -m benchmarks.draw``, or ``make bench-draw``.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.results import FINISHED, FOLDER, ROOT, Line, read_lines

IMAGES = ROOT / "docs" / "images"

COLOURS = ("#8a8f98", "#2a6fb0", "#c77d2e")
"""Of the first, second and third series of a chart."""

_WIDTH, _LABELS, _BARS = 860, 290, 440
_ROW, _GAP, _TOP, _MARGIN = 15, 9, 62, 16
_GROUND, _INK, _FAINT = "#f6f6f3", "#24292f", "#d5d7da"

Figures = Mapping[tuple[str, str], Line]
"""By case and metric."""


@dataclass(frozen=True, slots=True)
class Group:
    """Bars under one label; a series without a figure has None."""

    label: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of horizontal bars."""

    name: str
    title: str
    unit: str
    series: Sequence[str]
    groups: Sequence[Group]
    is_logarithmic: bool = True


def main(results: Path = FOLDER, images: Path = IMAGES) -> int:
    """Write every chart; one without figures says so."""
    images.mkdir(parents=True, exist_ok=True)
    for chart in charts(results):
        path = images / f"bench-{chart.name}.svg"
        path.write_text(svg(chart))
        sys.stdout.write(f"{path}\n")
    return 0


def charts(results: Path) -> Iterable[Chart]:
    """All charts, with the figures there are."""
    yield from _gateway(newest(results / "gateway.jsonl"))
    yield from _vllm(newest(results / "vllm.jsonl"))
    yield from _store(newest(results / "store.jsonl"))
    yield from _swap(newest(results / "swap.jsonl"))


def newest(path: Path) -> Figures:
    """The last figure of each case and metric."""
    return {(line.case, line.metric): line for line in read_lines(path) if line.metric != FINISHED}


def _gateway(figures: Figures) -> Iterable[Chart]:
    ways = ("direct", "everlearn", "litellm")
    for kind, words in (("json", "JSON replies"), ("stream", "streams of 64 chunks")):
        groups = [
            Group(f"{clients} clients", values)
            for clients in (16, 64, 256)
            if any(
                values := [
                    _value(figures, f"{kind}, {clients} clients", f"{way}: requests")
                    for way in ways
                ]
            )
        ]
        title = f"Requests per second, {words}, one core each"
        yield Chart(f"gateway-{kind}", title, "1/s", ways, groups)
    groups = [
        Group(f"{words}, {part}", values)
        for kind, words in (("json", "JSON"), ("stream", "stream"))
        for part in ("p50", "p95", "p99")
        if any(
            values := [
                _value(figures, f"{kind}, half of saturation", f"{way}: {part}") for way in ways
            ]
        )
    ]
    title = "Latency at half of saturation, from the moment a request was due"
    yield Chart("gateway-latency", title, "ms", ways, groups)


def _vllm(figures: Figures) -> Iterable[Chart]:
    ways = ("direct", "everlearn")
    groups = [
        Group(case, [line.value, _value(figures, case, "everlearn: tokens")])
        for (case, metric), line in figures.items()
        if metric == "direct: tokens" and "round" not in case
    ]
    yield Chart("vllm", "Tokens per second of real vLLM", "1/s", ways, groups, False)


def _store(figures: Figures) -> Iterable[Chart]:
    for kind, words in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL")):
        lines = [line for (case, _), line in figures.items() if case == f"{kind}: queries"]
        groups = [Group(line.metric, [line.baseline, line.value]) for line in lines]
        rows = int(lines[0].setup.partition(" ")[0]) if lines else 0  # as benchmarks.store says it
        series = ("1,000 rows", f"{rows:,} rows") if lines else ()
        yield Chart(f"store-{kind}", f"Time of a query, {words}", "ms", series, groups)


def _swap(figures: Figures) -> Iterable[Chart]:
    ways = ("usual", "careless", "everlearn")
    metrics = {
        "order to first reply, asked next: p50": "order to first reply, p50",
        "order to first reply, asked next: p99": "order to first reply, p99",
        "first byte before: p99": "first byte p99, no swap",
        "first byte during: p99": "first byte p99, during swaps",
        "gap before: p99": "pause in a stream p99, no swap",
        "gap during: p99": "pause in a stream p99, during swaps",
    }
    groups = [
        Group(label, values)
        for metric, label in metrics.items()
        if any(values := [_value(figures, f"{way}-vllm", metric) for way in ways])
    ]
    yield Chart("swap", "Swapping versions of real vLLM under streams", "ms", ways, groups)


def _value(figures: Figures, case: str, metric: str) -> float | None:
    line = figures.get((case, metric))
    return None if line is None else line.value


def svg(chart: Chart) -> str:
    """The drawing."""
    lowest, highest = _range(chart)
    parts: list[str] = []
    y = _TOP
    for group in chart.groups:
        shown = [(place, value) for place, value in enumerate(group.values) if value is not None]
        middle = y + _ROW * len(shown) / 2 + 4
        parts.append(_text(_LABELS - 8, middle, group.label, "end"))
        for place, value in shown:
            width = _width(value, lowest, highest, is_logarithmic=chart.is_logarithmic)
            parts.append(
                f'<rect x="{_LABELS}" y="{y + 1}" width="{width:.1f}" height="{_ROW - 2}" '
                f'rx="2" fill="{COLOURS[place]}"/>'
            )
            parts.append(_text(_LABELS + width + 6, y + 12, number(value)))
            y += _ROW
        y += _GAP
    if not chart.groups:
        y += _ROW
        parts.append(_text(_LABELS, y, "no figures yet"))
    height = y + _MARGIN
    grid = [
        f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{y}" stroke="{_FAINT}"/>'
        for x in _decades(lowest, highest, is_logarithmic=chart.is_logarithmic)
        if chart.groups
    ]
    scale = ", logarithmic" if chart.is_logarithmic else ""
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="system-ui, sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(chart.title, {chr(34): ""})}">',
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="{_GROUND}"/>',
        _text(_MARGIN, 24, f"{chart.title} ({chart.unit}{scale})", weight="600"),
        *(_legend(chart.series) if chart.groups else ()),
    ]
    return "\n".join([*head, *grid, *parts, "</svg>", ""])


def number(value: float) -> str:
    """Three figures, or all before the point: 0.123, 12.3, 61,635."""
    if value >= 100:
        return f"{value:,.0f}"
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(0, min(places, 4))}f}"


def _legend(series: Sequence[str]) -> Iterable[str]:
    x = _LABELS
    for name, colour in zip(series, COLOURS, strict=False):
        yield f'<rect x="{x}" y="36" width="11" height="11" rx="2" fill="{colour}"/>'
        yield _text(x + 16, 46, name)
        x += 34 + 7 * len(name)


def _range(chart: Chart) -> tuple[float, float]:
    """Where the bars begin, and the value of the longest."""
    values = [value for group in chart.groups for value in group.values if value]
    highest = max(values, default=1.0)
    if not chart.is_logarithmic:
        return 0.0, highest
    lowest = 10.0 ** (math.ceil(math.log10(min(values, default=1.0))) - 1)
    return lowest, max(highest, 10 * lowest)


def _width(value: float, lowest: float, highest: float, *, is_logarithmic: bool) -> float:
    if not is_logarithmic:
        return _BARS * value / highest
    return _BARS * math.log(max(value, lowest) / lowest) / math.log(highest / lowest)


def _decades(lowest: float, highest: float, *, is_logarithmic: bool) -> Iterable[float]:
    """Where the lines of the grid stand."""
    yield _LABELS
    if is_logarithmic:
        mark = lowest * 10
        while mark <= highest:
            yield _LABELS + _width(mark, lowest, highest, is_logarithmic=True)
            mark *= 10


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{_INK}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


if __name__ == "__main__":
    sys.exit(main())
