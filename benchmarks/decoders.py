"""Who answers: real vLLM that is given adapters while it runs, or transformers.

Merged weights can be given to vLLM only by starting it anew, so what is compared with them is asked
through transformers too. The answers of one comparison always come from one decoder.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import torch

from adapters.lesson import Weights
from adapters.sampling import RolloutSampler
from benchmarks import rig
from benchmarks.rig import MODEL
from benchmarks.stub import BASE
from benchmarks.torch_decoder import TorchSampler
from server.core.settings import EngineSettings, ModelSettings, Settings
from server.embedded.preflight import check_libraries, free_port
from server.engine.launch import engine_command, require_engine
from workers.courtesy import Courtesy, Manners
from workers.sampler import EngineSampler

START_TIMEOUT_S = 600
NO_BINDING = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Decoder(Protocol):
    """Answers with the base model's weights, or with those of an adapter."""

    @property
    def name(self) -> str:
        """As in the results."""
        ...

    @property
    def base(self) -> RolloutSampler:
        """The untouched base model."""
        ...

    def serving(self, weights: Sequence[Weights]) -> AbstractContextManager[list[RolloutSampler]]:
        """While it lasts, a sampler for each."""
        ...


@dataclass
class TorchDecoder:
    """Transformers, in this process."""

    folder: Path
    name: str = "transformers"
    _base: TorchSampler | None = None

    @property
    def base(self) -> RolloutSampler:
        if self._base is None:
            self._base = TorchSampler.load(self.folder)
        return self._base

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[RolloutSampler]]:
        yield [TorchSampler.load(self.folder, each.folder) for each in weights]


@dataclass(frozen=True, slots=True)
class EngineDecoder:
    """vLLM, started as ``everlearn up`` starts it."""

    settings: Settings
    url: str
    name: str = "vLLM"
    courtesy: Courtesy = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "courtesy", Courtesy(Manners.of(self.settings.learning)))

    @property
    def base(self) -> RolloutSampler:
        return self._sampler(BASE)

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[RolloutSampler]]:
        samplers = [
            self._sampler(f"{MODEL}@try.{uuid4().hex[:12]}", each.folder) for each in weights
        ]
        try:
            for sampler in samplers:
                sampler.load()
            yield list(samplers)
        finally:
            for sampler in samplers:
                sampler.unload()

    def _sampler(self, name: str, folder: Path | None = None) -> EngineSampler:
        return EngineSampler(self.settings, name, [self.url], courtesy=self.courtesy, folder=folder)


@contextmanager
def open_decoder(
    name: str, model: Path, home: Path, *, rank: int, threads: int | None = None
) -> Iterator[Decoder]:
    """The decoder of that name over a model folder; an engine is stopped at the end.

    Args:
        rank: highest rank of an adapter that will be served.
        threads: of transformers; torch's own number when left out. Threads that wait for a core
            that others use wait for each other, too: two benchmarks side by side need one each.
    """
    if name == "transformers":
        if threads is not None:
            torch.set_num_threads(threads)
        yield TorchDecoder(model)
        return
    if require_engine().is_cpu:
        check_libraries()
    engine = EngineSettings(max_lora_rank=rank, read_timeout_s=1800)
    settings = Settings(_env_file=None, home=home, model=ModelSettings(name=MODEL), engine=engine)
    port = free_port()
    command = engine_command(settings, model, port)
    with ExitStack() as stack:
        process = stack.enter_context(rig.running(command.argv, {**command.env, **NO_BINDING}))
        url = f"http://127.0.0.1:{port}"
        rig.wait_for(f"{url}/health", process, START_TIMEOUT_S)
        yield EngineDecoder(settings, url)
