"""More examples from few, as pure functions of text: each can be undone, and keeps the rule.

After Akyürek et al., "The Surprising Effectiveness of Test-Time Training for Abstract Reasoning",
arXiv 2411.07279, which SEAL's few-shot setting builds on.
"""

import hashlib
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from adapters.grids import COLOURS, MOST_SIDE, Grid, format_grid, parse_grid
from adapters.types import Example

Change: TypeAlias = Callable[[str], str]
_GridChange: TypeAlias = Callable[[Grid], Grid]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """A change of inputs and the change of outputs that follows from it, with the ways back."""

    name: str
    of_input: Change
    of_output: Change
    undo_input: Change
    undo_output: Change

    def apply(self, example: Example) -> Example:
        """The example, changed.

        Raises:
            ValueError: it would become too large.
        """
        return Example(self.of_input(example.input), self.of_output(example.output))

    def undo(self, example: Example) -> Example:
        """The example that was changed into this one."""
        return Example(self.undo_input(example.input), self.undo_output(example.output))

    def then(self, other: "Augmentation") -> "Augmentation":
        """This one first, the other on what came of it."""
        return Augmentation(
            f"{self.name}, {other.name}",
            lambda text: other.of_input(self.of_input(text)),
            lambda text: other.of_output(self.of_output(text)),
            lambda text: self.undo_input(other.undo_input(text)),
            lambda text: self.undo_output(other.undo_output(text)),
        )


def symmetries() -> tuple[Augmentation, ...]:
    """The seven symmetries of the square that change something."""
    return (
        _on_grids("turned left", _turn_left, _turn_right),
        _on_grids("turned right", _turn_right, _turn_left),
        _on_grids("turned round", _turn_round, _turn_round),
        _on_grids("mirrored", _mirror, _mirror),
        _on_grids("upside down", _upside_down, _upside_down),
        _on_grids("transposed", _transpose, _transpose),
        _on_grids("transposed crosswise", _transpose_crosswise, _transpose_crosswise),
    )


def enlarged() -> Augmentation:
    """Every cell becomes a square of two by two."""
    return _on_grids("enlarged", _enlarge, lambda grid: tuple(row[::2] for row in grid[::2]))


def repetitions() -> tuple[Augmentation, ...]:
    """The grid twice, beside itself or below itself."""
    return (
        _on_grids(
            "twice beside",
            lambda grid: tuple(row + row for row in grid),
            lambda grid: tuple(row[: len(row) // 2] for row in grid),
        ),
        _on_grids("twice below", lambda grid: grid + grid, lambda grid: grid[: len(grid) // 2]),
    )


def recolouring(seed: int) -> Augmentation:
    """Colours 1 to 9 exchanged among themselves; 0, the background, stays."""
    colours = list(range(1, COLOURS))
    random.Random(seed).shuffle(colours)
    there = (0, *colours)
    back = tuple(there.index(colour) for colour in range(COLOURS))
    return _on_grids(
        f"recoloured {seed}",
        lambda grid: _recolour(grid, there),
        lambda grid: _recolour(grid, back),
    )


def input_variants() -> tuple[Augmentation, ...]:
    """Changes of a text's white space and case; only where :func:`are_labels` holds."""
    return (
        _on_input("framed by spaces", lambda text: f" {text} ", lambda text: text[1:-1]),
        _on_input("line ended", lambda text: f"{text}\n", lambda text: text[:-1]),
        _on_input("case exchanged", _swap_case, _swap_case),
        _on_input("first letter's case", _swap_first, _swap_first),
    )


def are_labels(examples: Sequence[Example]) -> bool:
    """Whether the outputs are labels of the inputs' meaning, which white space and case leave alone.

    They are taken to be when there are fewer outputs than examples, none is a part of its input or
    the other way round, inputs have no white space of their own, and no two inputs that differ in
    case alone have different outputs.
    """
    outputs = {example.output.casefold().strip() for example in examples}
    if len(outputs) >= len(examples):
        return False
    by_input: dict[str, set[str]] = {}
    for example in examples:
        said, label = example.input.casefold(), example.output.casefold().strip()
        if label in said or said in label or example.input != " ".join(example.input.split()):
            return False
        by_input.setdefault(said, set()).add(example.output)
    return all(len(labels) == 1 for labels in by_input.values())


def hashed_seed(*parts: object) -> int:
    """A number that follows from the parts alone, on every machine."""
    content = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest())


def _on_grids(name: str, change: _GridChange, back: _GridChange) -> Augmentation:
    def changed(text: str) -> str:
        grid = change(parse_grid(text))
        if max(len(grid), len(grid[0])) > MOST_SIDE:
            raise ValueError(f"{name}, the grid would be larger than {MOST_SIDE} by {MOST_SIDE}")
        return format_grid(grid)

    def undone(text: str) -> str:
        return format_grid(back(parse_grid(text)))

    return Augmentation(name, changed, changed, undone, undone)


def _on_input(name: str, change: Change, back: Change) -> Augmentation:
    return Augmentation(name, change, _same, back, _same)


def _same(text: str) -> str:
    return text


def _transpose(grid: Grid) -> Grid:
    return tuple(zip(*grid, strict=True))


def _mirror(grid: Grid) -> Grid:
    return tuple(row[::-1] for row in grid)


def _upside_down(grid: Grid) -> Grid:
    return grid[::-1]


def _turn_round(grid: Grid) -> Grid:
    return _mirror(_upside_down(grid))


def _turn_left(grid: Grid) -> Grid:
    return _upside_down(_transpose(grid))


def _turn_right(grid: Grid) -> Grid:
    return _mirror(_transpose(grid))


def _transpose_crosswise(grid: Grid) -> Grid:
    return _turn_round(_transpose(grid))


def _enlarge(grid: Grid) -> Grid:
    wide = (tuple(cell for cell in row for _ in range(2)) for row in grid)
    return tuple(row for row in wide for _ in range(2))


def _recolour(grid: Grid, colours: Sequence[int]) -> Grid:
    return tuple(tuple(colours[cell] for cell in row) for row in grid)


_SWAPPED = str.maketrans(
    string.ascii_letters, string.ascii_uppercase + string.ascii_lowercase
)  # letters beyond ASCII have cases that cannot be undone


def _swap_case(text: str) -> str:
    return text.translate(_SWAPPED)


def _swap_first(text: str) -> str:
    return _swap_case(text[:1]) + text[1:]
