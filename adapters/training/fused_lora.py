"""LoRA's update added within its second product, on CPU, where each pass over memory costs.

PEFT multiplies `lora_B(lora_A(x))`, scales it and adds it to the base's output: three tensors of the
output's size for each linear layer, and as many passes backwards. One `addmm` leaves one of each;
the scale goes to the small factors. The same numbers up to rounding.
"""

from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


def fuse(model: PeftModel) -> None:
    """Change every LoRA layer of the model in place; what `unload` gives back is untouched."""
    for layer in model.modules():
        if isinstance(layer, Linear) and isinstance(layer.base_layer, nn.Linear):
            layer.forward = MethodType(_forward, layer)


def _forward(layer: Linear, inputs_XI: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The layer's output; shape X x O, with any number of dimensions in X."""
    name = layer.active_adapters[0]
    is_plain = (
        len(layer.active_adapters) == 1
        and name in layer.lora_A
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and not (layer.disable_adapters or layer.merged or args or kwargs)
    )
    if not is_plain:
        output: Tensor = Linear.forward(layer, inputs_XI, *args, **kwargs)
        return output
    if torch.is_autocast_enabled("cpu"):
        inputs_XI = inputs_XI.to(torch.get_autocast_dtype("cpu"))  # once for both products
    output_XO: Tensor = layer.base_layer(inputs_XI)
    down_XR = linear(inputs_XI, layer.lora_A[name].weight)
    up_RO = layer.lora_B[name].weight.mT
    fused_TO = torch.addmm(
        output_XO.flatten(0, -2), down_XR.flatten(0, -2), up_RO, alpha=layer.scaling[name]
    )
    return fused_TO.view_as(output_XO)
