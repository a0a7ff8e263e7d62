"""The exam's held-out prompts of a run: chosen before the lesson is written, asked after it."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.evaluation.exam import Answer
from adapters.evaluation.gate import HeldOutPrompts, Need
from adapters.evaluation.prompt_exam import (
    HeldPrompt,
    VerifierOf,
    choose_prompts,
    mark,
    marking_of,
)
from adapters.sampling import Sampler
from adapters.spec import MethodConfig, PromptSettings
from adapters.types import ExamItem, ProgressCallback
from workers.material import Material

UNTOLD = "the verifier could not tell"


@dataclass(frozen=True, slots=True)
class PromptSheet:
    """The answers of both versions to the prompts whose replies could be marked."""

    items: tuple[ExamItem, ...]
    champion: tuple[Answer, ...]
    challenger: tuple[Answer, ...]
    held_out: HeldOutPrompts | None
    """None where prompts have no part in the exam."""
    untold: int = 0
    """Prompts left out because nobody could mark both replies."""
    refused: int = 0
    """Prompts left out because the engine does not take them, such as too long ones."""


def choose(
    material: Material,
    config: MethodConfig,
    sampler_of: Callable[[str], Sampler],
    *,
    on_progress: ProgressCallback | None = None,
) -> tuple[tuple[HeldPrompt, ...], dict[str, Any]]:
    """The prompts to ask, and how many of which are asked, and why others are not.

    Raises:
        SamplingError: the champion could not be asked for its votes.
    """
    sampler = sampler_of(material.writer_engine_name)
    chosen: list[HeldPrompt] = []
    left_out: dict[str, Mapping[str, int]] = {}
    if isinstance(config, PromptSettings):
        found = choose_prompts(
            material.held_out_prompts,
            marking_of(config),
            config.prompt_exam,
            champion=sampler,
            seed=config.seed,
            on_progress=on_progress,
        )
        chosen += found.prompts
        left_out["new"] = found.left_out
    known = {prompt.id for prompt in material.held_out_prompts}
    dropped: Counter[str] = Counter()
    for earlier in material.earlier_prompts:
        found = choose_prompts(
            [prompt for prompt in earlier.prompts if prompt.id not in known],
            marking_of(earlier.config),
            earlier.config.prompt_exam,
            champion=sampler,
            seed=earlier.config.seed,
            is_earlier=True,
            on_progress=on_progress,
        )
        known |= {prompt.id for prompt in earlier.prompts}
        chosen += found.prompts
        dropped.update(found.left_out)
    if material.earlier_prompts:
        left_out["earlier"] = dropped
    return tuple(chosen), _counts(chosen, left_out)


def marked(
    prompts: Sequence[HeldPrompt],
    champion: Sequence[str],
    challenger: Sequence[str],
    config: MethodConfig,
    verifier_of: VerifierOf,
    *,
    refused: Collection[str] = (),
) -> PromptSheet:
    """Both replies to each prompt with their marks; only prompts of which both could be marked.

    Args:
        refused: ids of the prompts that the engine did not take.
    """
    is_learning = isinstance(config, PromptSettings)
    if not prompts and not is_learning:
        return PromptSheet((), (), (), None)
    before, after = (mark(prompts, said, verifier_of) for said in (champion, challenger))
    items: list[ExamItem] = []
    theirs: list[Answer] = []
    ours: list[Answer] = []
    new: set[str] = set()
    for held, one, other, was_right, is_right in zip(
        prompts, champion, challenger, before, after, strict=True
    ):
        if was_right is None or is_right is None or held.item.id in refused:
            continue
        items.append(held.item)
        theirs.append(Answer(held.item.id, one, was_right))
        ours.append(Answer(held.item.id, other, is_right))
        if not held.is_earlier:
            new.add(held.item.id)
    held_out = HeldOutPrompts(
        frozenset(new),
        frozenset(item.id for item in items) - new,
        is_learning=is_learning,
        must_gain=not isinstance(config, PromptSettings) or marking_of(config).must_gain,
    )
    return PromptSheet(
        tuple(items),
        tuple(theirs),
        tuple(ours),
        held_out,
        untold=len(prompts) - len(items) - len(refused),
        refused=len(refused),
    )


def further_prompts(needs: Sequence[Need], config: MethodConfig) -> dict[str, Any] | None:
    """How many more prompts would decide it; nobody but users can write those."""
    lacking = max((need.items for need in needs if need.is_of_prompts), default=0)
    if not lacking or not isinstance(config, PromptSettings):
        return None
    share = config.prompt_exam.share
    return {"held_out": lacking, "to_send": math.ceil(lacking / share) if share else None}


def _counts(
    chosen: Sequence[HeldPrompt], left_out: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """For the run's report; empty where prompts have no part in it."""
    if not chosen and not left_out:
        return {}
    return {
        "asked": {
            "new": sum(not held.is_earlier for held in chosen),
            "earlier": sum(held.is_earlier for held in chosen),
        },
        "graders": dict(sorted(Counter(str(held.grader) for held in chosen).items())),
        "not_asked": {name: dict(sorted(why.items())) for name, why in left_out.items()},
    }
