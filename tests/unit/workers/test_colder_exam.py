"""SePT's exam beside the same model at a colder decoding."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from adapters.evaluation.prompt_exam import (
    Chosen,
    HeldPrompt,
    choose_prompts,
    marking_of,
    no_verifier,
    sit_prompts,
)
from adapters.sampling import Reply
from adapters.spec import SeptConfig
from adapters.types import ChatMessage, ProgressCallback, Prompt, SamplingParams, TopK
from tests.support.workbench import ScriptedSampler
from workers import prompt_exam
from workers.colder import Colder, compare

LOGITS = (1.0, 0.0, -1.0)


class SharpSampler(ScriptedSampler):
    """Every token's logits are the same ones; knows the answers up to a temperature."""

    def __init__(self, sharpness: float, knows_up_to: float) -> None:
        super().__init__(lambda _: "7")
        self.sharpness = sharpness
        self.knows_up_to = knows_up_to

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        texts = super().chat(conversations, params, on_progress=on_progress)
        return texts if params.temperature <= self.knows_up_to else ["0"] * len(texts)

    def replies(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[Reply]:
        scaled = [value * self.sharpness for value in LOGITS]
        total = math.log(sum(map(math.exp, scaled)))
        place = TopK((0, 1, 2), tuple(value - total for value in scaled))
        return [Reply("-", "stop", (1,), (0,), (place,)) for _ in conversations]


def chosen(config: SeptConfig, *, is_earlier: bool = False) -> Chosen:
    held = [
        Prompt(f"{is_earlier} {number}", ({"role": "user", "content": "?"},), answers=("7",))
        for number in range(4)
    ]
    marking, spec = marking_of(config), config.prompt_exam
    nobody = ScriptedSampler(lambda _: "")
    return choose_prompts(held, marking, spec, champion=nobody, seed=1, is_earlier=is_earlier)


def sit(
    prompts: Sequence[HeldPrompt], config: SeptConfig, champion: Any, challenger: Any
) -> Colder:
    replies = [sit_prompts(prompts, each) for each in (champion, challenger)]
    sheet = prompt_exam.marked(prompts, *replies, config, no_verifier)
    return compare(prompts, sheet, config, no_verifier, champion=champion, challenger=challenger)


def test_the_champion_is_asked_once_more_where_it_is_as_sure_as_the_challenger() -> None:
    config = SeptConfig()
    prompts = [*chosen(config).prompts, *chosen(config, is_earlier=True).prompts]
    champion = SharpSampler(1.0, knows_up_to=0.5)
    challenger = SharpSampler(1 / 0.6, knows_up_to=1.0)  # the fixed point of 0.6

    found = sit(prompts, config, champion, challenger).to_json()

    assert found["colder_temperature"] == pytest.approx(0.6 * 0.7, abs=0.02)
    assert found["temperature"] == 0.7
    assert found["prompts"] == 4  # none of the earlier ones
    assert (found["champion"], found["champion_colder"], found["challenger"]) == (0, 4, 4)
    assert "0 right at temperature 0.7, 4 at 0.43" in str(found["sentence"])


@pytest.mark.parametrize(
    ("fields", "champion", "challenger", "why"),
    [
        ({}, ScriptedSampler(lambda _: "7"), ScriptedSampler(lambda _: "7"), "log-probabilities"),
        ({}, SharpSampler(1.0, 1.0), SharpSampler(0.5, 1.0), "at no temperature from 0.1 to 1"),
        (
            {"prompt_exam": {"temperature": 0.0}},
            SharpSampler(1.0, 1.0),
            SharpSampler(2.0, 1.0),
            "nothing is colder",
        ),
    ],
)
def test_what_cannot_be_measured_is_said(
    fields: dict[str, Any], champion: Any, challenger: Any, why: str
) -> None:
    config = SeptConfig.model_validate(fields)

    found = sit(chosen(config).prompts, config, champion, challenger)

    assert "not measured" in found.sentence
    assert why in found.sentence
    assert found.figures == {}


def test_without_prompts_there_is_nothing_to_compare() -> None:
    champion = SharpSampler(1.0, 1.0)

    assert "no held-out prompt" in sit((), SeptConfig(), champion, champion).sentence
