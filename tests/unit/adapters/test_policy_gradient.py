"""The on-policy loop: what is rewarded becomes likelier, and what teaches nothing is not trained."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters.lesson import Weights
from adapters.methods.policy_gradient import ALL_EQUAL, Course, Scored, run
from adapters.spec import GrpoConfig, PolicyGradientSpec, PromptTraining, RolloutSpec
from adapters.types import Component, Prompt, Rollout
from tests.support.policies import PolicyBench, WordPolicy

WORDS = ("red", "green", "blue")


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{n}", ({"role": "user", "content": f"Say {n}"},)) for n in range(count)]


def config(**changes: object) -> GrpoConfig:
    fields: dict[str, object] = {
        "rollouts": RolloutSpec(prompts_per_step=4, group=8, steps=6, max_new_tokens=4)
    }
    return GrpoConfig(**(fields | changes))


def bench(**changes: object) -> PolicyBench:
    return PolicyBench(WordPolicy(WORDS, dict.fromkeys(WORDS, 1.0)), **changes)


def likes_red(prompts: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]) -> list[Scored]:
    return [
        Scored(tuple(float(rollout.text == "red") for rollout in group), facts={"seen": 1.0})
        for group in groups
    ]


def likes_all(prompts: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]) -> list[Scored]:
    return [Scored((1.0,) * len(group)) for group in groups]


def learn(where: PolicyBench, score=likes_red, settings: GrpoConfig | None = None, **how) -> Course:  # type: ignore[no-untyped-def]
    asked = how.pop("prompts", prompts(8))
    return run(settings or config(), asked, score, where, start=None, policy=where.base, **how)


def test_what_is_rewarded_becomes_likelier() -> None:
    where = bench()

    course = learn(where)

    assert course.weights is not None
    odds = where.policy_of(course.weights).odds
    assert odds["red"] > 2 * odds["green"]
    curve = course.report["curve"]
    assert curve[-1]["reward"] > curve[0]["reward"] + 0.2
    assert course.report["stopped"] == "all steps are done"
    assert course.report["trained_steps"] == course.report["steps"] == 6


def test_a_constant_reward_trains_nothing_and_is_counted() -> None:
    where = bench()

    course = learn(where, likes_all)

    assert course.weights is None
    assert where.trainings == []
    assert course.report["skipped"] == {ALL_EQUAL: 8}
    assert course.report["stopped"] == "a whole pass over the prompts had nothing to teach"


def test_each_step_starts_from_the_one_before_and_samples_from_it() -> None:
    where = bench()

    learn(where)

    starts = [start.folder.name if start else None for _, start in where.trainings]
    assert starts == [None, *(f"trained-{n}" for n in range(5))]
    assert [stage.goes_on for stage, _ in where.trainings] == [False] + [True] * 5
    assert where.served == [Path(f"trained-{n}") for n in range(5)]


def test_it_begins_at_the_champion_where_there_is_one() -> None:
    where = bench()
    champion = Weights(Path("champion"))

    run(config(), prompts(8), likes_red, where, start=champion, policy=where.writer)

    assert where.trainings[0][1] == champion
    assert where.trainings[0][0].goes_on is False
    assert all("champion" in name for name in where.kept)


def test_prompts_have_their_turn_before_any_has_a_second() -> None:
    drawn: list[list[str]] = []

    def note(asked: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]) -> list[Scored]:
        drawn.append([prompt.id for prompt in asked])
        return likes_red(asked, groups)

    learn(bench(), note, prompts=prompts(10))

    assert sorted(map(len, drawn[:3])) == [3, 3, 4]
    assert len(set().union(*drawn[:3])) == len(set().union(*drawn[3:])) == 10
    assert drawn[:3] != drawn[3:]


def test_only_the_engines_own_tokens_are_trained() -> None:
    where = bench()

    learn(where)

    for stage, _ in where.trainings:
        for unit in stage.units:
            assert unit.is_trained == (False,) * 3 + (True,) * 2
            assert unit.sampler_logprobs is not None
            assert unit.old_logprobs is None  # one optimiser step: the ratio is 1
            assert set(unit.weights) == {Component.RL, Component.REF_KL}


def test_with_several_optimiser_steps_the_ratio_is_to_the_policy_that_sampled() -> None:
    where = bench()

    learn(where, settings=config(training=PromptTraining(batch_size=4)))

    units = where.trainings[0][0].units
    assert all(unit.old_logprobs == unit.sampler_logprobs for unit in units)


@pytest.mark.parametrize(
    ("loss", "weight", "mass"), [("grpo", 0.5, 1.0), ("dr_grpo", 0.25, 1.0), ("dapo", 1.0, 2.0)]
)
def test_tokens_weigh_as_the_loss_says(loss: str, weight: float, mass: float) -> None:
    where = bench()
    gradient = PolicyGradientSpec(loss=loss, reference_kl=0.1)  # type: ignore[arg-type]

    learn(where, settings=config(gradient=gradient))

    unit = where.trainings[0][0].units[0]
    assert unit.weights[Component.RL] == (weight,) * 2
    assert unit.weights[Component.REF_KL] == pytest.approx((0.1 * weight,) * 2)
    assert unit.mass == mass


def test_advantages_are_over_the_rollouts_that_are_trained() -> None:
    where = bench()

    def half(asked: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]) -> list[Scored]:
        flags = (True,) * 4 + (False,) * 4
        return [Scored((1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0), trained=flags) for _ in groups]

    learn(where, half, config(gradient=PolicyGradientSpec(scale="none")))

    units = where.trainings[0][0].units
    assert len(units) == 4 * 4
    assert sorted({unit.advantages[0] for unit in units}) == [-0.25, 0.75]


def test_cut_off_rollouts_are_left_out_unless_asked_for() -> None:
    where = bench()
    where.base.is_truncated = True

    assert learn(where).report["skipped"] == {"under two whole rollouts": 8}
    kept = learn(
        where, settings=config(gradient=PolicyGradientSpec(keeps_truncated=True)), name="b"
    )
    assert kept.weights is not None


def test_a_method_may_skip_a_group_and_drop_a_prompt() -> None:
    where = bench()

    def refuse(asked: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]) -> list[Scored]:
        return [Scored(None, skipped="no answer", is_dropped=True) for _ in groups]

    course = learn(where, refuse)

    assert course.weights is None
    assert course.report["skipped"] == {"no answer": 8}
    assert course.report["dropped_prompts"] == 8


def test_groups_of_one_teach_nothing() -> None:
    where = bench()
    settings = config(rollouts=RolloutSpec(prompts_per_step=4, group=1, steps=6))

    course = learn(where, settings=settings)

    assert course.report["skipped"] == {"under two rollouts": 8}


def test_it_stops_when_the_budget_is_used_up_or_a_method_says_so() -> None:
    left = [True, True, False]
    where = bench(budget=lambda: left.pop(0))

    course = learn(where)

    assert course.report["stopped"] == "the budget is used up"
    assert course.report["trained_steps"] == 2
    stopped = learn(bench(), should_stop=lambda curve: "enough" if len(curve) == 3 else None)
    assert (stopped.report["stopped"], stopped.report["trained_steps"]) == ("enough", 2)


def test_an_attempt_after_a_crash_repeats_nothing() -> None:
    whole = bench()
    learn(whole)
    broken = bench(budget=iter([True, True, False]).__next__)
    learn(broken)
    broken.kept.popitem()  # the crash came before the third step was kept
    again = bench(budget=lambda: True)
    again.kept = json.loads(json.dumps(broken.kept))

    learn(again)

    assert again.base.asked == []
    assert again.trainings == whole.trainings
