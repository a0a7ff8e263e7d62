"""Grids as ARC has them: rows of colours 0 to 9, written as lines of digits with spaces between."""

from collections.abc import Sequence
from typing import TypeAlias

Grid: TypeAlias = tuple[tuple[int, ...], ...]
"""H rows of W colours each, H and W at least 1."""

MOST_SIDE = 30
"""Longest side, as in ARC."""
COLOURS = 10


def grid_of(rows: object) -> Grid:
    """A grid from nested lists of whole numbers.

    Raises:
        ValueError: no rows, ragged, too large, or a cell that is no colour; it says which.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise ValueError("a grid is a list of at least one row")
    grid = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Sequence) or isinstance(row, str) or not row:
            raise ValueError(f"row {number} is not a list of at least one cell")
        for cell in row:
            if type(cell) is not int or not 0 <= cell < COLOURS:
                raise ValueError(f"row {number} holds {cell!r}, and a cell is a digit from 0 to 9")
        grid.append(tuple(row))
    widths = {len(row) for row in grid}
    if len(widths) > 1:
        raise ValueError(f"its rows have {' and '.join(map(str, sorted(widths)))} cells")
    if max(len(grid), *widths) > MOST_SIDE:
        raise ValueError(f"it is larger than {MOST_SIDE} by {MOST_SIDE}")
    return tuple(grid)


def parse_grid(text: str) -> Grid:
    """The grid that `format_grid` wrote.

    Raises:
        ValueError: it is none.
    """
    lines = text.strip().splitlines()
    return grid_of([[_digit(cell) for cell in line.split()] for line in lines])


def format_grid(grid: Grid) -> str:
    """One line for each row, a space between the cells."""
    return "\n".join(" ".join(map(str, row)) for row in grid)


def _digit(text: str) -> int | str:
    return int(text) if len(text) == 1 and text in "0123456789" else text
