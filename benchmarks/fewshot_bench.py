"""A workbench without a server: real vLLM, and trainings in child processes."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from adapters.lesson import Stage, Weights, stages_to_json
from adapters.sampling import Sampler
from adapters.types import JSON
from benchmarks import rig
from benchmarks.results import ROOT
from benchmarks.rig import MODEL
from benchmarks.stub import BASE
from server.core.settings import EngineSettings, ModelSettings, Settings
from server.embedded.preflight import check_libraries, free_port
from server.engine.control import open_control
from server.engine.launch import engine_command, require_engine
from workers.sampler import EngineSampler

_START_TIMEOUT_S = 600
_JOB = "adapters.training.job"


@dataclass
class EngineBench:
    """See :class:`adapters.methods.workbench.Workbench`; one for each task."""

    settings: Settings
    url: str
    model: Path
    folder: Path
    threads: int | None
    _kept: dict[str, JSON] = field(default_factory=dict)

    @property
    def base(self) -> Sampler:
        return EngineSampler(self.settings, BASE, [self.url])

    @property
    def writer(self) -> Sampler:
        return self.base

    @property
    def editor(self) -> Sampler:
        return self.base

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        sys.stderr.write(f"  {name}\n")
        yield

    def progress(self, done: int, total: int) -> None:
        """Nobody waits for it."""

    def once(self, name: str, make: Callable[[], JSON]) -> JSON:
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

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

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[Sampler]]:
        names = [f"{MODEL}@try.{uuid4().hex[:12]}" for _ in weights]
        folders = [str(each.folder) for each in weights]
        try:
            asyncio.run(self._load(dict(zip(names, folders, strict=True))))
            yield [EngineSampler(self.settings, name, [self.url]) for name in names]
        finally:
            asyncio.run(self._unload(names))

    def _run(self, stages: Sequence[Stage], outputs: Sequence[Path], start: Weights | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        job = self.folder / "job.json"
        order = {
            "base_model": str(self.model),
            "stages": stages_to_json(list(stages)),
            "outputs": [str(output) for output in outputs],
            "start": str(start.folder) if start else None,
            "threads": self.threads,
        }
        job.write_text(json.dumps(order))
        subprocess.run(
            [sys.executable, "-m", _JOB, str(job)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True
        )

    async def _load(self, folders: dict[str, str]) -> None:
        async with open_control(self.settings.engine, self.url) as control:
            for name, folder in folders.items():
                await control.load_adapter(name, folder)

    async def _unload(self, names: Sequence[str]) -> None:
        async with open_control(self.settings.engine, self.url) as control:
            for name in names:
                await control.unload_adapter(name)


@contextmanager
def open_engine(model: Path, home: Path, *, rank: int) -> Iterator[tuple[Settings, str]]:
    """vLLM over a model folder, as `everlearn up` starts it; its settings and address."""
    if require_engine().is_cpu:
        check_libraries()
    engine = EngineSettings(max_lora_rank=rank, read_timeout_s=1800)
    settings = Settings(_env_file=None, home=home, model=ModelSettings(name=MODEL), engine=engine)
    port = free_port()
    command = engine_command(settings, model, port)
    environment = {**command.env, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with rig.running(command.argv, environment) as process:
        url = f"http://127.0.0.1:{port}"
        rig.wait_for(f"{url}/health", process, _START_TIMEOUT_S)
        yield settings, url
