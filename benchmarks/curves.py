"""Draws curves as SVG: one panel a figure, one line an arm, plain and readable on any page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = (
    *("#2a6fb0", "#c77d2e", "#4f8a4c", "#8a8f98", "#8e5ea2", "#b5473c"),
    *("#3fa7a0", "#b8a12c", "#6b4f3a", "#d77fa1"),
)
_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP, _FOOT = 360, 200, 56, 52, 64, 46
_GROUND, _INK, _FAINT = "#f6f6f3", "#24292f", "#d5d7da"


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over the same steps; values are shares of 1 where `most` is 1."""

    title: str
    lines: Mapping[str, Sequence[float]]
    """By the arm's name, a value a step, the first before any."""
    levels: Mapping[str, float]
    """Named values that a line is to be held against."""
    most: float = 1.0


def curves(title: str, panels: Sequence[Panel]) -> str:
    """The drawing."""
    width = _LEFT + max(1, len(panels)) * (_WIDTH + _GAP)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    height = _TOP + _HEIGHT + _FOOT + 18 * len(names)
    label = escape(title, {'"': "&quot;"})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" '
        f'font-size="12" role="img" aria-label="{label}">',
        f'<rect width="{width}" height="{height}" rx="8" fill="{_GROUND}"/>',
        _text(16, 24, title, weight="600"),
    ]
    colours = dict(zip(names, (COLOURS[n % len(COLOURS)] for n in range(len(names))), strict=True))
    for number, panel in enumerate(panels):
        parts += _panel(panel, _LEFT + number * (_WIDTH + _GAP), colours)
    for number, name in enumerate(names):
        y = _TOP + _HEIGHT + _FOOT + 18 * number
        parts.append(
            f'<rect x="{_LEFT}" y="{y - 9}" width="18" height="4" fill="{colours[name]}"/>'
        )
        parts.append(_text(_LEFT + 26, y, name))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, x: float, colours: Mapping[str, str]) -> Iterable[str]:
    yield _text(x, 50, panel.title)
    for tick in range(5):
        y = _TOP + _HEIGHT * tick / 4
        yield f'<line x1="{x}" x2="{x + _WIDTH}" y1="{y}" y2="{y}" stroke="{_FAINT}"/>'
        yield _text(x - 6, y + 4, f"{panel.most * (4 - tick) / 4:.2g}", "end")
    steps = max((len(line) for line in panel.lines.values()), default=2) - 1
    for name, value in panel.levels.items():
        y = _height(value, panel.most)
        yield (
            f'<line x1="{x}" x2="{x + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_INK}" '
            f'stroke-dasharray="4 4"/>'
        )
        yield _text(x + _WIDTH, y - 4, name, "end")
    for name, line in panel.lines.items():
        points = " ".join(
            f"{x + _WIDTH * step / max(1, steps):.1f},{_height(value, panel.most):.1f}"
            for step, value in enumerate(line)
        )
        yield (
            f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="2"/>'
        )
    yield _text(x, _TOP + _HEIGHT + 18, "start")
    yield _text(x + _WIDTH, _TOP + _HEIGHT + 18, f"step {steps}", "end")


def _height(value: float, most: float) -> float:
    return _TOP + _HEIGHT * (1 - min(1.0, max(0.0, value / most)))


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{_INK}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )
