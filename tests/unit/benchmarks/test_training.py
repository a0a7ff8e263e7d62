"""What the trainers are compared on: the same samples for all, cut as each case says."""

import pytest

from adapters.training.advantages import grpo_advantages
from benchmarks.training_cases import BATCH, CASES, reward, steps_of, text

TOKENS = list(range(5_000))


@pytest.mark.parametrize("case", CASES)
def test_every_contender_gets_the_same_samples(case: str):
    steps = steps_of(case, TOKENS, 3)

    assert steps == steps_of(case, TOKENS, 3)
    assert [len(step) for step in steps] == [BATCH] * 3
    assert steps[0] != steps[1]


def test_the_cases_are_what_their_names_say():
    first = {case: steps_of(case, TOKENS, 1)[0] for case in CASES}

    assert len({len(sample.ids) for sample in first["equal lengths"]}) == 1
    assert len({len(sample.ids) for sample in first["varied lengths"]}) == BATCH
    assert len({sample.ids[:24] for sample in first["short chats"]}) == 1
    assert len({sample.ids[:384] for sample in first["long shared prompt"]}) == 1
    assert {sample.group for sample in first["long shared prompt"]} == {"prompt"}


def test_trl_is_told_the_rewards_that_our_advantages_came_from():
    step = steps_of("GRPO", TOKENS, 1)[0]
    rewards = [reward(sample) for sample in step]

    assert set(rewards) == {0.0, 1.0}
    first = [(sample.advantages or ())[0] for sample in step]
    assert first == pytest.approx(grpo_advantages(rewards))


def test_there_is_text_enough_to_cut_from():
    assert len(text().split()) > 2_000
