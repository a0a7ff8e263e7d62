"""TTRL on paper: votes that are fair, groups that teach, alarms that ring, and its control."""

from collections.abc import Sequence
from statistics import fmean

import pytest
from pydantic import ValidationError

from adapters.methods import Assignment, Outcome, build_method
from adapters.methods.ttrl import Ttrl, alarms
from adapters.spec import AnswerKind, AnswerSpec, RolloutSpec, StopSpec, TtrlConfig
from adapters.types import JSON, Prompt, Rollout
from tests.support.policies import PolicyBench, WordPolicy

ROLLOUTS = RolloutSpec(prompts_per_step=4, group=16, steps=10, max_new_tokens=4)


def prompts(count: int = 8, answers: tuple[str, ...] = ()) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"p{n}", ({"role": "user", "content": f"What is 3 + {n}?"},), answers=answers)
        for n in range(count)
    )


def config(**changes: object) -> TtrlConfig:
    return TtrlConfig(**({"rollouts": ROLLOUTS, "min_prompts": 4} | changes))


def bench(**odds: float) -> PolicyBench:
    return policy_of({"8": 3.0, "9": 2.0, "7": 1.0, "so": 1.0} | odds)


def policy_of(odds: dict[str, float]) -> PolicyBench:
    return PolicyBench(WordPolicy(tuple(odds), odds), rate=2.0)


def learn(where: PolicyBench, settings: TtrlConfig | None = None, **fields: object) -> Outcome:
    assignment = Assignment(**({"prompts": prompts()} | fields))
    return build_method(settings or config()).learn(assignment, where)


def account(outcome: Outcome) -> dict[str, JSON]:
    return outcome.report["ttrl"]


def group(*texts: str, is_truncated: bool = False) -> tuple[Rollout, ...]:
    return tuple(Rollout(text, (1,), (2, 3), (-1.0, -0.5), is_truncated) for text in texts)


def scored(settings: TtrlConfig, *texts: str, **fields: object):  # type: ignore[no-untyped-def]
    prompt = prompts(1, **fields)[0]
    return Ttrl(settings).score([prompt], [group(*texts)])[0]


def small(votes: int = 4, trained: int = 4, **changes: object) -> TtrlConfig:
    rollouts = RolloutSpec(group=trained, max_new_tokens=4)
    return config(rollouts=rollouts, votes=votes, **changes)


# The vote


def test_equal_answers_vote_together() -> None:
    outcome = scored(small(5, 5), "1/2", "0.5", "2", "2", "50 %")

    assert outcome.rewards == (1.0, 1.0, 0.0, 0.0, 1.0)
    assert outcome.facts["agreement"] == 0.6


def test_empty_answers_never_win_and_are_never_right() -> None:
    outcome = scored(small(6, 6), "8", "8", "\\boxed{}", "", "8", "so")

    assert outcome.rewards == (1.0, 1.0, 0.0, 0.0, 1.0, 0.0)
    assert outcome.facts["unanswered"] == 0.5


def test_a_prompt_that_mostly_has_no_answer_is_dropped() -> None:
    outcome = scored(small(), "8", "", "so", "well")

    assert outcome.rewards is None
    assert (outcome.skipped, outcome.is_dropped) == ("mostly no answer", True)


def test_a_tie_teaches_nothing() -> None:
    assert scored(small(), "8", "8", "9", "9").skipped == "tied vote"


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["8"] * 16, "nearly all agree"),
        (["8"] * 15 + ["9"], "nearly all agree"),
        (["8"] * 14 + ["9"] * 2, None),
        (["8"] * 3 + [str(n) for n in range(20, 33)], "too few agree"),
    ],
)
def test_groups_are_filtered_by_agreement(texts: list[str], reason: str | None) -> None:
    assert scored(small(16, 16), *texts).skipped == reason


def test_all_vote_and_the_first_are_trained() -> None:
    outcome = scored(small(6, 2), "9", "8", "8", "8", "7", "7")

    assert outcome.rewards == (0.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    assert outcome.trained == (True, True, False, False, False, False)


def test_what_is_cut_off_does_not_vote() -> None:
    prompt = prompts(1)[0]
    cut = group("8", "8", "8", is_truncated=True) + group("9", "9", "7", "9")

    assert Ttrl(small(7, 4)).score([prompt], [cut])[0].rewards == (0, 0, 0, 1, 1, 0, 1)


def test_known_answers_stand_beside_and_change_no_reward() -> None:
    unknown = scored(small(), "8", "8", "8", "9")
    known = scored(small(), "8", "8", "8", "9", answers=("9",))

    assert known.rewards == unknown.rewards == (1.0, 1.0, 1.0, 0.0)
    assert known.facts["label_accuracy"] == 0.0
    assert known.facts["reward_accuracy"] == 0.0
    assert known.facts["right"] == 0.25
    assert "right" not in unknown.facts


def test_a_wrong_label_can_still_reward_rightly() -> None:
    # The paper's "lucky hit": most wrong answers differ from the wrong label too.
    outcome = scored(small(5, 5), "8", "8", "1", "2", "3", answers=("5",))

    assert outcome.facts["label_accuracy"] == 0.0
    assert outcome.facts["reward_accuracy"] == 0.6


def test_fewer_votes_than_trained_replies_are_refused() -> None:
    with pytest.raises(ValidationError, match="raise votes or lower"):
        config(votes=8)


# The run


def test_the_majority_becomes_likelier() -> None:
    where = bench()

    outcome = learn(where, prompts=prompts(answers=("8",)))

    assert outcome.weights is not None
    odds = where.policy_of(outcome.weights).odds
    assert odds["8"] / sum(odds.values()) > 0.6  # from 3/7
    curve = account(outcome)["curve"]
    assert fmean(entry["right"] for entry in curve[-2:]) > curve[0]["right"]
    assert {"entropy", "agreement", "reward", "length", "unanswered"} <= set(curve[0])


def test_the_random_reward_moves_nothing_in_particular() -> None:
    shares = []
    for seed in range(5):
        where = bench()
        outcome = learn(where, config(reward="random", seed=seed))
        assert outcome.weights is not None
        odds = where.policy_of(outcome.weights).odds
        shares.append(odds["8"] / sum(odds.values()))

    assert abs(fmean(shares) - 3 / 7) < 0.1
    assert account(outcome)["reward"] == "random"


def test_the_coins_of_the_control_are_as_many_and_fall_alike_again() -> None:
    settings = small(16, 16, reward="random")
    texts = ["8"] * 8 + ["9"] * 8 + ["7"]
    majority, again = (scored(small(17, 16, reward="random"), *texts, "8") for _ in range(2))

    assert majority.rewards == again.rewards
    means = [
        fmean(
            Ttrl(settings.model_copy(update={"seed": seed}))
            .score(prompts(1), [group(*(["8"] * 10 + ["9"] * 6))])[0]
            .rewards
            or ()
        )
        for seed in range(100)
    ]
    assert abs(fmean(means) - 10 / 16) < 0.06


def test_prompts_that_cannot_be_answered_end_in_no_update() -> None:
    where = policy_of({"well": 1.0, "so": 1.0})

    outcome = learn(where)

    assert outcome.weights is None
    assert outcome.report["no_update"] == "No vote could be learnt from: no prompt is left."
    assert account(outcome)["skipped"] == {"mostly no answer": 8}
    assert account(outcome)["dropped_prompts"] == 8
    assert len(where.base.asked) == 8  # each once


def test_a_model_that_knows_it_all_is_left_alone() -> None:
    outcome = learn(policy_of({"8": 1.0}))

    assert outcome.weights is None
    assert account(outcome)["skipped"] == {"nearly all agree": 8}


def test_few_held_out_or_repeated_prompts_are_no_update() -> None:
    where = bench()
    given = prompts(8)

    outcome = learn(
        where,
        config(min_prompts=6),
        prompts=(*given, *given[3:5]),
        held_out=frozenset({"what is  3 + 0?", "What is 3 + 1?", "What is 3 + 2?"}),
    )

    assert (
        outcome.report["no_update"]
        == "5 of 10 prompts can be learnt from, and 6 are needed; send more, or lower min_prompts."
    )
    assert account(outcome)["left_out"] == {"asked in the exam": 3, "repeated": 2}
    assert where.base.asked == []


def test_no_held_out_prompt_is_ever_sampled() -> None:
    where = bench()

    learn(where, held_out=frozenset({"What is 3 + 5?"}))

    asked = {conversation[-1]["content"] for conversation in where.base.asked}
    assert asked == {f"What is 3 + {n}?" for n in range(8) if n != 5}


def test_the_other_kinds_of_answers_vote_too() -> None:
    where = policy_of({"yes": 3.0, "no": 2.0, "maybe": 1.0})
    answer = AnswerSpec(kind=AnswerKind.LABEL, labels=("yes", "no"))

    outcome = learn(where, config(answer=answer))

    assert outcome.weights is not None
    assert where.policy_of(outcome.weights).odds["yes"] > 3.0


# The alarms


def curve(**series: Sequence[float]) -> list[dict[str, float]]:
    length = len(next(iter(series.values())))
    rows = {"entropy": [1.0] * length, "length": [10.0] * length} | series
    rows.setdefault("agreement", [step / 100 for step in range(length)])
    return [{name: values[step] for name, values in rows.items()} for step in range(length)]


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        ({"entropy": [1.0] * 3 + [0.5] * 5}, None),
        ({"entropy": [1.0] * 3 + [0.5] * 2 + [0.05] * 3}, "the entropy has collapsed"),
        ({"length": [10.0] * 3 + [31.0] * 3}, "replies have become too long"),
        ({"length": [10.0] * 3 + [0.9] * 3}, "replies have become too short"),
        ({"agreement": [0.5] * 16}, "the agreement no longer rises"),
        ({"agreement": [0.5] * 15}, None),
        ({"agreement": [0.5] * 8 + [0.6] * 8}, None),
        ({"entropy": [0.1]}, None),
    ],
)
def test_alarms_ring_by_the_curve_alone(series: dict[str, list[float]], reason: str | None) -> None:
    assert alarms(StopSpec())(curve(**series)) == reason


def test_an_alarm_ends_the_run_with_what_it_has() -> None:
    where = bench()
    stops = StopSpec(window=1, entropy_floor=1.0)  # any fall of the entropy rings

    outcome = learn(where, config(stops=stops))

    assert outcome.weights is not None
    assert account(outcome)["stopped"] == "the entropy has collapsed"
    assert account(outcome)["steps"] < 10
