"""What a broken-off training needs to go on as if nothing had happened: tensors and JSON, no pickle.

A checkpoint is a folder `step-000012` with `state.safetensors` (the trained weights, the
optimiser's moments, the random state) and `state.json`. It is written beside and renamed, so it is
there whole or not at all. The order of the steps and the rate follow from the seed and the step.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from adapters.training.moments import moments_of, restore_moments

_FORMAT = 1
_WEIGHT = "weight."
_MOMENT = "optimizer."
_RANDOM = "random."
_PREFIX = "step-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A moment of a training, after `step` whole steps."""

    step: int
    tensors: Mapping[str, Tensor]

    def restore(self, parameters: Mapping[str, nn.Parameter], optimizer: AdamW) -> None:
        """Put everything back, random state included.

        Raises:
            KeyError, RuntimeError: it is of another model or another adapter.
        """
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.tensors[_WEIGHT + name])
        moments = {
            key.removeprefix(_MOMENT): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(_MOMENT)
        }
        restore_moments(moments, parameters, optimizer)
        torch.set_rng_state(self.tensors[_RANDOM + "cpu"])
        if torch.cuda.is_available() and _RANDOM + "cuda" in self.tensors:
            torch.cuda.set_rng_state(self.tensors[_RANDOM + "cuda"])


class Checkpoints:
    """The checkpoints of one training in one folder; the newest `keep` stay.

    Args:
        every_s: least time between two.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_s: float = 30.0,
        keep: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._every_s = every_s
        self._keep = keep
        self._clock = clock
        self._saved_at = clock()

    def is_due(self) -> bool:
        """Whether the last one is old enough."""
        return self._clock() - self._saved_at >= self._every_s

    def save(
        self,
        step: int,
        parameters: Mapping[str, nn.Parameter],
        optimizer: AdamW,
        *,
        fingerprint: str,
    ) -> None:
        """Write the state after `step` whole steps; then drop what is too old, or of another course.

        After a crash another champion may serve: what was left of the course from the old one has
        higher numbers, and would have the new ones dropped as the older.

        Raises:
            OSError: the disk is full or gone.
        """
        target = self._folder / f"{_PREFIX}{step:08d}"
        partial = self._folder / f".{target.name}.{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_tensors(parameters, optimizer), partial / "state.safetensors")
        state = {"format": _FORMAT, "step": step, "fingerprint": fingerprint}
        (partial / "state.json").write_text(json.dumps(state))
        for path in (*partial.iterdir(), partial):
            _sync(path)
        if target.exists():  # of an earlier attempt, or of other work in this folder
            shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync(self._folder)
        self._saved_at = self._clock()
        own = [folder for folder in self._found() if _course_of(folder) == fingerprint]
        for folder in {*self._found()} - {*own[: self._keep]}:
            shutil.rmtree(folder, ignore_errors=True)

    def newest(self, fingerprint: str) -> Checkpoint | None:
        """The newest whole checkpoint of the training with that fingerprint, if there is one.

        One that cannot be read is passed over: the work since the one before is done again.
        """
        for folder in self._found():
            try:
                state: dict[str, Any] = json.loads((folder / "state.json").read_text())
                if (state["format"], state["fingerprint"]) != (_FORMAT, fingerprint):
                    continue
                return Checkpoint(int(state["step"]), load_file(folder / "state.safetensors"))
            except (OSError, ValueError, KeyError, TypeError, SafetensorError):
                continue
        return None

    def _found(self) -> list[Path]:
        """Newest first."""
        return sorted(self._folder.glob(f"{_PREFIX}*"), reverse=True)


def _course_of(folder: Path) -> object:
    """Fingerprint of the training that a checkpoint is of; None where it cannot be read."""
    try:
        state = json.loads((folder / "state.json").read_text())
        return state["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fingerprint(*parts: object) -> str:
    """Digest of what decides a training's course; equal values, in the same order, equal digest."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()


def _tensors(parameters: Mapping[str, nn.Parameter], optimizer: AdamW) -> dict[str, Tensor]:
    tensors = {_RANDOM + "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[_RANDOM + "cuda"] = torch.cuda.get_rng_state()
    for name, parameter in parameters.items():
        tensors[_WEIGHT + name] = parameter.detach().cpu().contiguous()
    moments = moments_of(parameters, optimizer)
    return tensors | {_MOMENT + key: moment for key, moment in moments.items()}


def _sync(path: Path) -> None:
    """Make sure that a file's content, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
