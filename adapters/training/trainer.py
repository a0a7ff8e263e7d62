"""The training loop: samples in, changed LoRA weights out; blind to the method that planned them.

Deterministic on CPU for one seed and thread count. Does not load, print, or know where it runs.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import torch
from torch import Tensor, nn

from adapters.spec import LossSpec, TrainingSpec
from adapters.training.batch import Batch, RowCost, pack, split_by_tokens
from adapters.training.checkpoints import Checkpoints, fingerprint
from adapters.training.logprobs import target_logits
from adapters.training.mismatch import kl_estimate
from adapters.training.model import Trainee
from adapters.training.moments import Moments, moments_of, restore_moments
from adapters.training.objective import component_losses, needs_reference
from adapters.training.optim import build_optimizer, clip_gradients, set_rate
from adapters.types import TrainingSample, Unit


class TrainingDiverged(RuntimeError):
    """The loss or the gradient stopped being a finite number; the weights are of no use."""

    def __init__(self, step: int, loss: float, grad_norm: float) -> None:
        super().__init__(step, loss, grad_norm)

    def __str__(self) -> str:
        step, loss, grad_norm = self.args
        return (
            f"training diverged at step {step} (loss {loss}, gradient norm {grad_norm}); "
            "lower the learning rate"
        )


class TrainingCancelled(RuntimeError):
    """Somebody asked for the training to stop; the weights are those of the last whole step."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step: its loss, the gradient norm before clipping, the tokens computed."""

    step: int
    total: int
    loss: float
    grad_norm: float
    tokens: int
    components: Mapping[str, float] = field(default_factory=dict)
    """What each component adds to the loss."""


def train(
    trainee: Trainee,
    units: Sequence[Unit],
    *,
    anchors: Sequence[TrainingSample] = (),
    anchors_per_epoch: int = 0,
    spec: TrainingSpec,
    losses: LossSpec | None = None,
    seed: int,
    on_step: Callable[[StepReport], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
    moments: Moments | None = None,
    most_steps: int | None = None,
) -> Moments:
    """Run `spec.epochs` passes over `units`, each mixed with the next few of `anchors`.

    The anchors (`as_anchor`) are not learnt: on their trained tokens the model is held to the base's
    distribution, which guards what it could do before.

    With `checkpoints` the training goes on from where one with the same arguments was broken off,
    and on CPU ends with the same weights, bit for bit, as if it had not been.

    With `moments` the optimiser goes on from those of another training, which this one continues;
    its own at the end are returned.

    With `most_steps` it ends after so many, and the rate falls as of a training of that length.

    Raises:
        ValueError: there is nothing to train.
        TrainingDiverged: loss or gradient is NaN or infinite; that step is not applied.
        TrainingCancelled: `should_stop`, asked before each forward pass, said so.
        OSError: a checkpoint could not be written.
    """
    steps = plan_steps(units, anchors, anchors_per_epoch, spec=spec, seed=seed)
    return train_steps(
        trainee,
        steps[:most_steps],
        spec=spec,
        losses=losses,
        on_step=on_step,
        should_stop=should_stop,
        checkpoints=checkpoints,
        moments=moments,
    )


def train_steps(
    trainee: Trainee,
    steps: Sequence[Sequence[Unit]],
    *,
    spec: TrainingSpec,
    losses: LossSpec | None = None,
    on_step: Callable[[StepReport], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
    moments: Moments | None = None,
) -> Moments:
    """Take one optimiser step on the units of each of `steps`, in that order; see `train`.

    Raises:
        TrainingDiverged, TrainingCancelled, OSError: as `train`.
    """
    losses = losses or LossSpec()
    parameters = {n: p for n, p in trainee.model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(parameters.items(), spec)
    if moments is not None:
        restore_moments(moments, parameters, optimizer)
    first = 0
    course = ""
    if checkpoints is not None:
        course = _course(steps, parameters, moments or {}, spec, losses)
        if (saved := checkpoints.newest(course)) is not None:
            saved.restore(parameters, optimizer)
            first = saved.step
    trainee.model.train()
    for number, step_units in enumerate(steps[first:], start=first + 1):
        set_rate(
            optimizer,
            spec,
            step=number - 1,
            total_steps=len(steps),
            is_warm=moments is not None,
        )
        try:
            parts, tokens = _accumulate(trainee, step_units, spec, losses, should_stop)
            loss = sum(parts.values())
            grad_norm = apply_step(optimizer, list(parameters.values()), spec, loss, number)
        finally:
            optimizer.zero_grad(set_to_none=True)
        on_step(StepReport(number, len(steps), loss, grad_norm, tokens, parts))
        if checkpoints is not None and checkpoints.is_due() and number < len(steps):
            checkpoints.save(number, parameters, optimizer, fingerprint=course)
    trainee.model.eval()
    return moments_of(parameters, optimizer)


def plan_steps(
    units: Sequence[Unit],
    anchors: Sequence[TrainingSample],
    anchors_per_epoch: int,
    *,
    spec: TrainingSpec,
    seed: int,
) -> list[list[Unit]]:
    """The units of each optimiser step, shuffled anew each epoch.

    Raises:
        ValueError: there are no units.
    """
    if not units:
        raise ValueError("no sample to train; the plan is empty")
    shuffler = random.Random(seed)
    steps: list[list[Unit]] = []
    drawn = 0
    for _ in range(spec.epochs):
        epoch: list[Unit] = list(units)
        for _ in range(anchors_per_epoch if anchors else 0):
            epoch.append(anchors[drawn % len(anchors)])
            drawn += 1
        shuffler.shuffle(epoch)
        starts = range(0, len(epoch), spec.batch_size)
        steps.extend(epoch[start : start + spec.batch_size] for start in starts)
    return steps


def microbatches(
    units: Sequence[Unit], *, limit: int, losses: LossSpec, cost: RowCost | None = None
) -> Iterator[tuple[Batch, bool]]:
    """A step's units packed in batches of at most `limit` tokens, weights as parts of the step.

    The sum of the batches' losses is the step's loss, however it is split. Units that need the
    reference, as the flag says, come last and by themselves, so that the others are spared its
    forward pass.
    """
    divisor = sum(unit.mass for unit in units)
    for is_needed in (False, True):
        part = [unit for unit in units if needs_reference(unit, losses) is is_needed]
        for group in split_by_tokens(part, limit, cost):
            batch = pack(group, divisor=divisor)
            if batch.parts or batch.pairs_P2 is not None or batch.judged_J is not None:
                yield batch, is_needed


def row_cost(hidden_size: int, device_type: str) -> RowCost | None:
    """On CPU, as measured with layers of SmolLM2-135M's size; elsewhere rows grow to the limit.

    A token's products grow with the square of the hidden size, its looks at others with the size.
    """
    if device_type != "cpu":
        return None
    return RowCost(per_look=0.5 / hidden_size, per_row=100.0)


def apply_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    spec: TrainingSpec,
    loss: float,
    number: int,
) -> float:
    """Clip and step; the gradient norm before clipping.

    Raises:
        TrainingDiverged: loss or gradient is not finite; the weights are left as they are.
    """
    grad_norm = clip_gradients(parameters, spec.max_grad_norm)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainingDiverged(number, loss, grad_norm)
    optimizer.step()
    return grad_norm


def _course(
    steps: Sequence[Sequence[Unit]],
    parameters: Mapping[str, nn.Parameter],
    moments: Moments,
    spec: TrainingSpec,
    losses: LossSpec,
) -> str:
    """Digest of all that decides the weights; each unit is read once, however often it is taken."""
    units = {id(unit): unit for step in steps for unit in step}
    numbers = {key: number for number, key in enumerate(units)}
    order = [[numbers[id(unit)] for unit in step] for step in steps]
    # Where it starts is part of it: the same samples may be taught to another champion.
    begun = {name: _digest(value) for name, value in {**parameters, **moments}.items()}
    return fingerprint(begun, spec, losses, order, *units.values())


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().flatten()
    return sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()


def _accumulate(
    trainee: Trainee,
    units: Sequence[Unit],
    spec: TrainingSpec,
    losses: LossSpec,
    should_stop: Callable[[], bool],
) -> tuple[dict[str, float], int]:
    """Add the gradients of one step; returns its loss by component and the tokens computed."""
    totals: dict[str, float] = {}
    tokens = 0
    cost = row_cost(trainee.model.config.hidden_size, trainee.device.type)
    limit = spec.microbatch_tokens
    z0 = kl_estimate(trainee, units, microbatch_tokens=limit)
    batches = microbatches(units, limit=limit, losses=losses, cost=cost)
    for packed, is_reference_needed in batches:
        if should_stop():
            raise TrainingCancelled("the training was cancelled")
        batch = packed.to(trainee.device)
        reference_NV = reference_logits(trainee, batch) if is_reference_needed else None
        with trainee.autocast():
            logits_NV = target_logits(trainee.model, batch)
        components = component_losses(
            logits_NV, batch, losses, reference_NV=reference_NV, kl_estimate=z0
        )
        torch.autograd.backward(list(components.values()))
        for name, value in components.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach())
        tokens += batch.input_ids_1T.numel()
    return totals, tokens


def reference_logits(trainee: Trainee, batch: Batch) -> Tensor:
    """Logits of the reference, which is the model without its adapter; shape N x V."""
    with torch.no_grad(), trainee.model.disable_adapter(), trainee.autocast():
        return target_logits(trainee.model, batch)
