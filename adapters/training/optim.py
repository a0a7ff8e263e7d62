"""Parameter groups, the optimiser and its schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW

from adapters.spec import TrainingSpec


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], spec: TrainingSpec
) -> AdamW:
    """AdamW over the trainable parameters; matrices decay, vectors do not."""
    trainable = [p for _, p in named_parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=spec.learning_rate, betas=(0.9, 0.99))


def set_rate(
    optimizer: AdamW, spec: TrainingSpec, *, step: int, total_steps: int, is_warm: bool = False
) -> None:
    """The rate of the 0-based `step`: linear warm-up, then linear or cosine decay that would reach
    zero one step after the last, or none. A function of the step alone: there is no state to keep.

    The warm-up is there for an optimiser whose moments are still noise. One that goes on from
    another training `is_warm` already: that training's warm-up was over before it ended.
    """
    warmup = 0 if is_warm else round(total_steps * spec.warmup_share)
    factor = rate_factor(step, warmup, total_steps, schedule=spec.schedule)
    for group in optimizer.param_groups:
        group["lr"] = spec.learning_rate * factor


def rate_factor(step: int, warmup: int, total_steps: int, *, schedule: str) -> float:
    """Multiplier of the peak rate for the 0-based `step`; in (0, 1]."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to `max_norm`; returns their norm before (L2, all parameters)."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
