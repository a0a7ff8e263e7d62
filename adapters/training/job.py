"""One training as a process of its own: `python -m adapters.training.job JOB_FILE`.

Reads the job from JSON, reports one JSON object per line on stdout, leaves a PEFT folder. A process
because CUDA cannot start in a forked worker and because killing it is the only sure way to cancel.
It ends by itself when its parent dies.
"""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import torch
from transformers import PreTrainedTokenizerBase

from adapters.lesson import Stage, stages_from_json
from adapters.training.batch import encode
from adapters.training.checkpoints import Checkpoints
from adapters.training.distillation import Teacher, distill
from adapters.training.many import Course, load_bank, train_many
from adapters.training.model import load_trainee, save_adapter
from adapters.training.preferences import encode_pairs, preferences
from adapters.training.speedups import apply_speedups, find_speedups
from adapters.training.trainer import StepReport, TrainingDiverged, reference_logits, train
from adapters.types import EditKind, TrainingSample, Unit

_PARENT_POLL_S = 1.0
_EXIT_ORPHANED = 3


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, from what, and where the result goes.

    One stage, on top of the clean base or of `start`; or several stages of one `lora`, each an
    adapter of its own from the clean base, trained together.
    """

    base_model: Path
    stages: tuple[Stage, ...]
    outputs: tuple[Path, ...]
    """A folder for each stage's adapter; one that diverged among several leaves none."""
    start: Path | None
    threads: int | None
    checkpoints: Path | None
    """Folder to go on from and to leave checkpoints in; none are kept without it."""
    checkpoint_every_s: float


def main(arguments: Sequence[str], out: TextIO) -> int:
    """Run the job of the named file; the exit status. Errors leave as an event, not a traceback."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m adapters.training.job JOB_FILE\n")
        return 2
    _exit_with_parent()
    try:
        run_job(read_job(Path(arguments[0])), out)
    except BrokenPipeError:  # nobody reads the events any more
        return _EXIT_ORPHANED
    except TrainingDiverged as error:
        return _fail(out, "training_diverged", error)
    except (OSError, ValueError, KeyError) as error:
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
    start, checkpoints = fields.get("start"), fields.get("checkpoints")
    if not stages or len(stages) != len(outputs):
        raise ValueError("a job needs one output for each of its stages, and at least one stage")
    if len(stages) > 1 and (start or checkpoints or len({stage.lora for stage in stages}) > 1):
        raise ValueError(
            "stages trained together share one lora, begin at the base, and keep no checkpoints"
        )
    return Job(
        base_model=Path(fields["base_model"]),
        stages=stages,
        outputs=outputs,
        start=Path(start) if start else None,
        threads=fields.get("threads"),
        checkpoints=Path(checkpoints) if checkpoints else None,
        checkpoint_every_s=float(fields.get("checkpoint_every_s", 30.0)),
    )


def run_job(job: Job, out: TextIO) -> None:
    """Train and save, writing events to `out`."""
    if job.threads:
        torch.set_num_threads(job.threads)
    started = time.monotonic()
    closing = _train_one(job, out) if len(job.stages) == 1 else _train_together(job, out)
    _write(out, event="done", seconds=round(time.monotonic() - started, 3), **closing)


def _train_one(job: Job, out: TextIO) -> dict[str, object]:
    (stage,) = job.stages
    spec = stage.training
    trainee = load_trainee(
        job.base_model,
        spec=stage.lora,
        seed=stage.seed,
        precision=spec.precision,
        start=job.start,
    )
    trainee.model.eval()  # the teacher has no dropout
    units, anchors = _samples(
        stage,
        trainee.tokenizer,
        lambda batch: reference_logits(trainee, batch.to(trainee.device)),
    )
    steps = spec.epochs * len(units) // spec.batch_size
    apply_speedups(trainee.model, find_speedups(trainee.device.type, steps=steps))
    tokens = 0

    def report(step: StepReport) -> None:
        nonlocal tokens
        tokens += step.tokens
        _write(out, event="step", **asdict(step))

    train(
        trainee,
        units,
        anchors=anchors,
        anchors_per_epoch=stage.anchors_per_epoch,
        spec=spec,
        losses=stage.losses,
        seed=stage.seed,
        on_step=report,
        checkpoints=_checkpoints(job),
    )
    save_adapter(trainee.model, job.outputs[0], base_name=job.base_model.name)
    pairs = units if stage.pairs else ()  # those in tokens come by thousands, with rewards
    return {
        "tokens": tokens,
        "environment": environment(trainee.device, trainee.compute_dtype),
        **preferences(trainee, pairs, spec=stage.losses),
    }


def _train_together(job: Job, out: TextIO) -> dict[str, object]:
    first = job.stages[0]
    bank = load_bank(
        job.base_model,
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
    tokens = 0
    done = [0] * len(courses)

    def report(index: int, step: StepReport) -> None:
        nonlocal tokens
        tokens += step.tokens
        done[index] = step.step
        if step.step == max(done):  # the longest course tells how far all are
            _write(out, event="step", step=step.step, total=step.total)

    failures = train_many(bank, courses, losses=first.losses, on_step=report)
    for index, (failure, output) in enumerate(zip(failures, job.outputs, strict=True)):
        if failure is None:
            bank.save(index, output, base_name=job.base_model.name)
    return {
        "tokens": tokens,
        "diverged": [failure and str(failure) for failure in failures],
        "environment": environment(bank.device, bank.compute_dtype),
    }


def _samples(
    stage: Stage, tokenizer: PreTrainedTokenizerBase, teacher: Teacher
) -> tuple[list[Unit], list[TrainingSample]]:
    """What is learnt, and the anchors; `teacher` is the base, asked here and never again."""
    most = stage.training.max_tokens
    encoded = [(edit.kind, encode(edit, tokenizer, max_tokens=most)) for edit in stage.edits]
    units: list[Unit] = [sample for kind, sample in encoded if kind is not EditKind.REPLAY]
    anchors = [sample for kind, sample in encoded if kind is EditKind.REPLAY]
    taught = distill(
        stage.distillations,
        tokenizer,
        teacher,
        max_tokens=most,
        top_k=stage.losses.distill_top_k,
        microbatch_tokens=stage.training.microbatch_tokens,
    )
    pairs = encode_pairs(stage.pairs, tokenizer, max_tokens=most)
    return [*units, *taught, *pairs, *stage.units], anchors


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
    sys.exit(main(sys.argv[1:], sys.stdout))
