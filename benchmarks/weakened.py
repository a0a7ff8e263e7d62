"""A part of a trained adapter, without training it anew.

What is kept of a training from the base (`Stage.strength`) is decided when it is over: so the
training of the arm `direct` serves the arm `weakened` as well. The trainer's tests hold that both
ways give the same weights.
"""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from adapters.artifact import WEIGHTS
from adapters.lesson import Weights


def part_of(adapter: Path, strength: float, output: Path) -> Weights:
    """Write the adapter in `adapter` to `output`, with this part of what it adds to its base."""
    shutil.copytree(adapter, output)
    tensors = load_file(adapter / WEIGHTS)
    for name in tensors:
        if ".lora_B." in name:
            tensors[name] *= strength
    save_file(tensors, output / WEIGHTS, metadata={"format": "pt"})
    return Weights(output)


class LastTrained:
    """The adapter that an arm has trained last, until another takes its place.

    Args:
        folder: where it lies; 20 MB for SmolLM2-135M.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, name: str, adapter: Path) -> None:
        """Copy the adapter; the one before it goes."""
        shutil.rmtree(self._folder, ignore_errors=True)
        unfinished = self._folder.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(adapter, unfinished / name)
        unfinished.rename(self._folder)

    def find(self, name: str) -> Path | None:
        """The adapter kept under this name."""
        path = self._folder / name
        return path if path.is_dir() else None
