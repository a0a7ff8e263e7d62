"""One trainer on one case, in a process of its own: an order in JSON in, one line of JSON out.

It takes a step for each line on stdin, so that several can take turns.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from adapters.spec import LoraSpec, Precision, TrainingSpec
from adapters.training.many import Course, load_bank, train_many
from adapters.training.model import Trainee, load_trainee
from adapters.training.speedups import apply_speedups, find_speedups
from adapters.training.trainer import StepReport, train_steps
from adapters.types import TrainingSample
from benchmarks.training_cases import BATCH, SEED, STEP, reward, steps_of, text

LORA = LoraSpec(rank=16, alpha=32)
WARM_UP = 4
"""Steps that are not counted: the first ones allocate, and compile where there is a compiler."""
_PEAK_SIZE = 2048
_EDIT_CASE = "short chats"


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Do as ordered; the figures."""
    if order["threads"]:
        torch.set_num_threads(order["threads"])
    if order["contender"] in ("many", "one-by-one"):
        return _train_edits(order)
    trainee = load_trainee(
        Path(order["model"]), spec=LORA, seed=SEED, precision=Precision(order["precision"])
    )
    steps = steps_of(order["case"], _tokens(trainee.tokenizer), order["steps"])
    contenders: dict[str, Callable[[], _Run]] = {
        "everlearn": lambda: _everlearn(trainee, steps),
        "trl-padded": lambda: _trl(trainee, steps, is_padding_free=False),
        "trl-padding-free": lambda: _trl(trainee, steps, is_padding_free=True),
        "trl-grpo": lambda: _trl_grpo(trainee, steps),
    }
    run = contenders[order["contender"]]()
    peak_bytes = _peak_memory(trainee.device)
    wait_for_turn()  # the peak below is of a machine that nobody else uses
    return run.figures(trainee, steps) | {"peak_mib": peak_bytes / 2**20}


def wait_for_turn() -> None:
    """Until a line comes: one contender computes at a time."""
    sys.stdin.readline()


class _Run:
    """How long each step took, and what it reported."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.computed: list[int] = []
        self._began = 0.0

    def begin_step(self) -> None:
        wait_for_turn()
        self._began = time.perf_counter()

    def end_step(self) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        sys.stdout.write(STEP + "\n")
        sys.stdout.flush()

    def figures(
        self, trainee: Trainee, steps: Sequence[Sequence[TrainingSample]]
    ) -> dict[str, Any]:
        counted = list(chain.from_iterable(steps[WARM_UP:]))
        return {
            "tokens": sum(len(sample.ids) for sample in counted),
            "seconds": self.seconds[WARM_UP:],
            "products": _products(trainee, sum(self.computed[WARM_UP:]), counted),
            "matrix_peak": _matrix_peak(trainee.device, trainee.compute_dtype),
            "loss": self.losses,
            "grad_norm": self.grad_norms,
        }


def _everlearn(trainee: Trainee, steps: list[list[TrainingSample]]) -> _Run:
    run = _Run()

    def on_step(report: StepReport) -> None:
        run.end_step()
        run.losses.append(report.loss)
        run.grad_norms.append(report.grad_norm)
        run.computed.append(report.tokens)
        if report.step < report.total:
            run.begin_step()

    apply_speedups(trainee.model, find_speedups(trainee.device.type, steps=len(steps)))
    run.begin_step()
    train_steps(trainee, steps, spec=_spec(), on_step=on_step)
    return run


def _trl(trainee: Trainee, steps: list[list[TrainingSample]], *, is_padding_free: bool) -> _Run:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        **_settings(trainee),
        train_sampling_strategy="sequential",
        padding_free=is_padding_free,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    samples = chain.from_iterable(steps)
    rows = [{"input_ids": list(sample.ids), "labels": _labels(sample)} for sample in samples]
    trainer = SFTTrainer(
        model=trainee.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=trainee.tokenizer,
    )
    return _timed(trainer, steps)


def _trl_grpo(trainee: Trainee, steps: list[list[TrainingSample]]) -> _Run:
    """TRL asks for the rollouts of each prompt and gets those that everybody gets."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        **_settings(trainee),
        num_generations=BATCH,
        steps_per_generation=1,
        max_completion_length=max(s.trained_count for s in chain.from_iterable(steps)),
        loss_type="dapo",
        scale_rewards="group",
        epsilon=0.2,
        beta=0.0,
        shuffle_dataset=False,
    )

    def rollouts(prompts: list[str], _trainer: object) -> dict[str, Any]:
        step = steps[int(prompts[0])]
        return {
            "prompt_ids": [list(s.ids[: s.trained_from]) for s in step],
            "completion_ids": [list(s.ids[s.trained_from :]) for s in step],
            "logprobs": [[0.0] * s.trained_count for s in step],
        }

    def rewards(prompts: list[str], **_: object) -> list[float]:
        return [reward(sample) for sample in steps[int(prompts[0])]]

    trainer = GRPOTrainer(
        model=trainee.model,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": str(step)} for step in range(len(steps))]),
        processing_class=trainee.tokenizer,
        reward_funcs=[rewards],
        rollout_func=rollouts,
    )
    return _timed(trainer, steps)


def _settings(trainee: Trainee) -> dict[str, Any]:
    """What TRL's trainers have in common with ours, and nothing that costs time."""
    trainee.model.get_base_model().set_attn_implementation("sdpa")  # as transformers loads it
    spec = _spec()
    return {
        "output_dir": "/nonexistent",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "adam_beta2": 0.99,
        "weight_decay": 0.0,
        "max_grad_norm": spec.max_grad_norm,
        "bf16": trainee.compute_dtype is torch.bfloat16,
        "use_cpu": trainee.device.type == "cpu",
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def _timed(trainer: Any, steps: Sequence[Sequence[TrainingSample]]) -> _Run:
    from transformers import TrainerCallback

    run = _Run()
    run.computed = [sum(len(sample.ids) for sample in step) for step in steps]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: object, **__: object) -> None:
            run.begin_step()

        def on_step_end(self, *_: object, **__: object) -> None:
            run.end_step()

    trainer.add_callback(Clock())
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    run.losses = [entry["loss"] for entry in entries]
    run.grad_norms = [entry["grad_norm"] for entry in entries]
    return run


def _train_edits(order: dict[str, Any]) -> dict[str, Any]:
    """Train some adapters of a few steps each; only the number of rows per pass differs."""
    count = int(order["edits"])
    tokenizer = AutoTokenizer.from_pretrained(order["model"])
    steps = steps_of(_EDIT_CASE, _tokens(tokenizer), count * 2)
    bank = load_bank(
        Path(order["model"]),
        spec=LORA,
        seeds=range(count),
        precision=Precision(order["precision"]),
    )
    spec = _spec().model_copy(update={"epochs": max(1, int(order["steps"]) // 2)})
    courses = [
        Course([*steps[2 * edit], *steps[2 * edit + 1]], spec, seed=edit) for edit in range(count)
    ]
    most_rows = count if order["contender"] == "many" else 1
    short = spec.model_copy(update={"epochs": 1})
    train_many(bank, [Course(c.units[:BATCH], short, seed=0) for c in courses], most_rows=most_rows)
    started = time.perf_counter()
    train_many(bank, courses, most_rows=most_rows)
    return {"seconds_per_edit": (time.perf_counter() - started) / count}


def _spec() -> TrainingSpec:
    return TrainingSpec(learning_rate=2e-4, batch_size=BATCH, warmup_share=0.0, epochs=1)


def _tokens(tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text(), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _labels(sample: TrainingSample) -> list[int]:
    return [i if flag else -100 for i, flag in zip(sample.ids, sample.is_trained, strict=True)]


def _products(trainee: Trainee, computed: int, samples: Sequence[TrainingSample]) -> float:
    """Floating-point operations of the matrix products: forward, and backward to the inputs.

    The frozen weights get no gradient; LoRA's own products and attention are left out.
    """
    base = trainee.model.get_base_model()
    head = base.get_output_embeddings().weight
    layers = sum(
        module.weight.numel()
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and module.weight is not head
    )
    targets = sum(sample.trained_count for sample in samples)
    return 4.0 * float(layers * computed + head.numel() * targets)


def _matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a square product seen here, in operations per second."""
    left, right = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(8):
        _wait(device)
        started = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * _PEAK_SIZE**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_memory(device: torch.device) -> float:
    """Bytes: of the device where there is one, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
