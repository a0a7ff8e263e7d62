"""The training loop: segments in, changed LoRA weights out; blind to the method that planned them.

Deterministic on CPU for one seed and thread count. Does not load, save or print.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.spec import TrainingSpec
from adapters.training.batch import Batch, Segment, pack, split_by_tokens
from adapters.training.logprobs import target_logits
from adapters.training.losses import cross_entropy, reference_kl
from adapters.training.model import Trainee
from adapters.training.optim import build_optimizer, build_schedule, clip_gradients


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


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step: mean loss over its trained tokens, gradient norm before clipping."""

    step: int
    total: int
    loss: float
    grad_norm: float
    tokens: int


def train(
    trainee: Trainee,
    segments: Sequence[Segment],
    *,
    anchors: Sequence[Segment] = (),
    anchors_per_epoch: int = 0,
    spec: TrainingSpec,
    seed: int,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> None:
    """Run `spec.epochs` passes over `segments`, each mixed with the next few of `anchors`.

    The anchors are not learnt: on their trained tokens the model is held to the base's
    distribution, which guards what it could do before.

    Raises:
        ValueError: there is nothing to train.
        TrainingDiverged: loss or gradient is NaN or infinite; that step is not applied.
    """
    if not segments:
        raise ValueError("no segment to train; the plan is empty")
    steps = list(_steps(segments, anchors, anchors_per_epoch, spec=spec, seed=seed))
    parameters = [p for p in trainee.model.parameters() if p.requires_grad]
    optimizer = build_optimizer(trainee.model.named_parameters(), spec)
    schedule = build_schedule(optimizer, spec, total_steps=len(steps))
    trainee.model.train()
    for number, step_segments in enumerate(steps, start=1):
        loss, tokens = _accumulate(trainee, step_segments, spec)
        grad_norm = clip_gradients(parameters, spec.max_grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingDiverged(number, loss, grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        on_step(StepReport(number, len(steps), loss, grad_norm, tokens))
    trainee.model.eval()


def _steps(
    segments: Sequence[Segment],
    anchors: Sequence[Segment],
    anchors_per_epoch: int,
    *,
    spec: TrainingSpec,
    seed: int,
) -> Iterator[list[Segment]]:
    """Segments of each optimiser step, shuffled anew each epoch."""
    shuffler = random.Random(seed)
    drawn = 0
    for _ in range(spec.epochs):
        epoch = list(segments)
        for _ in range(anchors_per_epoch if anchors else 0):
            epoch.append(replace(anchors[drawn % len(anchors)], is_anchor=True))
            drawn += 1
        shuffler.shuffle(epoch)
        for start in range(0, len(epoch), spec.batch_size):
            yield epoch[start : start + spec.batch_size]


def _accumulate(
    trainee: Trainee, segments: Sequence[Segment], spec: TrainingSpec
) -> tuple[float, int]:
    """Add the gradients of one step; returns its loss and the tokens computed."""
    norm = _loss_norm(segments)
    loss_sum, tokens = 0.0, 0
    lessons = [s for s in segments if not s.is_anchor]
    anchors = [s for s in segments if s.is_anchor]
    for part, part_loss in ((lessons, _lesson_loss), (anchors, _anchor_loss)):
        for group in split_by_tokens(part, spec.microbatch_tokens):
            weights = [_token_weight(s) / norm for s in group]
            batch = pack(group, weights=weights).to(trainee.device)
            loss = (part_loss(trainee, batch) * batch.weights_N).sum()
            torch.autograd.backward(loss)
            loss_sum += float(loss.detach())
            tokens += batch.input_ids_1T.numel()
    return loss_sum, tokens


def _lesson_loss(trainee: Trainee, batch: Batch) -> Tensor:
    with trainee.autocast():
        logits_NV = target_logits(trainee.model, batch)
    return cross_entropy(logits_NV, batch.targets_N)


def _anchor_loss(trainee: Trainee, batch: Batch) -> Tensor:
    """How far the model has moved from the base, which is the same model without its adapter."""
    with torch.no_grad(), trainee.model.disable_adapter(), trainee.autocast():
        reference_NV = target_logits(trainee.model, batch)
    with trainee.autocast():
        logits_NV = target_logits(trainee.model, batch)
    return reference_kl(logits_NV, reference_NV)


def _token_weight(segment: Segment) -> float:
    """Between a token mean and a segment mean: a long passage counts more than a name, not 50x."""
    return 1.0 / math.sqrt(segment.trained_count)


def _loss_norm(segments: Sequence[Segment]) -> float:
    return sum(_token_weight(s) * s.trained_count for s in segments)
