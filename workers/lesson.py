"""The record of what a run has trained: each training with its stage and where it began.

Written before the training, so that an attempt after a crash knows what is done, and a rebuild can
repeat all of it. Kept in the run's folder for as long as the version may be rebuilt.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from adapters.lesson import Stage, stages_from_json, stages_to_json
from server.core.errors import NotRebuildable

CHAMPION = "champion"
"""The start of a training that goes on from the version that served."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training of a lesson."""

    stage: Stage
    start: int | str | None
    """None: the clean base; CHAMPION; or the number of an earlier training of the same lesson."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """The trainings of a run in their order; the last one's weights are the version's."""

    trainings: tuple[Training, ...] = ()
    started_from: str | None = None
    """Id of the version that CHAMPION stands for."""

    def write(self, path: Path) -> None:
        """Whole or not at all: a worker killed in mid-write must not leave half a file."""
        rows = [
            {"stage": stages_to_json([each.stage])[0], "start": each.start}
            for each in self.trainings
        ]
        write_json(path, {"trainings": rows, "started_from": self.started_from})


def read_lesson(path: Path, name: str) -> Lesson:
    """The lesson of a file.

    Raises:
        NotRebuildable: it is no lesson; ``name`` is the version's.
    """
    try:
        fields = json.loads(path.read_text())
        stages = stages_from_json([row["stage"] for row in fields["trainings"]])
        starts = [row["start"] for row in fields["trainings"]]
        trainings = tuple(map(Training, stages, starts))
        return Lesson(trainings, fields["started_from"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotRebuildable(name, f"its lesson cannot be read ({error}).") from error


def write_json(path: Path, value: object) -> None:
    """Replace a file in one step."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(value))
    partial.rename(path)
