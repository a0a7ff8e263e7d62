"""A workbench without a server: a decoder, and trainings in child processes that are kept."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from adapters.lesson import Stage, Weights, stages_to_json
from adapters.sampling import Sampler
from adapters.types import JSON
from benchmarks.decoders import Decoder
from benchmarks.results import ROOT

_JOB = "adapters.training.job"


class TrainingFailed(RuntimeError):
    """The trainer left no adapter; the message is its own."""


@dataclass
class LocalBench:
    """See :class:`adapters.methods.workbench.Workbench`; ``folder`` keeps what ``once`` made."""

    decoder: Decoder
    model: Path
    folder: Path
    threads: int
    say: Callable[[str], None] = lambda words: None
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    """Trained so far."""

    @property
    def base(self) -> Sampler:
        return self.decoder.base

    @property
    def writer(self) -> Sampler:
        return self.decoder.base

    @property
    def editor(self) -> Sampler:
        return self.decoder.base

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.say(name)
        began = time.monotonic()
        yield
        spent = time.monotonic() - began
        self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 1)

    def progress(self, done: int, total: int) -> None:
        """Nobody waits for it: the trainer's steps are said by themselves."""

    def once(self, name: str, make: Callable[[], JSON]) -> JSON:
        path = self.folder / f"{name}.json"
        if not path.exists():
            value = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(value))
            temporary.replace(path)
        kept: JSON = json.loads(path.read_text())
        return kept

    def train(self, stage: Stage, *, start: Weights | None = None) -> Weights:
        output = self.folder / f"weights-{uuid4().hex[:8]}"
        self._run([stage], [output], start)
        return Weights(output)

    def try_out(self, stages: Sequence[Stage]) -> list[Weights | None]:
        if not stages:
            return []
        outputs = [self.folder / f"try-{uuid4().hex[:8]}" for _ in stages]
        self._run(stages, outputs, None)
        return [Weights(output) if output.exists() else None for output in outputs]

    def serving(self, weights: Sequence[Weights]) -> AbstractContextManager[list[Sampler]]:
        return self.decoder.serving(weights)

    def train_on(self, model: Path, stage: Stage) -> Weights:
        """Train on another model folder than the base: what merging edit upon edit needs."""
        output = self.folder / f"weights-{uuid4().hex[:8]}"
        self._run([stage], [output], None, model)
        return Weights(output)

    def tidy(self) -> None:
        """Remove what was trained; what ``once`` made stays."""
        for path in (*self.folder.glob("weights-*"), *self.folder.glob("try-*")):
            shutil.rmtree(path, ignore_errors=True)

    def _run(
        self,
        stages: Sequence[Stage],
        outputs: Sequence[Path],
        start: Weights | None,
        model: Path | None = None,
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        job = self.folder / "job.json"
        order = {
            "base_model": str(model or self.model),
            "stages": stages_to_json(list(stages)),
            "outputs": [str(output) for output in outputs],
            "start": str(start.folder) if start else None,
            "threads": self.threads,
        }
        job.write_text(json.dumps(order))
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with subprocess.Popen(
            [sys.executable, "-m", _JOB, str(job)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            last = self._follow(child)
        if last.get("event") != "done":
            raise TrainingFailed(str(last.get("message", f"status {child.returncode}")))
        tokens = last.get("tokens")
        self.tokens += tokens if isinstance(tokens, int) else 0

    def _follow(self, child: "subprocess.Popen[str]") -> dict[str, JSON]:
        assert child.stdout is not None
        last: dict[str, JSON] = {}
        said = time.monotonic()
        for line in child.stdout:
            last = json.loads(line)
            if last.get("event") == "step" and time.monotonic() - said > 60:
                said = time.monotonic()
                self.say(f"step {last['step']} of {last['total']}")
        return last
