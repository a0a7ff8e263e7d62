"""The control for continual learning: every step's adapter is merged into the weights of the steps before.

This is how SEAL's own continual experiment was done (Zweiger et al., arXiv 2506.10943, figure 6), and
it forgets. The product never does it; a benchmark compares with it.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from adapters.lesson import Stage, stages_to_json
from adapters.merge import merge

Trainer: TypeAlias = Callable[[Mapping[str, Any], Path], None]
"""Runs the training job that the fields say, with a folder for its file."""

_TIMEOUT_S = 3600


def learn_and_merge(
    base_model: Path,
    stage: Stage,
    folder: Path,
    *,
    threads: int | None = None,
    train: Trainer | None = None,
) -> Path:
    """Train one step on top of a whole model, and merge it; the folder of the new whole model.

    The next step is given what this one returns for its `base_model`. `folder` is made.

    Raises:
        FileExistsError: `folder` is there already.
        RuntimeError: the training failed; the message holds what it said last.
    """
    folder.mkdir(parents=True)
    adapter, merged = folder / "adapter", folder / "merged"
    job = {
        "base_model": str(base_model),
        "stages": stages_to_json([stage]),
        "outputs": [str(adapter)],
        "threads": threads,
    }
    (train or _train)(job, folder)
    merge(base_model, adapter, merged)
    return merged


def _train(job: Mapping[str, Any], folder: Path) -> None:
    """In a process of its own, as a worker does it."""
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "adapters.training.job", str(file)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        said = done.stdout.strip() or done.stderr.strip()
        raise RuntimeError(said.rpartition("\n")[2])
