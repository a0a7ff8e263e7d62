"""The record of what a run has trained: each training with its stage and where it began.

Each training is written down before it begins, in a file of its own, so that an attempt after a crash
knows what is done; at the end of the learning they become one file, so that a rebuild can repeat all
of it. That is kept in the run's folder for as long as the version may be rebuilt.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapters.lesson import Stage, stages_from_json, stages_to_json
from server.core.errors import NotRebuildable

CHAMPION = "champion"
"""The start of a training that goes on from the version that served."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training of a lesson.

    Other weights that it needs are None, the clean base; CHAMPION; or the number of an earlier
    training of the same lesson.
    """

    stage: Stage
    start: int | str | None
    teacher: int | str | None = None
    """Whom its distillations learn from."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """The trainings of a run in their order; the last one's weights are the version's."""

    trainings: tuple[Training, ...] = ()
    started_from: str | None = None
    """Id of the version that CHAMPION stands for."""

    def write(self, path: Path) -> None:
        """Whole or not at all: a worker killed in mid-write must not leave half a file."""
        write_lesson(path, map(row_of, self.trainings), self.started_from)


def row_of(training: Training, champion: str | None = None) -> str:
    """A training as a row of JSON, with the id of the version that CHAMPION stands for in it."""
    fields = {"start": training.start, "teacher": training.teacher, "champion": champion}
    return json.dumps({"stage": stages_to_json([training.stage])[0], **fields})


def write_lesson(path: Path, rows: Iterable[str], started_from: str | None) -> None:
    """The lesson of these rows, which are taken one by one: tokens of many steps are large."""
    partial = path.with_suffix(".part")
    with partial.open("w") as file:
        file.write(f'{{"started_from": {json.dumps(started_from)}, "trainings": [')
        for number, row in enumerate(rows):
            file.write(",\n" if number else "\n")
            file.write(row)
        file.write("]}")
    partial.rename(path)


def read_lesson(path: Path, name: str) -> Lesson:
    """The lesson of a file.

    Raises:
        NotRebuildable: it is no lesson; ``name`` is the version's.
    """
    try:
        fields = json.loads(path.read_text())
        stages = stages_from_json([row["stage"] for row in fields["trainings"]])
        rows = fields["trainings"]
        others = [(row["start"], row.get("teacher")) for row in rows]
        trainings = tuple(
            Training(stage, *each) for stage, each in zip(stages, others, strict=True)
        )
        return Lesson(trainings, fields["started_from"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotRebuildable(name, f"its lesson cannot be read ({error}).") from error


def write_json(path: Path, value: object) -> None:
    """Replace a file in one step."""
    write_text(path, json.dumps(value))


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step; a worker that has lost the run may still be writing the same."""
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(text)
    partial.rename(path)
