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
from pydantic import TypeAdapter

from adapters.spec import LoraSpec, LossSpec, SealConfig, TrainingSpec
from adapters.training.batch import Unit, encode
from adapters.training.checkpoints import Checkpoints
from adapters.training.model import Trainee, load_trainee, save_adapter
from adapters.training.speedups import apply_speedups, find_speedups
from adapters.training.trainer import StepReport, TrainingDiverged, train
from adapters.types import EditKind, SelfEdit

_PARENT_POLL_S = 1.0
_EXIT_ORPHANED = 3
_UNITS: TypeAdapter[tuple[Unit, ...]] = TypeAdapter(tuple[Unit, ...])


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, from what, and where the result goes."""

    base_model: Path
    edits: tuple[SelfEdit, ...]
    """Become samples by the tokenizer; those of replay become anchors."""
    units: tuple[Unit, ...]
    """Samples and pairs that a method has made itself."""
    anchors_per_epoch: int
    lora: LoraSpec
    training: TrainingSpec
    losses: LossSpec
    output: Path
    seed: int
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
    """Parse a job file.

    SEAL's config may stand for `lora`, `training` and `anchors_per_epoch`. Units are written as
    `dataclasses.asdict` gives them.

    Raises:
        OSError, ValueError, KeyError: it is missing, not a job, or lacks a field.
    """
    fields = json.loads(path.read_text())
    if "config" in fields:
        config = SealConfig.model_validate(fields["config"])
        fields |= {
            "lora": config.lora,
            "training": config.training,
            "anchors_per_epoch": config.replay.prompts_per_epoch,
        }
    edits = fields.get("edits", [])
    checkpoints = fields.get("checkpoints")
    return Job(
        base_model=Path(fields["base_model"]),
        edits=tuple(SelfEdit(**{**e, "kind": EditKind(e["kind"])}) for e in edits),
        units=_UNITS.validate_python(fields.get("units", [])),
        anchors_per_epoch=int(fields.get("anchors_per_epoch", 0)),
        lora=LoraSpec.model_validate(fields["lora"]),
        training=TrainingSpec.model_validate(fields["training"]),
        losses=LossSpec.model_validate(fields.get("losses", {})),
        output=Path(fields["output"]),
        seed=int(fields["seed"]),
        threads=fields.get("threads"),
        checkpoints=Path(checkpoints) if checkpoints else None,
        checkpoint_every_s=float(fields.get("checkpoint_every_s", 30.0)),
    )


def run_job(job: Job, out: TextIO) -> None:
    """Train and save, writing events to `out`."""
    started = time.monotonic()
    if job.threads:
        torch.set_num_threads(job.threads)
    spec = job.training
    trainee = load_trainee(job.base_model, spec=job.lora, seed=job.seed, precision=spec.precision)
    encoded = [
        (edit.kind, encode(edit, trainee.tokenizer, max_tokens=spec.max_tokens))
        for edit in job.edits
    ]
    units: list[Unit] = [sample for kind, sample in encoded if kind is not EditKind.REPLAY]
    anchors = [sample for kind, sample in encoded if kind is EditKind.REPLAY]
    units.extend(job.units)
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
        anchors_per_epoch=job.anchors_per_epoch,
        spec=spec,
        losses=job.losses,
        seed=job.seed,
        on_step=report,
        checkpoints=_checkpoints(job),
    )
    save_adapter(trainee.model, job.output, base_name=job.base_model.name)
    _write(
        out,
        event="done",
        seconds=round(time.monotonic() - started, 3),
        tokens=tokens,
        environment=environment(trainee),
    )


def environment(trainee: Trainee) -> dict[str, str | int | None]:
    """What decides the last bits of the weights, beside the job: the same again repeats them."""
    on_cuda = trainee.device.type == "cuda"
    return {
        "device": trainee.device.type,
        "device_name": torch.cuda.get_device_name(trainee.device) if on_cuda else cpu_name(),
        "cuda": torch.version.cuda if on_cuda else None,
        "dtype": str(trainee.compute_dtype).removeprefix("torch."),
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
