"""Refuses an engine that could serve the wrong weights, and says what to change.

What vLLM 0.32 shows of itself, tried with LoRA and run-time updating on and off:

- LoRA on: ``/metrics`` names the family ``vllm:lora_requests_info`` from the start. LoRA off: not.
- Slots: that family gets a sample with the label ``max_lora`` after the first request of any kind,
  so the probe generates one token with the base model when there is none yet.
- Run-time updating: an empty order to ``/v1/load_lora_adapter`` answers 400, or 404 without it.

Not shown without vLLM's development mode, and so not probed: the highest LoRA rank (a load beyond
it is refused by name) and the scheduling policy (without it, priorities are accepted and ignored).
The rank is compared with the settings that a supervised engine is started from instead.
"""

import re

from server.core.errors import EngineUnsafe
from server.engine.control import EngineControl

OLDEST_SAFE = (0, 31)

_RELEASE = re.compile(r"(\d+)\.(\d+)")
_LORA_FAMILY = "vllm:lora_requests_info"
_MAX_LORA = re.compile(r'vllm:lora_requests_info\{[^}]*max_lora="(\d+)"')


async def check_engine(
    control: EngineControl,
    *,
    base_engine_name: str,
    adapters_needed: int,
    trained_rank: int | None = None,
    max_lora_rank: int | None = None,
) -> None:
    """Return when the engine is safe to learn with.

    Args:
        base_engine_name: what the base model must be served as, such as ``smollm2@base``.
        adapters_needed: LoRA slots that must be free for our versions at the same time.
        trained_rank: rank of the adapters that learning makes.
        max_lora_rank: rank the engine was started with, where that is known.

    Raises:
        EngineUnsafe: says what is wrong and how to mend it.
        EngineUnavailable: the engine does not answer.
    """
    _check_version(await control.version())
    if trained_rank is not None and max_lora_rank is not None and trained_rank > max_lora_rank:
        raise EngineUnsafe(
            f"learning makes adapters of rank {trained_rank}, and the engine takes up to "
            f"{max_lora_rank}. Raise EVERLEARN_ENGINE__MAX_LORA_RANK, or lower "
            "EVERLEARN_LEARNING__SEAL__LORA__RANK."
        )
    served = [model.name for model in await control.models() if model.parent is None]
    if base_engine_name not in served:
        raise EngineUnsafe(
            f"its base model is called {', '.join(served) or '(nothing)'}, not "
            f"{base_engine_name}. Start vLLM with `--served-model-name {base_engine_name}`, or set "
            "EVERLEARN_MODEL__NAME."
        )
    metrics = await control.metrics()
    if _LORA_FAMILY not in metrics:
        raise EngineUnsafe("it was started without LoRA. Start vLLM with `--enable-lora`.")
    if not await control.has_load_route():
        raise EngineUnsafe(
            "it cannot load adapters while it runs. Start vLLM with "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment, reachable from this "
            "machine only."
        )
    await _check_slots(control, metrics, base_engine_name, adapters_needed)


def _check_version(version: str) -> None:
    release = _RELEASE.match(version)
    if release is None:
        raise EngineUnsafe(
            f"it says that its version is {version!r}. Everlearn needs vLLM 0.31 or newer."
        )
    if (int(release[1]), int(release[2])) < OLDEST_SAFE:
        raise EngineUnsafe(
            f"it is vLLM {version}. Versions before 0.31 can answer with another adapter's cached "
            "prefix, and before 0.26 with another adapter's weights. Upgrade it to 0.31 or newer."
        )


async def _check_slots(
    control: EngineControl, metrics: str, base_engine_name: str, adapters_needed: int
) -> None:
    if _MAX_LORA.search(metrics) is None:
        question = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
        await control.chat(base_engine_name, question)
        metrics = await control.metrics()
    slots = _MAX_LORA.search(metrics)
    if slots is None:
        raise EngineUnsafe(
            "it does not say how many LoRA slots it has: its metrics lack the label max_lora. "
            "Start vLLM without `--disable-log-stats`."
        )
    if int(slots[1]) < adapters_needed:
        raise EngineUnsafe(
            f"it has {slots[1]} LoRA slots, and {adapters_needed} are needed for the champion, "
            f"the one before it and the candidate. Start vLLM with `--max-loras {adapters_needed}`."
        )
