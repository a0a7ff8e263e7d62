"""The studies of `make bench-learning-prompts`: which arms are compared, and how each is set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.prompt_tasks import NUMBER, Tasks, json_sums, reading, small_sums, tagged_sums

START = "start"
"""The arm without training."""
RANK = 16


@dataclass(frozen=True, slots=True)
class Study:
    """A method beside its controls, on one kind of task."""

    name: str
    tasks: Callable[[int], Tasks]
    arms: Mapping[str, Mapping[str, Any]]
    """By name, what the config of the arm says."""
    is_apprentices: bool = False
    """Whether all arms start from the apprentice, instead of the base."""


def _tiny(**fields: Any) -> dict[str, Any]:
    """What all arms of the tiny model share."""
    shared: dict[str, Any] = {
        "lora": {"rank": RANK, "alpha": 32},
        "training": {"learning_rate": 1e-3, "batch_size": 256, "microbatch_tokens": 4096},
        "replay": {"prompts_per_epoch": 0},
        "rollouts": {
            "prompts_per_step": 16,
            "group": 16,
            "steps": 24,
            "temperature": 1.8,
            "max_new_tokens": 16,
        },
    }
    return _merged(shared, fields)


def _small(**fields: Any) -> dict[str, Any]:
    """What all arms of SmolLM2-135M share."""
    shared: dict[str, Any] = {
        "lora": {"rank": RANK, "alpha": 32},
        "training": {"learning_rate": 2e-4, "batch_size": 64, "microbatch_tokens": 2048},
        "replay": {"prompts_per_epoch": 0},
        "rollouts": {"prompts_per_step": 8, "group": 16, "steps": 12, "max_new_tokens": 24},
    }
    return _merged(shared, fields)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for name, value in second.items():
        kept = merged.get(name)
        merged[name] = _merged(kept, value) if isinstance(kept, dict) else value
    return merged


def _ttrl(shared: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
    answer = NUMBER.model_dump(mode="json")
    return {
        "TTRL": shared(type="ttrl", answer=answer),
        "random reward": shared(type="ttrl", answer=answer, reward="random"),
    }


def _sept(shared: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
    drawn = {"group": 1, "prompts_per_step": 64, "temperature": 0.6}
    once = {"batch_size": 64}
    return {
        "SePT": shared(type="sept", training=once, rollouts=drawn),
        "offline": shared(type="sept", training=once, rollouts=drawn, refresh="offline"),
        "coupled": shared(type="sept", training=once, rollouts={**drawn, "temperature": 1.0}),
    }


def _specs(shared: Callable[..., dict[str, Any]], contract: Any) -> dict[str, dict[str, Any]]:
    form = contract.model_dump(mode="json")
    checked = {"type": "answer", "answer": NUMBER.model_dump(mode="json")}
    settings = {"type": "specs", "contract": form, "verifier": checked}
    return {
        "SPECS": shared(**settings),
        "SFT cold start": shared(**settings, cold_start="sft"),
        "plain GRPO": shared(**settings, cold_start="none"),
    }


def _sd_zero(shared: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
    checked = {"type": "answer", "answer": NUMBER.model_dump(mode="json")}
    return {
        "SD-Zero": shared(type="sd-zero", verifier=checked, rollouts={"group": 1}),
        "phase 1": shared(
            type="sd-zero", verifier=checked, rollouts={"group": 1}, phases="revision"
        ),
        "phase 2": shared(
            type="sd-zero", verifier=checked, rollouts={"group": 1}, phases="distillation"
        ),
        "GRPO": shared(type="grpo", verifier=checked),
    }


STUDIES: Mapping[str, tuple[Study, ...]] = {
    "tiny": (
        Study("TTRL", reading, _ttrl(_tiny)),
        Study("SePT", reading, _sept(_tiny)),
        Study("SPECS", tagged_sums, _specs(_tiny, tagged_sums(0).contract), is_apprentices=True),
        Study("SD-Zero", reading, _sd_zero(_tiny)),
    ),
    "smollm2": (
        Study("TTRL", small_sums, _ttrl(_small)),
        Study("SePT", small_sums, _sept(_small)),
        Study("SPECS", json_sums, _specs(_small, json_sums(0).contract)),
        Study("SD-Zero", small_sums, _sd_zero(_small)),
    ),
}
"""By model."""
