"""Several LoRAs trained at once over one frozen base: each row of a batch goes to its own adapter.

The base's matrix products, most of the work, are done once on all rows together. The adapters stay
strangers: own weights, optimiser, rate, clipping and number of steps, so each ends up as if it had
been trained alone, and one that diverges stops by itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters.spec import LoraSpec, LossSpec, Precision, TrainingSpec
from adapters.training.batch import Batch
from adapters.training.model import (
    Base,
    autocast,
    compute_dtype,
    load_base,
    lora_config,
    save_adapter,
    weaken,
)
from adapters.training.objective import component_losses
from adapters.training.optim import build_optimizer, set_rate
from adapters.training.trainer import (
    StepReport,
    TrainingCancelled,
    TrainingDiverged,
    apply_step,
    microbatches,
    plan_steps,
    row_cost,
)
from adapters.types import Judged, TrainingSample, Unit


class LoraPair(NamedTuple):
    """One adapter's update of one linear layer, O x I: `up` times `down`, of rank R."""

    down_RI: nn.Parameter
    up_OR: nn.Parameter


class LoraBank:
    """A frozen base and K adapters of one shape, all of them on every linear layer but the head.

    Each starts with the weights that `load_trainee` draws for its seed. Outside of `routed` the
    base speaks alone.

    Raises:
        ValueError: dropout is asked for; the adapters would have to share its random numbers.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        *,
        spec: LoraSpec,
        seeds: Sequence[int],
        precision: Precision = Precision.AUTO,
    ) -> None:
        if spec.dropout:
            raise ValueError("adapters trained together take no dropout; set it to 0")
        self.tokenizer = tokenizer
        self.device = device
        self._spec = spec
        self.compute_dtype = compute_dtype(device, precision)
        self.base = base
        self._adapters = [self._draw(seed, device) for seed in seeds]
        self.base.to(device).requires_grad_(False)
        self._routes: tuple[int, ...] | None = None
        self._hooks = [
            self.base.get_submodule(name).register_forward_hook(partial(self._add_update, name))
            for name in (self._adapters[0] if seeds else ())
        ]

    def parameters(self, adapter: int) -> dict[str, nn.Parameter]:
        """The adapter's weights under the names that PEFT gives them."""
        named: dict[str, nn.Parameter] = {}
        for name, pair in self._adapters[adapter].items():
            named[f"base_model.model.{name}.lora_A.weight"] = pair.down_RI
            named[f"base_model.model.{name}.lora_B.weight"] = pair.up_OR
        return named

    @contextmanager
    def routed(self, adapters: Sequence[int]) -> Iterator[None]:
        """While it lasts, row i of a batch goes through adapter `adapters[i]`."""
        self._routes = tuple(adapters)
        try:
            yield
        finally:
            self._routes = None

    def logits(self, batches: Sequence[Batch]) -> Tensor:
        """Logits of all batches' targets, one batch after the other, each batch a row; N x V.

        The rows are filled up to the longest with tokens that see, and are seen by, themselves.
        """
        ids_BT = pad_sequence([b.input_ids_1T[0] for b in batches], batch_first=True)
        positions_BT = pad_sequence([b.position_ids_1T[0] for b in batches], batch_first=True)
        width = ids_BT.shape[1]
        mask_BTT = torch.eye(width, dtype=torch.bool, device=self.device).repeat(len(batches), 1, 1)
        for row, batch in enumerate(batches):
            length = batch.input_ids_1T.shape[1]
            mask_BTT[row, :length, :length] = batch.mask_11TT[0, 0]
        places_N = torch.cat([row * width + b.predictors_N for row, b in enumerate(batches)])
        head = self.base.get_output_embeddings()
        keep = head.register_forward_pre_hook(lambda _, args: (args[0].flatten(0, 1)[places_N],))
        try:
            with autocast(self.device, self.compute_dtype):
                logits_NV: Tensor = self.base(
                    input_ids=ids_BT,
                    position_ids=positions_BT,
                    attention_mask=mask_BTT[:, None],
                    use_cache=False,
                ).logits
        finally:
            keep.remove()
        return logits_NV

    def save(self, adapter: int, folder: Path, *, base_name: str, strength: float = 1.0) -> None:
        """Write one adapter, or this part of it, as the PEFT folder that `save_adapter` describes."""
        model = get_peft_model(self.base, lora_config(self._spec))
        try:
            with torch.no_grad():
                for name, layer in _lora_layers(model.base_model.model):
                    layer.lora_A["default"].weight.copy_(self._adapters[adapter][name].down_RI)
                    layer.lora_B["default"].weight.copy_(self._adapters[adapter][name].up_OR)
            weaken(model, strength)
            save_adapter(model, folder, base_name=base_name)
        finally:
            self.base = model.unload()

    def give_back(self) -> Base:
        """The base as it was before, without the adapters; the bank is of no use any more."""
        for hook in self._hooks:
            hook.remove()
        return Base(self.base, self.tokenizer, self.device)

    def _draw(self, seed: int, device: torch.device) -> dict[str, LoraPair]:
        """First weights of one adapter by layer, drawn by PEFT itself so that they are the same."""
        torch.manual_seed(seed)
        model = get_peft_model(self.base, lora_config(self._spec))
        drawn = {
            name: LoraPair(
                nn.Parameter(layer.lora_A["default"].weight.detach().to(device)),
                nn.Parameter(layer.lora_B["default"].weight.detach().to(device)),
            )
            for name, layer in _lora_layers(model.base_model.model)
        }
        self.base = model.unload()
        return drawn

    def _add_update(
        self, name: str, _layer: nn.Module, inputs: tuple[Tensor, ...], output_BTO: Tensor
    ) -> Tensor:
        if self._routes is None:
            return output_BTO
        pairs = [self._adapters[index][name] for index in self._routes]
        down_BRI = torch.stack([pair.down_RI for pair in pairs])
        up_BOR = torch.stack([pair.up_OR for pair in pairs])
        inputs_BTI = inputs[0].to(down_BRI.dtype)
        update_BTO = torch.bmm(torch.bmm(inputs_BTI, down_BRI.mT), up_BOR.mT)
        scale = self._spec.alpha / self._spec.rank
        return (output_BTO + update_BTO * scale).to(output_BTO.dtype)


@dataclass(frozen=True, slots=True)
class Course:
    """What one adapter is taught; the arguments that `train` takes."""

    units: Sequence[Unit]
    spec: TrainingSpec
    seed: int
    anchors: Sequence[TrainingSample] = ()
    anchors_per_epoch: int = 0


def load_bank(
    folder: Path, *, spec: LoraSpec, seeds: Sequence[int], precision: Precision = Precision.AUTO
) -> LoraBank:
    """Load the base model of `folder` once, with an adapter for each seed."""
    return LoraBank(*load_base(folder, precision), spec=spec, seeds=seeds, precision=precision)


def train_many(
    bank: LoraBank,
    courses: Sequence[Course],
    *,
    losses: LossSpec | None = None,
    most_rows: int = 8,
    on_step: Callable[[int, StepReport], None] = lambda *_: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[TrainingDiverged | None]:
    """Train adapter i of the bank by course i; up to `most_rows` of them share a forward pass.

    Each course takes its own number of steps. Returns for each adapter why it was given up, or
    None where it was not.

    Raises:
        ValueError: there is nothing to train in a course, or a judged answer.
        TrainingCancelled: `should_stop`, asked before each forward pass, said so.
    """
    losses = losses or LossSpec()
    pupils = [_Pupil(bank, index, course) for index, course in enumerate(courses)]
    for number in range(1, max((len(pupil.steps) for pupil in pupils), default=0) + 1):
        active = [pupil for pupil in pupils if pupil.is_active(number)]
        for start in range(0, len(active), most_rows):
            part = active[start : start + most_rows]
            for pupil in part:
                pupil.begin(number, losses)
            while works := [(pupil, work) for pupil in part if (work := pupil.next_work())]:
                if should_stop():
                    raise TrainingCancelled("the training was cancelled")
                _learn(bank, works, losses)
            for pupil in part:
                if (report := pupil.finish(number)) is not None:
                    on_step(pupil.index, report)
    return [pupil.failure for pupil in pupils]


class _Pupil:
    """One adapter on its course."""

    def __init__(self, bank: LoraBank, index: int, course: Course) -> None:
        if any(isinstance(unit, Judged) for unit in course.units):
            raise ValueError("judged answers are not trained together; train each alone")
        self.index = index
        self.steps = plan_steps(
            course.units,
            course.anchors,
            course.anchors_per_epoch,
            spec=course.spec,
            seed=course.seed,
        )
        self.failure: TrainingDiverged | None = None
        self._spec = course.spec
        self._device = bank.device
        self._row_cost = row_cost(bank.base.config.hidden_size, bank.device.type)
        parameters = bank.parameters(index)
        self._parameters = list(parameters.values())
        self._optimizer: AdamW = build_optimizer(parameters.items(), course.spec)
        self._works: Iterator[tuple[Batch, bool]] = iter(())
        self._totals: dict[str, float] = {}
        self._tokens = 0

    def is_active(self, number: int) -> bool:
        """Whether the 1-based step is still to be done."""
        return self.failure is None and number <= len(self.steps)

    def begin(self, number: int, losses: LossSpec) -> None:
        """Take up a step."""
        set_rate(self._optimizer, self._spec, step=number - 1, total_steps=len(self.steps))
        self._works = microbatches(
            self.steps[number - 1],
            limit=self._spec.microbatch_tokens,
            losses=losses,
            cost=self._row_cost,
        )
        self._totals, self._tokens = {}, 0

    def next_work(self) -> tuple[Batch, bool] | None:
        """The step's next batch, and whether it needs the reference; None when it is done."""
        for batch, is_reference_needed in islice(self._works, 1):
            return batch.to(self._device), is_reference_needed
        return None

    def note(self, batch: Batch, components: dict[str, Tensor]) -> None:
        """Add a batch to the step's report."""
        self._tokens += batch.input_ids_1T.numel()
        for name, value in components.items():
            self._totals[name] = self._totals.get(name, 0.0) + float(value.detach())

    def finish(self, number: int) -> StepReport | None:
        """Apply the step; None if that failed, which ends the course."""
        loss = sum(self._totals.values())
        try:
            norm = apply_step(self._optimizer, self._parameters, self._spec, loss, number)
        except TrainingDiverged as failure:
            self.failure = failure
            return None
        finally:
            self._optimizer.zero_grad(set_to_none=True)
        total = len(self.steps)
        return StepReport(number, total, loss, norm, self._tokens, dict(self._totals))


def _learn(
    bank: LoraBank, works: Sequence[tuple[_Pupil, tuple[Batch, bool]]], losses: LossSpec
) -> None:
    """Add the gradients of one batch of each pupil."""
    references: dict[int, Tensor] = {}
    needing = [(pupil, batch) for pupil, (batch, is_needed) in works if is_needed]
    if needing:
        with torch.no_grad():
            logits_NV = bank.logits([batch for _, batch in needing])
        references = _by_pupil(logits_NV, needing)
    batches = [(pupil, batch) for pupil, (batch, _) in works]
    with bank.routed([pupil.index for pupil, _ in batches]):
        logits = _by_pupil(bank.logits([batch for _, batch in batches]), batches)
    values: list[Tensor] = []
    for pupil, batch in batches:
        reference_NV = references.get(pupil.index)
        parts = component_losses(logits[pupil.index], batch, losses, reference_NV=reference_NV)
        pupil.note(batch, parts)
        values.extend(parts.values())
    torch.autograd.backward(values)


def _by_pupil(logits_NV: Tensor, batches: Sequence[tuple[_Pupil, Batch]]) -> dict[int, Tensor]:
    parts = torch.split(logits_NV, [len(batch.targets_N) for _, batch in batches])
    return {pupil.index: part for (pupil, _), part in zip(batches, parts, strict=True)}


def _lora_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """PEFT's layers by the name of the layer they wrap."""
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
