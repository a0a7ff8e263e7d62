"""What a device offers beyond plain PyTorch, chosen by a pure function and applied by another.

Attention goes through PyTorch's scaled-dot-product kernels everywhere, which is transformers' own
default (`block_attention` on CPU). On CPU nothing is compiled: eager PyTorch gives the same bits from run to run.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from peft import PeftModel
from transformers.integrations.liger import apply_liger_kernel

from adapters.training.fused_lora import fuse

_STEPS_WORTH_COMPILING = 200
"""Compiling takes about as long as some hundred steps of a small model save by it."""


@dataclass(frozen=True, slots=True)
class Speedups:
    """What to use."""

    has_fused_layers: bool
    """liger-kernel's norms, rotary embedding and MLP; the loss is computed on targets only anyway."""
    is_compiled: bool
    """torch.compile, for any sequence length."""
    has_fused_lora: bool = False
    """`fused_lora`: fewer passes over memory."""


def choose_speedups(device_type: str, *, steps: int, has_liger: bool, has_triton: bool) -> Speedups:
    """What pays for so many steps on such a device. Compiled kernels need CUDA and Triton."""
    is_able = device_type == "cuda" and has_triton
    return Speedups(
        has_fused_layers=is_able and has_liger,
        is_compiled=is_able and not has_liger and steps >= _STEPS_WORTH_COMPILING,
        has_fused_lora=device_type == "cpu",
    )


def find_speedups(device_type: str, *, steps: int) -> Speedups:
    """`choose_speedups` with what is installed here."""
    return choose_speedups(
        device_type,
        steps=steps,
        has_liger=find_spec("liger_kernel") is not None,
        has_triton=find_spec("triton") is not None,
    )


def apply_speedups(model: PeftModel, speedups: Speedups) -> None:
    """Change the model in place; what it computes stays the same up to rounding."""
    if speedups.has_fused_layers:
        apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
    if speedups.has_fused_lora:
        fuse(model)
    if speedups.is_compiled:
        model.compile(dynamic=True)
