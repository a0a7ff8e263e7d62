"""GRPO with a verifier: what is called right is reinforced, what cannot be told counts for nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.lesson import Weights
from adapters.methods import Assignment, Outcome, build_method
from adapters.methods.grpo import VerifiedScore
from adapters.spec import GrpoConfig, RolloutSpec
from adapters.types import Attempt, Prompt, Rollout, Verdict
from tests.support.policies import PolicyBench, WordPolicy

ODDS = {"8": 1.0, "9": 2.0, "7": 1.0}


@dataclass
class Judge:
    """A verifier by a function of the reply."""

    says: Callable[[str], Verdict]

    def verify(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        return [self.says(attempt.reply) for attempt in attempts]


def eight(reply: str) -> Verdict:
    return Verdict(reply == "8", "" if reply == "8" else "another answer")


def untold(reply: str) -> Verdict:
    return Verdict(None, "timed out")


def prompts(count: int = 8) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"p{n}", ({"role": "user", "content": f"What is 3 + {n}?"},)) for n in range(count)
    )


def bench(says: Callable[[str], Verdict]) -> PolicyBench:
    return PolicyBench(WordPolicy(tuple(ODDS), ODDS), rate=2.0, judge=Judge(says))


def learn(where: PolicyBench, **fields: object) -> Outcome:
    config = GrpoConfig(
        rollouts=RolloutSpec(prompts_per_step=4, group=8, steps=8, max_new_tokens=4),
    )
    return build_method(config).learn(Assignment(**({"prompts": prompts()} | fields)), where)


def test_what_is_right_becomes_likelier_even_where_most_say_otherwise() -> None:
    where = bench(eight)

    outcome = learn(where)

    assert outcome.weights is not None
    odds = where.policy_of(outcome.weights).odds
    assert odds["8"] > odds["9"]
    curve = outcome.report["grpo"]["curve"]
    assert curve[-1]["right"] > curve[0]["right"]


def test_a_verifier_that_cannot_tell_is_no_update_with_its_reason() -> None:
    where = bench(untold)

    outcome = learn(where)

    assert outcome.weights is None
    assert where.trainings == []
    assert outcome.report["grpo"]["skipped"] == {"under two verdicts: timed out": 8}
    assert "had nothing to teach" in outcome.report["no_update"]


def test_a_reply_without_a_verdict_is_not_trained() -> None:
    judge = Judge(lambda reply: untold(reply) if reply == "7" else eight(reply))
    group = tuple(Rollout(text, (1,), (2,), (-1.0,)) for text in ("8", "7", "9", "8"))

    (scored,) = VerifiedScore(judge)(prompts(1), [group])

    assert scored.rewards == (1.0, 0.0, 0.0, 1.0)
    assert scored.trained == (True, False, True, True)
    assert scored.facts == {"untold": 0.25, "right": 2 / 3}


def test_all_right_and_all_wrong_train_nothing() -> None:
    for verdict in (True, False):
        outcome = learn(bench(lambda reply, verdict=verdict: Verdict(verdict)))

        assert outcome.weights is None
        assert outcome.report["grpo"]["skipped"] == {"all rewards equal": 8}


def test_it_goes_on_from_the_champion(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 32}')
    where = bench(eight)

    outcome = learn(where, champion=Weights(tmp_path), champion_generation=1)

    assert where.trainings[0][1] == Weights(tmp_path)
    assert outcome.generation == 2


def test_too_few_prompts_are_no_update() -> None:
    outcome = learn(bench(eight), prompts=prompts(3))

    assert (
        outcome.report["no_update"]
        == "3 of 3 prompts can be learnt from, and 8 are needed; send more, or lower min_prompts."
    )
