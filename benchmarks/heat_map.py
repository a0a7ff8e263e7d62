"""Draws grids of accuracies as SVG heat maps, side by side on one scale."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_CELL, _GAP, _LEFT, _TOP, _FOOT = 38, 64, 84, 78, 40
_GROUND, _INK = "#f6f6f3", "#24292f"
_COLD, _HOT = (246, 246, 243), (24, 90, 157)
_DARK = 0.55
"""From here on, white digits are read better."""


@dataclass(frozen=True, slots=True)
class Grid:
    """`values[i][j]`: the accuracy on passage i after step j, between 0 and 1; None is unknown."""

    title: str
    values: Sequence[Sequence[float | None]]


def heat_map(title: str, grids: Sequence[Grid]) -> str:
    """The drawing. Passages are rows; columns are steps, the first before any; what was just
    learnt has a frame.
    """
    columns = max((len(row) for grid in grids for row in grid.values), default=1)
    rows = max((len(grid.values) for grid in grids), default=1)
    panel = columns * _CELL + _GAP
    width = _LEFT + max(1, len(grids)) * panel
    height = _TOP + rows * _CELL + _FOOT
    label = escape(title, {'"': "&quot;"})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" '
        f'font-size="12" role="img" aria-label="{label}">',
        f'<rect width="{width}" height="{height}" rx="8" fill="{_GROUND}"/>',
        _text(16, 24, title, weight="600"),
    ]
    if not grids:
        parts.append(_text(_LEFT, _TOP, "no figures yet"))
    for number, grid in enumerate(grids):
        parts += _panel(grid, _LEFT + number * panel)
    return "\n".join([*parts, "</svg>", ""])


def _panel(grid: Grid, x: int) -> Iterable[str]:
    yield _text(x, 50, grid.title)
    for i, row in enumerate(grid.values):
        y = _TOP + i * _CELL
        yield _text(x - 8, y + _CELL / 2 + 4, f"passage {i + 1}", "end")
        for j, value in enumerate(row):
            yield from _cell(x + j * _CELL, y, value, is_just_learnt=j == i + 1)
    for j in range(max((len(row) for row in grid.values), default=0)):
        name = "base" if j == 0 else str(j)
        yield _text(x + j * _CELL + _CELL / 2, _TOP - 8, name, "middle")


def _cell(x: float, y: float, value: float | None, *, is_just_learnt: bool) -> Iterable[str]:
    side = _CELL - 2
    frame = f' stroke="{_INK}" stroke-width="2"' if is_just_learnt else ""
    shown = "-" if value is None else f"{100 * value:.0f}"
    yield f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{_colour(value)}"{frame}/>'
    ink = "#ffffff" if (value or 0) > _DARK else _INK
    yield _text(x + side / 2, y + side / 2 + 4, shown, "middle", colour=ink)


def _colour(value: float | None) -> str:
    share = min(1.0, max(0.0, value or 0.0))
    mixed = (round(c + share * (h - c)) for c, h in zip(_COLD, _HOT, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _text(
    x: float, y: float, words: str, anchor: str = "start", weight: str = "400", colour: str = _INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )
