"""Which layers a base model has, and how wide they are: read off the headers of its weights.

Torch-free: an adapter is compared with its base model before anything loads either of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from adapters.tensors import TensorFileInvalid, read_header

_SUFFIX = ".weight"


class BaseModelUnreadable(ValueError):
    """The base model's folder has no weights that can be read; the message says why."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Features that go into a linear layer, and come out of it."""

    inputs: int
    outputs: int


LayerShapes: TypeAlias = Mapping[str, LayerShape]
"""By the layer's name, such as ``model.layers.0.self_attn.q_proj``."""


def layer_shapes(folder: Path) -> dict[str, LayerShape]:
    """The linear layers of the base model in ``folder``, embeddings among them.

    Raises:
        BaseModelUnreadable: there are no safetensors weights, or they are damaged.
    """
    shapes = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                for entry in read_header(file, path.stat().st_size):
                    if entry.name.endswith(_SUFFIX) and len(entry.shape) == 2:
                        outputs, inputs = entry.shape
                        shapes[entry.name.removesuffix(_SUFFIX)] = LayerShape(inputs, outputs)
    except (OSError, TensorFileInvalid) as error:
        raise BaseModelUnreadable(f"the base model in {folder} cannot be read: {error}") from error
    if not shapes:
        raise BaseModelUnreadable(f"the base model in {folder} has no *.safetensors weights")
    return shapes
