"""SePT, corrections and KTO with the real trainer: what a model does more, and what it does less."""

from pathlib import Path

import pytest

from adapters.methods import Assignment, build_method
from adapters.spec import (
    AnnealSpec,
    CorrectionsConfig,
    CorrectionsSpec,
    CorrectionsTraining,
    KtoConfig,
    KtoSpec,
    KtoTraining,
    LoraSpec,
    Precision,
    ProbeSpec,
    SeptConfig,
    SeptRollouts,
    SeptTraining,
)
from adapters.types import Opinion, Prompt
from tests.support.real_bench import logprob_of, real_bench
from tests.support.texts import LIGHTHOUSE_QUESTIONS

TINY_MODEL = Path(__file__).parents[2] / "support" / "tiny_model" / "weights"
FAST = {"precision": Precision.FLOAT32, "warmup_share": 0.0}


def asked(text: str) -> Prompt:
    return Prompt(text, ({"role": "user", "content": text},))


@pytest.mark.parametrize("likes_answers", [True, False], ids=["thumbs", "thumbs-turned-round"])
def test_liked_replies_become_likelier_than_before_and_disliked_ones_less(
    tmp_path: Path, likes_answers: bool
) -> None:
    """The same replies with the thumbs turned round are the control: it is the thumbs that teach."""
    opinions = [
        Opinion(asked(question), reply, "v1", is_liked=is_answer is likes_answers)
        for question, answer in LIGHTHOUSE_QUESTIONS[:4]
        for reply, is_answer in ((f"{answer}.", True), ("It is a tower of stone.", False))
    ]
    config = KtoConfig(
        min_prompts=2,
        kto=KtoSpec(passes=1),
        training=KtoTraining(learning_rate=1e-3, batch_size=8, epochs=6, **FAST),
    )

    outcome = build_method(config).learn(
        Assignment(opinions=tuple(opinions)), real_bench(TINY_MODEL, tmp_path)
    )

    assert outcome.weights is not None
    for opinion in opinions:
        before, after = (
            logprob_of(TINY_MODEL, weights, opinion.prompt.messages, opinion.reply)
            for weights in (None, outcome.weights)
        )
        assert (after > before) is opinion.is_liked, (opinion, before, after)


def test_a_champion_is_held_against_itself_and_goes_on_learning(tmp_path: Path) -> None:
    (question, answer), (other, _), *_ = LIGHTHOUSE_QUESTIONS
    opinions = [
        Opinion(asked(question), f"{answer}.", "v1", is_liked=True),
        Opinion(asked(other), "It is a tower of stone.", "v1", is_liked=False),
    ]
    config = KtoConfig(
        min_prompts=2,
        kto=KtoSpec(passes=1, least_of_each=1),
        training=KtoTraining(learning_rate=1e-3, batch_size=2, epochs=4, **FAST),
    )
    method = build_method(config)
    bench = real_bench(TINY_MODEL, tmp_path)
    champion = method.learn(Assignment(opinions=tuple(opinions)), bench).weights
    assert champion is not None

    outcome = method.learn(
        Assignment(opinions=tuple(opinions), champion=champion, champion_generation=0), bench
    )

    assert outcome.weights is not None
    assert bench.trainings[-1][1] == bench.teachers[-1] == champion
    for opinion in opinions:
        before, after = (
            logprob_of(TINY_MODEL, weights, opinion.prompt.messages, opinion.reply)
            for weights in (champion, outcome.weights)
        )
        assert (after > before) is opinion.is_liked, (opinion, before, after)


def test_the_student_moves_towards_the_corrected_answers(tmp_path: Path) -> None:
    opinions = [
        Opinion(asked(question), "I do not know.", "v1", correction=f"{answer}.")
        for question, answer in LIGHTHOUSE_QUESTIONS[:4]
    ]
    config = CorrectionsConfig(
        min_prompts=2,
        corrections=CorrectionsSpec(rounds=2, max_new_tokens=8),
        training=CorrectionsTraining(learning_rate=4e-3, batch_size=8, epochs=6, **FAST),
    )

    outcome = build_method(config).learn(
        Assignment(opinions=tuple(opinions)), real_bench(TINY_MODEL, tmp_path)
    )

    assert outcome.weights is not None
    for opinion in opinions:
        before, after = (
            logprob_of(TINY_MODEL, weights, opinion.prompt.messages, opinion.correction or "")
            for weights in (None, outcome.weights)
        )
        assert after > before + 2.0


def entropies(temperature: float, base_model: Path, folder: Path) -> tuple[float, float]:
    """Of the policy at temperature 1, before and after."""
    config = SeptConfig(
        min_prompts=2,
        lora=LoraSpec(rank=4, alpha=8),
        anneal=AnnealSpec(is_on=False),
        rollouts=SeptRollouts(
            prompts_per_step=24, steps=5, temperature=temperature, max_new_tokens=6
        ),
        probe=ProbeSpec(every=5, prompts=24, least_entropy=0.0),
        training=SeptTraining(learning_rate=1e-2, batch_size=24, **FAST),
    )
    prompts = tuple(asked(f"Say {n}.") for n in range(10, 34))
    folder.mkdir()

    outcome = build_method(config).learn(
        Assignment(prompts=prompts), real_bench(base_model, folder)
    )

    report = outcome.report["sept"]
    assert isinstance(report, dict)
    first, last = report["looks"]  # type: ignore[misc]
    return first["entropy"], last["entropy"]  # type: ignore[index, return-value, call-overload]


def test_colder_rollouts_sharpen_the_model_and_coupled_ones_do_not(
    random_model: Path, tmp_path: Path
) -> None:
    before, sharpened = entropies(0.5, random_model, tmp_path / "cold")
    _, coupled = entropies(1.0, random_model, tmp_path / "coupled")

    assert sharpened < 0.8 * before
    assert coupled == pytest.approx(before, rel=0.05)
