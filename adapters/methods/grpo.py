"""GRPO with a verifier: replies that are called right are reinforced against the others.

Shao et al., "DeepSeekMath", arXiv 2402.03300 (the algorithm), with the corrections of Dr. GRPO
(2503.20783) and DAPO (2503.14476) to choose from. The company of the label-free methods: the same
loop, with rewards that are true. Ours differs:
- a reply that the verifier could not judge counts for nothing: it is neither trained nor part of
  the mean; a group with fewer than two verdicts is skipped;
- a group whose replies are all right or all wrong is never trained (DAPO's dynamic sampling, without
  sampling others in its place);
- LoRA, KL to the base by k3, truncated importance weights for the engine's arithmetic.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from adapters.methods.continual import begin
from adapters.methods.policy_gradient import Scored, run
from adapters.methods.prompt_sets import usable_prompts
from adapters.methods.workbench import Assignment, Outcome, Workbench
from adapters.rewards.verifiers import Verifier
from adapters.spec import GrpoConfig
from adapters.types import JSON, Attempt, Prompt, Rollout, Verdict


class Grpo:
    """GRPO for one config; holds no state between runs."""

    def __init__(self, config: GrpoConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        config = self._config
        beginning = begin(assignment, config)
        usable = usable_prompts(assignment, config)
        report: dict[str, JSON] = usable.report()
        if why := usable.why_too_few(config.min_prompts):
            return Outcome(None, {"no_update": why, "grpo": report})
        course = run(
            config,
            usable.prompts,
            VerifiedScore(bench.verifier(config.verifier)),
            bench,
            start=beginning.start,
            policy=beginning.student(bench),
            name="grpo",
        )
        report |= course.report
        continual = beginning.report(0)
        if course.weights is None:
            why = f"No group of replies could be learnt from: {course.report['stopped']}."
            return Outcome(None, {"no_update": why, "grpo": report, "continual": continual})
        return Outcome(
            course.weights, {"grpo": report, "continual": continual}, beginning.generation
        )


class VerifiedScore:
    """Rewards of 1 and 0 by a verifier."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def __call__(
        self, prompts: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        """One verifying of all the step's replies."""
        attempts = [
            Attempt(prompt, rollout.text)
            for prompt, group in zip(prompts, groups, strict=True)
            for rollout in group
        ]
        verdicts = iter(self._verifier.verify(attempts))
        return [_judged([next(verdicts) for _ in group]) for group in groups]


def _judged(verdicts: Sequence[Verdict]) -> Scored:
    told = [verdict.is_right for verdict in verdicts if verdict.is_right is not None]
    facts = {"untold": 1.0 - len(told) / len(verdicts)}
    if told:
        facts["right"] = fmean(told)
    if len(told) < 2:
        return Scored(None, skipped=f"under two verdicts{_because(verdicts)}", facts=facts)
    return Scored(
        tuple(float(verdict.is_right is True) for verdict in verdicts),
        trained=tuple(verdict.is_right is not None for verdict in verdicts),
        facts=facts,
    )


def _because(verdicts: Sequence[Verdict]) -> str:
    reasons = Counter(each.reason for each in verdicts if each.is_right is None and each.reason)
    return f": {reasons.most_common(1)[0][0]}" if reasons else ""
