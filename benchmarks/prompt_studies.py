"""The studies of `make bench-learning-prompts`: which arms are compared, and how each is set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.spec import RegexContract
from benchmarks.prompt_tasks import (
    BARE,
    NUMBER,
    STATED,
    Tasks,
    bare_gym_sums,
    calm_reading,
    gym_sums,
    reading,
    stated,
)

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
    apprentice: str | None = None
    """Of `apprentice.KINDS`: the one from which all arms start; None: the base."""
    starts_as: str | None = None
    """Another study with the same tasks, whose start is this one's too; None: its own."""

    def owner(self, arm: str) -> str:
        """The study that measures an arm of this one."""
        return self.starts_as if arm == START and self.starts_as else self.name

    def case(self, arm: str) -> str:
        """What the cells of an arm are called."""
        return f"{self.owner(arm)}: {arm}"


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


def _calm(**fields: Any) -> dict[str, Any]:
    """The tiny model's, sampled at temperature 1."""
    return _merged(_tiny(rollouts={"temperature": 1.0}), fields)


def _small(**fields: Any) -> dict[str, Any]:
    """What all arms of SmolLM2-135M share."""
    shared: dict[str, Any] = {
        "lora": {"rank": RANK, "alpha": 32},
        "training": {"learning_rate": 2e-4, "batch_size": 64, "microbatch_tokens": 2048},
        "replay": {"prompts_per_epoch": 0},
        "rollouts": {
            "prompts_per_step": 8,
            "group": 16,
            "steps": 12,
            "temperature": 0.7,
            "max_new_tokens": 24,
        },
    }
    return _merged(shared, fields)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for name, value in second.items():
        kept = merged.get(name)
        merged[name] = _merged(kept, value) if isinstance(kept, dict) else value
    return merged


def _ttrl(shared: Callable[..., dict[str, Any]], **fields: Any) -> dict[str, dict[str, Any]]:
    settings = {"type": "ttrl", "answer": NUMBER.model_dump(mode="json")} | fields
    return {
        "TTRL": shared(**settings),
        "random reward": shared(**settings, reward="random"),
    }


def _sept(shared: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
    drawn = {"group": 1, "prompts_per_step": 64, "temperature": 0.6}
    # All arms take all steps, or the arm that sharpens most would be stopped first.
    fields = {"type": "sept", "training": {"batch_size": 64}, "probe": {"least_entropy": 0.0}}
    return {
        "SePT": shared(**fields, rollouts=drawn),
        "offline": shared(**fields, rollouts=drawn, refresh="offline"),
        "coupled": shared(**fields, rollouts={**drawn, "temperature": 1.0}),
    }


def _specs(shared: Callable[..., dict[str, Any]], pattern: str) -> dict[str, dict[str, Any]]:
    form = RegexContract(pattern=pattern).model_dump(mode="json")
    checked = {"type": "answer", "answer": NUMBER.model_dump(mode="json")}
    settings = {"type": "specs", "contract": form, "verifier": checked}
    return {
        "SPECS": shared(**settings),
        "SFT cold start": shared(**settings, cold_start="sft"),
        "plain GRPO": shared(**settings, cold_start="none"),
    }


def _sd_zero(shared: Callable[..., dict[str, Any]], prompts: int) -> dict[str, dict[str, Any]]:
    """Each arm generates ten replies to each of `prompts` prompts.

    SD-Zero one, three revisions of it and six in phase 2; GRPO ten steps with an eighth of them.
    """
    rate = 2e-4  # at 5e-4 and 1e-3 phase 2 lost the tiny model what it could before
    phase_1 = {"learning_rate": rate}
    phase_2 = {"learning_rate": rate, "batch_size": 32}
    step = prompts // 4
    config = {
        "type": "sd-zero",
        "verifier": {"type": "answer", "answer": NUMBER.model_dump(mode="json")},
        "revision": {"training": phase_1},
        "training": phase_2,
        "rollouts": {"group": 1, "prompts_per_step": step, "steps": 24},
    }
    alone = {"revisions": 9, "training": phase_1}
    longer = {"group": 1, "prompts_per_step": step, "steps": 40}
    group = shared()["rollouts"]["group"]
    grpo = {"prompts_per_step": prompts // group, "steps": 10}
    return {
        "SD-Zero": shared(**config),
        "phase 1": shared(**config | {"phases": "revision", "revision": alone}),
        "phase 2": shared(**config | {"phases": "distillation", "rollouts": longer}),
        "GRPO": shared(type="grpo", verifier=config["verifier"], rollouts=grpo),
    }


STUDIES: Mapping[str, tuple[Study, ...]] = {
    "tiny": (
        Study("TTRL", reading, _ttrl(_tiny)),
        Study("SePT", reading, _sept(_tiny)),
        Study(
            "SPECS",
            stated,
            _specs(_calm, STATED),
            apprentice="form",
        ),
        Study("SD-Zero", calm_reading, _sd_zero(_calm, 128), apprentice="revision"),
    ),
    "smollm2": (
        Study("TTRL", gym_sums, _ttrl(_small)),
        Study("SePT", gym_sums, _sept(_small), starts_as="TTRL"),
        Study("SPECS", bare_gym_sums, _specs(_small, BARE)),
        Study("SD-Zero", gym_sums, _sd_zero(_small, 64), starts_as="TTRL"),
    ),
}
"""By model."""
