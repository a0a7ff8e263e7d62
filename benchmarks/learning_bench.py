"""A workbench without a server: a decoder, and trainings in child processes that are kept."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from adapters.lesson import Stage, Weights, stages_to_json
from adapters.rewards.build import build_verifier
from adapters.rewards.verifiers import Verifier
from adapters.sampling import RolloutSampler
from adapters.spec import VerifierSpec
from adapters.types import JSON
from benchmarks.decoders import Decoder
from benchmarks.results import ROOT
from workers.training import Trainer

_SAID_EVERY_S = 60.0


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
    champion: RolloutSampler | None = None
    """Who serves; None: the base."""
    _trainer: Trainer | None = None

    @property
    def base(self) -> RolloutSampler:
        return self.decoder.base

    @property
    def writer(self) -> RolloutSampler:
        return self.champion or self.decoder.base

    @property
    def editor(self) -> RolloutSampler:
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

    def has_budget(self) -> bool:
        """A benchmark measures what whole runs come to."""
        return True

    def verifier(self, spec: VerifierSpec) -> Verifier:
        return build_verifier(spec, None)

    def train(
        self, stage: Stage, *, start: Weights | None = None, teacher: Weights | None = None
    ) -> Weights:
        output = self.folder / f"weights-{uuid4().hex[:8]}"
        self._run([stage], [output], start=start, teacher=teacher, keeps_moments=True)
        if stage.goes_on and start is not None:  # one step of many, and no benchmark steps back
            start.moments.unlink()
        return Weights(output)

    def try_out(self, stages: Sequence[Stage]) -> list[Weights | None]:
        if not stages:
            return []
        outputs = [self.folder / f"try-{uuid4().hex[:8]}" for _ in stages]
        self._run(stages, outputs, are_trials=True)
        return [Weights(output) if output.exists() else None for output in outputs]

    def serving(self, weights: Sequence[Weights]) -> AbstractContextManager[list[RolloutSampler]]:
        return self.decoder.serving(weights)

    def train_on(self, model: Path, stage: Stage) -> Weights:
        """Train on another model folder than the base: what merging edit upon edit needs."""
        output = self.folder / f"weights-{uuid4().hex[:8]}"
        self._run([stage], [output], model=model)
        return Weights(output)

    def tidy(self) -> None:
        """Remove what was trained, and end the trainer; what ``once`` made stays."""
        self.close()
        for path in (*self.folder.glob("weights-*"), *self.folder.glob("try-*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """End the trainer's process; a later training starts another."""
        if self._trainer is not None:
            self._trainer.close()

    def _run(
        self,
        stages: Sequence[Stage],
        outputs: Sequence[Path],
        *,
        start: Weights | None = None,
        teacher: Weights | None = None,
        model: Path | None = None,
        keeps_moments: bool = False,
        are_trials: bool = False,
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._trainer is None:
            self._trainer = Trainer({"OMP_NUM_THREADS": str(self.threads)}, ROOT)
        job = {
            "base_model": str((model or self.model).resolve()),
            "stages": stages_to_json(list(stages)),
            "outputs": [str(output.resolve()) for output in outputs],
            "start": str(start.folder.resolve()) if start else None,
            "teacher": str(teacher.folder.resolve()) if teacher else None,
            "keeps_moments": keeps_moments,
            "are_trials": are_trials,
            "threads": self.threads,
        }
        report = self._trainer.train(job, folder=self.folder, heart=_Steps(self.say))
        self.tokens += report["tokens"]


class _Steps:
    """Says now and then how far a training is."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = time.monotonic()

    def check(self) -> None:
        """Nobody stops it but by ending the benchmark."""

    def progress(self, done: int, total: int) -> None:
        """Once a minute is enough."""
        if time.monotonic() - self._said > _SAID_EVERY_S:
            self._said = time.monotonic()
            self._say(f"step {done} of {total}")
