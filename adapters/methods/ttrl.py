"""TTRL: the majority of a model's own replies stands in for the answer, and is reinforced.

Zuo et al., "TTRL: Test-Time Reinforcement Learning", arXiv 2504.16084. Each prompt gets N replies;
the answer that most of them give is the pseudo-label; a reply that gives it is rewarded with 1, any
other with 0; the first M replies are trained by GRPO. No label is ever used. Ours differs:
- answers are gathered by what they are worth before the vote (`1/2` is `0.5`), where the authors'
  code counts texts; no answer never votes, where theirs lets an empty one win; a reply that was cut
  off has none; a tie has no winner, where theirs goes to whoever was sampled first;
- groups in which too few or too many agree are not trained: the first do not know, the second have
  nothing to learn. A model sharpens toward what it believed at the start, right or wrong
  (arXiv 2603.08660), so runs are short and stop by label-free alarms: entropy, length, plateau;
- a prompt whose replies mostly hold no answer is not asked again;
- LoRA with a KL to the base, and truncated importance weights for the engine's arithmetic; what is
  trained are the engine's own tokens, so no padding is.

`reward = "random"` is the control (arXiv 2506.10947): the same groups, a coin for each reply.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from adapters.methods.continual import begin
from adapters.methods.policy_gradient import Curve, Scored, run
from adapters.methods.prompt_sets import usable_prompts
from adapters.methods.workbench import Assignment, Outcome, Workbench
from adapters.rewards.equivalence import are_equal, cluster
from adapters.rewards.extraction import extract
from adapters.rewards.votes import Tally, tally
from adapters.spec import StopSpec, TtrlConfig
from adapters.types import JSON, Prompt, Rollout


class Ttrl:
    """TTRL for one config; holds no state between runs."""

    def __init__(self, config: TtrlConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        config = self._config
        beginning = begin(assignment, config)
        usable = usable_prompts(assignment, config)
        report: dict[str, JSON] = {**usable.report(), "reward": config.reward}
        if why := usable.why_too_few(config.min_prompts):
            return Outcome(None, {"no_update": why, "ttrl": report})
        sampled = config.rollouts.model_copy(update={"group": config.votes})
        course = run(
            config.model_copy(update={"rollouts": sampled}),
            usable.prompts,
            self.score,
            bench,
            start=beginning.start,
            policy=beginning.student(bench),
            should_stop=alarms(config.stops),
            name="ttrl",
        )
        report |= course.report
        continual = beginning.report(0)
        if course.weights is None:
            why = f"No vote could be learnt from: {course.report['stopped']}."
            return Outcome(None, {"no_update": why, "ttrl": report, "continual": continual})
        return Outcome(
            course.weights, {"ttrl": report, "continual": continual}, beginning.generation
        )

    def score(
        self, prompts: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        """Rewards by the vote within each group of N; the first M are to be trained."""
        return [self._voted(prompt, group) for prompt, group in zip(prompts, groups, strict=True)]

    def _voted(self, prompt: Prompt, group: tuple[Rollout, ...]) -> Scored:
        config = self._config
        answers = [self._answer(rollout) for rollout in group]
        clusters = cluster(answers, config.answer)
        votes = tally(clusters)
        facts = {
            "agreement": votes.agreement,
            "unanswered": 1.0 - votes.answered,
            "answers": float(votes.answers),
        }
        rewards = tuple(float(number is not None and number == votes.winner) for number in clusters)
        facts |= self._beside(prompt, answers, rewards)
        if votes.answered < config.vote.least_answered:
            return Scored(None, skipped="mostly no answer", facts=facts, is_dropped=True)
        if (fault := self._fault_of(votes)) is not None:
            return Scored(None, skipped=fault, facts=facts)
        if config.reward == "random":
            rewards = _coins(prompt, group, config.seed, mean=fmean(rewards))
        trained = tuple(place < config.rollouts.group for place in range(len(group)))
        return Scored(rewards, trained=trained, facts=facts)

    def _answer(self, rollout: Rollout) -> str | None:
        """What a reply answers; what it says before it is cut off may be anything."""
        if rollout.is_truncated and not self._config.gradient.keeps_truncated:
            return None
        return extract(rollout.text, self._config.answer)

    def _fault_of(self, votes: Tally) -> str | None:
        if votes.is_tie:
            return "tied vote"
        if votes.agreement < self._config.vote.floor:
            return "too few agree"
        return "nearly all agree" if votes.agreement > self._config.vote.ceiling else None

    def _beside(
        self, prompt: Prompt, answers: Sequence[str | None], rewards: Sequence[float]
    ) -> dict[str, float]:
        """How right the vote is where the answer happens to be known; nothing is trained by it."""
        if not prompt.answers:
            return {}
        truth = [self._is_right(answer, prompt) for answer in answers]
        label = next((right for right, reward in zip(truth, rewards, strict=True) if reward), False)
        return {
            "right": fmean(truth),
            "label_accuracy": float(label),
            "reward_accuracy": fmean(
                right == bool(reward) for right, reward in zip(truth, rewards, strict=True)
            ),
        }

    def _is_right(self, answer: str | None, prompt: Prompt) -> bool:
        spec = self._config.answer
        return answer is not None and any(
            are_equal(answer, known, spec) for known in prompt.answers
        )


def alarms(spec: StopSpec) -> Callable[[Curve], str | None]:
    """Says why to stop, by the curve alone: entropy, length, agreement."""

    def should_stop(curve: Curve) -> str | None:
        if len(curve) > spec.window:
            first, last = curve[: spec.window], curve[-spec.window :]
            if _mean(last, "entropy") < spec.entropy_floor * _mean(first, "entropy"):
                return "the entropy has collapsed"
            if _mean(last, "length") < spec.length_floor * _mean(first, "length"):
                return "replies have become too short"
            if _mean(last, "length") > spec.length_ceiling * _mean(first, "length"):
                return "replies have become too long"
        later, earlier = _halves(curve, spec.plateau_steps)
        if earlier and _mean(later, "agreement") - _mean(earlier, "agreement") < spec.plateau_gain:
            return "the agreement no longer rises"
        return None

    return should_stop


def _halves(curve: Curve, steps: int) -> tuple[Curve, Curve]:
    """The last steps, and as many before them; none before there are as many."""
    return (curve[-steps:], curve[-2 * steps : -steps]) if len(curve) >= 2 * steps else (curve, ())


def _mean(curve: Sequence[Mapping[str, float]], name: str) -> float:
    values = [entry[name] for entry in curve if name in entry]
    return fmean(values) if values else 0.0


def _coins(
    prompt: Prompt, group: Sequence[Rollout], seed: int, *, mean: float
) -> tuple[float, ...]:
    """Rewards drawn by chance, from the content alone: the same again after a crash."""
    said = "\0".join((str(seed), prompt.id, *(repr(rollout.logprobs) for rollout in group)))
    draw = random.Random(hashlib.sha256(said.encode()).digest())
    return tuple(float(draw.random() < mean) for _ in group)
