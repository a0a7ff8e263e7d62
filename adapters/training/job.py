"""Training as a process of its own: `python -m adapters.training.job [JOB_FILE]`.

Reads a job from JSON, reports one JSON object per line on stdout, leaves a PEFT folder. Without an
argument it takes job after job: each line of stdin is the path of one, as a JSON string; what a job
reports ends with `done`, and the base model stays in memory for the next. The end of stdin is its
own end, and so is a job that fails.

A process because CUDA cannot start in a forked worker and because killing it is the only sure way
to cancel. It ends by itself when its parent dies.
"""

import gc
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adapters.lesson import Stage, Weights, stages_from_json
from adapters.spec import Precision
from adapters.training.batch import Batch, encode_whole, weighted_anchors
from adapters.training.checkpoints import Checkpoints
from adapters.training.distillation import Teacher, distill
from adapters.training.given import encode_replies, judged_against
from adapters.training.logprobs import target_logits
from adapters.training.many import Course, LoraBank, train_many
from adapters.training.model import (
    Base,
    Trainee,
    attach,
    load_base,
    save_adapter,
    speaking_as,
    weaken,
)
from adapters.training.moments import load_moments, save_moments
from adapters.training.preferences import encode_pairs, preferences
from adapters.training.speedups import apply_speedups, find_speedups
from adapters.training.trainer import StepReport, TrainingDiverged, reference_logits, train
from adapters.types import EditKind, TrainingSample, Unit

_PARENT_POLL_S = 1.0
_EXIT_ORPHANED = 3


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, from what, and where the result goes.

    One stage, on top of the clean base or of `start`; or stages of one `lora`, each an adapter of
    its own from the clean base, trained together: several, or trials.
    """

    base_model: Path
    stages: tuple[Stage, ...]
    outputs: tuple[Path, ...]
    """A folder for each stage's adapter; one that diverged among those together leaves none."""
    start: Path | None
    teacher: Path | None
    """A PEFT folder that the stage's distillations learn from; None: the base."""
    keeps_moments: bool
    """Whether the optimiser's moments are left at `Weights.moments` of the output."""
    threads: int | None
    checkpoints: Path | None
    """Folder to go on from and to leave checkpoints in; none are kept without it."""
    checkpoint_every_s: float
    nice: int = 0
    """Niceness: what else computes on its cores goes first."""
    are_trials: bool = False
    """Whether a stage that diverges leaves a gap, and no error, even where it is the only one."""

    @property
    def is_together(self) -> bool:
        """Whether the stages are trained as adapters of one bank."""
        return self.are_trials or len(self.stages) > 1


class Workshop:
    """Keeps the base model from one job to the next.

    Weights come out the same, bit for bit on CPU, as if each job had loaded it by itself.
    """

    def __init__(self) -> None:
        self._asked: tuple[Path, Precision] | None = None
        self._base: Base | None = None

    def take(self, folder: Path, precision: Precision) -> Base:
        """The base model of a folder; who takes it puts it back as it was, or not at all."""
        kept, self._base = self._base, None
        if kept is not None and self._asked == (folder, precision):
            return kept
        del kept  # before the next one is loaded
        self._asked = (folder, precision)
        return load_base(folder, precision)

    def put_back(self, base: Base) -> None:
        """Let the next job have it."""
        self._base = base


def main(arguments: Sequence[str], out: TextIO, orders: Iterable[str] = ()) -> int:
    """Run the job of the named file, or those of `orders`; the exit status.

    Errors leave as an event, not a traceback.
    """
    if len(arguments) > 1:
        sys.stderr.write("usage: python -m adapters.training.job [JOB_FILE]\n")
        return 2
    _exit_with_parent()
    workshop = Workshop()
    for file in arguments or map(json.loads, orders):
        if status := _carry_out(Path(file), out, workshop):
            return status
        gc.collect()  # an adapter and its model hold each other, and the next job may be long off
    return 0


def _carry_out(file: Path, out: TextIO, workshop: Workshop) -> int:
    try:
        run_job(read_job(file), out, workshop)
    except BrokenPipeError:  # nobody reads the events any more
        return _EXIT_ORPHANED
    except TrainingDiverged as error:
        return _fail(out, "training_diverged", error)
    except (OSError, ValueError, LookupError) as error:
        return _fail(out, "job_invalid", error)
    except (RuntimeError, MemoryError) as error:
        return _fail(out, "training_failed", error)
    return 0


def read_job(path: Path) -> Job:
    """Parse a job file; stages are written as `adapters.lesson.stages_to_json` gives them.

    Raises:
        OSError, ValueError, KeyError: it is missing, not a job, or lacks a field.
    """
    fields = json.loads(path.read_text())
    stages = tuple(stages_from_json(fields["stages"]))
    outputs = tuple(map(Path, fields["outputs"]))
    start, teacher, checkpoints = (fields.get(key) for key in ("start", "teacher", "checkpoints"))
    keeps_moments = bool(fields.get("keeps_moments"))
    if not stages or len(stages) != len(outputs):
        raise ValueError("a job needs one output for each of its stages, and at least one stage")
    alone = (start, teacher, checkpoints, keeps_moments, any(stage.goes_on for stage in stages))
    are_trials = bool(fields.get("are_trials"))
    if (are_trials or len(stages) > 1) and (
        any(alone) or len({stage.lora for stage in stages}) > 1
    ):
        raise ValueError(
            "stages trained together share one lora, begin at the base, are taught by the base, and "
            "keep neither checkpoints nor moments"
        )
    if stages[0].goes_on and not start:
        raise ValueError("a stage that goes on needs a training to start from")
    return Job(
        base_model=Path(fields["base_model"]),
        stages=stages,
        outputs=outputs,
        start=Path(start) if start else None,
        teacher=Path(teacher) if teacher else None,
        keeps_moments=keeps_moments,
        threads=fields.get("threads"),
        checkpoints=Path(checkpoints) if checkpoints else None,
        checkpoint_every_s=float(fields.get("checkpoint_every_s", 30.0)),
        nice=int(fields.get("nice", 0)),
        are_trials=are_trials,
    )


def run_job(job: Job, out: TextIO, workshop: Workshop | None = None) -> None:
    """Train and save, writing events to `out`."""
    os.nice(max(0, job.nice - os.nice(0)))
    if job.threads:
        torch.set_num_threads(job.threads)
    started = time.monotonic()
    train_stages = _train_together if job.is_together else _train_one
    closing = train_stages(job, out, workshop or Workshop())
    _write(out, event="done", seconds=round(time.monotonic() - started, 3), **closing)


def _train_one(job: Job, out: TextIO, workshop: Workshop) -> dict[str, object]:
    (stage,) = job.stages
    spec = stage.training
    moments = load_moments(Weights(job.start).moments) if stage.goes_on and job.start else None
    trainee = attach(
        workshop.take(job.base_model, spec.precision),
        spec=stage.lora,
        seed=stage.seed,
        precision=spec.precision,
        start=job.start,
    )
    trainee.model.eval()  # the teacher has no dropout
    with speaking_as(trainee, job.teacher) if job.teacher else nullcontext():
        units, anchors = _samples(stage, trainee.tokenizer, _teacher_of(trainee, job))
    steps = spec.epochs * len(units) // spec.batch_size
    apply_speedups(trainee.model, find_speedups(trainee.device.type, steps=steps))
    tokens = taken = 0

    def report(step: StepReport) -> None:
        nonlocal tokens, taken
        tokens, taken = tokens + step.tokens, taken + 1
        _write(out, event="step", **asdict(step))

    moments = train(
        replace(trainee, reference=job.teacher),
        units,
        anchors=anchors,
        anchors_per_epoch=stage.anchors_per_epoch,
        spec=spec,
        losses=stage.losses,
        seed=stage.seed,
        on_step=report,
        checkpoints=_checkpoints(job),
        most_steps=stage.most_steps,
        moments=moments,
    )
    if job.start is None:
        weaken(trainee.model, stage.strength)
    save_adapter(trainee.model, job.outputs[0], base_name=job.base_model.name)
    if job.keeps_moments:
        save_moments(moments, Weights(job.outputs[0]).moments)
    pairs = units if stage.pairs else ()  # those in tokens come by thousands, with rewards
    judged = preferences(trainee, pairs, spec=stage.losses)
    workshop.put_back(trainee.give_back())
    return {
        "tokens": tokens,
        "steps": taken,
        "environment": environment(trainee.device, trainee.compute_dtype),
        **judged,
    }


def _teacher_of(trainee: Trainee, job: Job) -> Teacher:
    """The base; or, while the trainee speaks as the job's teacher, whoever speaks."""
    if job.teacher is None:
        return lambda batch: reference_logits(trainee, batch.to(trainee.device))

    def logits_NV(batch: Batch) -> Tensor:
        with torch.no_grad(), trainee.autocast():
            return target_logits(trainee.model, batch.to(trainee.device))

    return logits_NV


def _train_together(job: Job, out: TextIO, workshop: Workshop) -> dict[str, object]:
    first = job.stages[0]
    bank = LoraBank(
        *workshop.take(job.base_model, first.training.precision),
        spec=first.lora,
        seeds=[stage.seed for stage in job.stages],
        precision=first.training.precision,
    )
    courses = []
    for stage in job.stages:
        units, anchors = _samples(
            stage, bank.tokenizer, lambda batch: bank.logits([batch.to(bank.device)])
        )
        courses.append(Course(units, stage.training, stage.seed, anchors, stage.anchors_per_epoch))
    tokens = taken = 0
    done = [0] * len(courses)

    def report(index: int, step: StepReport) -> None:
        nonlocal tokens, taken
        tokens, taken = tokens + step.tokens, taken + 1
        done[index] = step.step
        if step.step == max(done):  # the longest course tells how far all are
            _write(out, event="step", step=step.step, total=step.total)

    failures = train_many(bank, courses, losses=first.losses, on_step=report)
    for index, (failure, output) in enumerate(zip(failures, job.outputs, strict=True)):
        if failure is None:
            strength = job.stages[index].strength
            bank.save(index, output, base_name=job.base_model.name, strength=strength)
    workshop.put_back(bank.give_back())
    return {
        "tokens": tokens,
        "steps": taken,
        "diverged": [failure and str(failure) for failure in failures],
        "environment": environment(bank.device, bank.compute_dtype),
    }


def _samples(
    stage: Stage, tokenizer: PreTrainedTokenizerBase, teacher: Teacher
) -> tuple[list[Unit], list[TrainingSample]]:
    """What is learnt, and the anchors; `teacher` is asked here and never again."""
    most = stage.training.max_tokens
    encoded = [
        (edit.kind, sample)
        for edit in stage.edits
        for sample in encode_whole(edit, tokenizer, max_tokens=most)
    ]
    units: list[Unit] = [sample for kind, sample in encoded if kind is not EditKind.REPLAY]
    general = [sample for kind, sample in encoded if kind is EditKind.REPLAY]
    taught = distill(
        stage.distillations,
        tokenizer,
        teacher,
        max_tokens=most,
        top_k=stage.losses.distill_top_k,
        microbatch_tokens=stage.training.microbatch_tokens,
    )
    given = judged_against(
        encode_replies(stage.replies, tokenizer, max_tokens=most),
        teacher,
        microbatch_tokens=stage.training.microbatch_tokens,
    )
    pairs = encode_pairs(stage.pairs, tokenizer, max_tokens=most)
    learnt = [*units, *taught, *given, *pairs, *stage.units]
    anchors = weighted_anchors(
        general, learnt, per_epoch=stage.anchors_per_epoch, least_share=stage.anchor_share
    )
    return learnt, anchors


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, str | int | None]:
    """What decides the last bits of the weights, beside the job: the same again repeats them."""
    on_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if on_cuda else cpu_name(),
        "cuda": torch.version.cuda if on_cuda else None,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def cpu_name() -> str:
    """The processor's model, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _checkpoints(job: Job) -> Checkpoints | None:
    if job.checkpoints is None:
        return None
    return Checkpoints(job.checkpoints, every_s=job.checkpoint_every_s)


def _exit_with_parent() -> None:
    """End this process when it is handed to another parent, which means that its own died."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        os._exit(_EXIT_ORPHANED)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _fail(out: TextIO, code: str, error: Exception) -> int:
    _write(out, event="error", code=code, message=f"{type(error).__name__}: {error}")
    return 1


def _write(out: TextIO, **event: object) -> None:
    out.write(json.dumps(event) + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout, sys.stdin))
