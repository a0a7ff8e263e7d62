"""What AdamW remembers from step to step, as tensors by the name of their parameter.

Of each parameter: `exp_avg` and `exp_avg_sq`, its shape, and `step`, how many steps it has seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

Moments: TypeAlias = Mapping[str, Tensor]
"""`NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step` of each parameter NAME, on the CPU."""


def moments_of(parameters: Mapping[str, nn.Parameter], optimizer: AdamW) -> Moments:
    """The optimiser's state; empty before its first step."""
    return {
        f"{name}.{key}": moment.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, moment in optimizer.state[parameter].items()
    }


def restore_moments(
    moments: Moments, parameters: Mapping[str, nn.Parameter], optimizer: AdamW
) -> None:
    """Have the optimiser go on from there."""
    for name, parameter in parameters.items():
        prefix = f"{name}."
        own = {
            key.removeprefix(prefix): moment
            for key, moment in moments.items()
            if key.startswith(prefix)
        }
        if own:  # the step count stays on the CPU, where AdamW keeps it
            optimizer.state[parameter] = {
                key: moment.clone() if key == "step" else moment.to(parameter.device, copy=True)
                for key, moment in own.items()
            }


def save_moments(moments: Moments, path: Path) -> None:
    """Write them as safetensors.

    Raises:
        OSError: the disk is full or gone.
    """
    save_file(dict(moments), path)


def load_moments(path: Path) -> Moments:
    """What `save_moments` wrote.

    Raises:
        ValueError: they are not there, or damaged.
    """
    try:
        moments: Moments = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the training to go on from has left no optimiser state in {path} ({error}); begin "
            "the optimiser anew, with goes_on false"
        ) from error
    return moments
