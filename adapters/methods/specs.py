"""SPECS: form is learnt from pairs that differ in nothing else, right answers by GRPO after that.

Chen et al., arXiv 2510.25801, in its stages: (1) the model makes the pairs itself; (2) DPO with an
SFT term, the base as reference, as a cold start that teaches form only; (3) GRPO with rewards for
form and for right answers. Ours is for text, and differs:
- stage 1's GRPO comes only where too few replies keep the form, also when it is asked for in the
  prompt; a model that keeps it now and then needs none. As in the paper that GRPO's model only
  writes chosen replies: the cold start begins where the run began;
- what is learnt has the prompt as users write it, without the words that asked for the form;
- no judge reads the reasoning. Where a verifier can tell, both sides of a pair are right; else the
  chosen has the answer that most replies in form agree on;
- corruptions are made for each kind of contract, not for tags alone.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pydantic import TypeAdapter

from adapters.lesson import Stage, Weights
from adapters.methods.continual import Beginning, begin
from adapters.methods.form_pairs import Asked, FormReply, Pairs, answer_spec, build_pairs
from adapters.methods.form_prompts import asking_for, spelled_out
from adapters.methods.policy_gradient import Course, Scored, run
from adapters.methods.prompt_sets import usable_prompts
from adapters.methods.workbench import Assignment, Outcome, Workbench
from adapters.rewards.contracts import fault_of
from adapters.rewards.same_answer import answer_part
from adapters.rewards.verifiers import Verifier
from adapters.sampling import WHY_REFUSED, RolloutSampler
from adapters.spec import LossSpec, SpecsConfig
from adapters.types import (
    JSON,
    Attempt,
    ChatMessage,
    ProgressCallback,
    Prompt,
    Rollout,
    SamplingParams,
)

_REPLIES: TypeAdapter[list[tuple[FormReply, ...]] | None] = TypeAdapter(
    list[tuple[FormReply, ...]] | None
)
_FAULTS_SHOWN = 10

Groups = Sequence[tuple[FormReply, ...]]


class Specs:
    """SPECS for one config; holds no state between runs."""

    def __init__(self, config: SpecsConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        config = self._config
        beginning = begin(assignment, config)
        usable = usable_prompts(assignment, config)
        lesson = _Lesson(config, beginning, bench, _drawn(usable.prompts, config), usable.report())
        if why := usable.why_too_few(config.min_prompts):
            return lesson.no_update(why)
        return lesson.learn()


@dataclass
class _Lesson:
    """One run of the method."""

    config: SpecsConfig
    beginning: Beginning
    bench: Workbench
    prompts: Sequence[Prompt]
    report: dict[str, JSON] = field(default_factory=dict)

    def learn(self) -> Outcome:
        """All stages; each part of the report is there as soon as its stage is done."""
        self.report["contract"] = self.config.contract.type
        student = self._student()
        sampled = self._sampled("before", student, self.prompts)
        if sampled is None:
            return self.no_update("The budget was used up before anything was sampled.")
        before = self._without_refused(sampled)
        if not before:
            return self.no_update("The engine refuses every prompt; they may be too long for it.")
        weights = self.beginning.start
        if self.config.cold_start != "none":
            cold = self._cold_start(before, student)
            if isinstance(cold, str):
                return self.no_update(cold)
            weights = cold or weights
        if self.config.is_reinforced:
            weights = self._reinforced(weights, self.prompts, "policy", "grpo").weights or weights
        if weights is None or weights == self.beginning.start:
            return self.no_update("Neither the cold start nor GRPO had anything to teach.")
        self._sampled("after", _Served(self.bench, weights), self.prompts)
        continual = self.beginning.report(0)
        return Outcome(
            weights,
            {"specs": self.report, "continual": continual},
            self.beginning.generation,
        )

    def _without_refused(self, before: Groups) -> Groups:
        """The groups of the prompts that the engine takes; the others have no part in what follows."""
        taken = [prompt for prompt, group in zip(self.prompts, before, strict=True) if group]
        if refused := len(self.prompts) - len(taken):
            self.report["prompts_refused"] = {WHY_REFUSED: refused}
        self.prompts = taken
        return [group for group in before if group]

    def no_update(self, why: str) -> Outcome:
        """Nothing was learnt."""
        return Outcome(None, {"no_update": why, "specs": self.report})

    def _cold_start(self, before: Groups, student: RolloutSampler) -> Weights | str | None:
        """Stages 1 and 2. None: there was nothing to learn in them; a string: why the run ends."""
        if _pass_share(before) == 1.0:
            self.report["cold_start"] = "left out: every reply keeps the form already"
            return None
        shown = self._shown(before, student)
        if not _pass_share(before) and not _pass_share(shown):
            faults = ", ".join(_faults([*before, *shown])) or "none was whole"
            return (
                f"No reply keeps the contract, also when it is asked for ({faults}). Check that "
                "the contract can be met at all, put an example of it in `instruction`, or let "
                "the prompts ask for it."
            )
        asked = [
            Asked(prompt, plain, more)
            for prompt, plain, more in zip(
                self.prompts, before, shown or [()] * len(before), strict=True
            )
        ]
        made = build_pairs(asked, self.config)
        self.report["pairs"] = made.report()
        if not made.pairs:
            self.report["cold_start"] = "left out: no pair could be made"
            return None
        if not self.bench.has_budget():
            return "The budget was used up before anything was learnt."
        with self.bench.stage("training"):
            weights = self.bench.train(self._stage(made), start=self.beginning.start)
        self.report["cold_start"] = self.config.cold_start
        return weights

    def _shown(self, before: Groups, student: RolloutSampler) -> list[tuple[FormReply, ...]]:
        """More replies for the chosen side, where too few of the model's own keep the form."""
        least = self.config.min_pass_share
        if _pass_share(before) >= least:
            return []
        instruction = self.config.instruction or spelled_out(self.config.contract)
        asking = [asking_for(prompt, instruction) for prompt in self.prompts]
        shown = self._sampled("asked_for", student, asking) or []
        best = max(_pass_share(before), _pass_share(shown))
        if best >= least or not best or not self.config.form_steps:
            return shown
        prompts = asking if _pass_share(shown) > _pass_share(before) else self.prompts
        course = self._reinforced(
            self.beginning.start, prompts, "form", "form_grpo", steps=self.config.form_steps
        )
        if course.weights is None:
            return shown
        zero = self._sampled("formed", _Served(self.bench, course.weights), prompts)
        if zero is None:
            return shown
        return [(*first, *second) for first, second in zip(zero, shown, strict=True)]

    def _stage(self, made: Pairs) -> Stage:
        config = self.config
        return Stage(
            lora=config.lora,
            training=config.cold_training,
            seed=config.seed,
            pairs=tuple(made.pairs),
            losses=LossSpec(dpo_beta=config.dpo_beta),
        )

    def _reinforced(
        self,
        start: Weights | None,
        prompts: Sequence[Prompt],
        name: str,
        part: str,
        *,
        steps: int | None = None,
    ) -> Course:
        """GRPO on form and answers; stage 1's is the same, and brief."""
        rollouts = self.config.rollouts
        if steps is not None:
            rollouts = rollouts.model_copy(update={"steps": min(steps, rollouts.steps)})
        is_trained_here = start is not None and start != self.beginning.start
        policy = _Served(self.bench, start) if is_trained_here and start else self._student()
        course = run(
            self.config.model_copy(update={"rollouts": rollouts}),
            prompts,
            _Reward(self.config, self._verifier()),
            self.bench,
            start=start,
            policy=policy,
            name=name,
        )
        self.report[part] = course.report
        return course

    def _sampled(
        self, name: str, sampler: RolloutSampler, prompts: Sequence[Prompt]
    ) -> list[tuple[FormReply, ...]] | None:
        """Replies to each prompt, looked at and accounted for; the same after a crash.

        None where the budget was used up before.
        """
        rollouts = self.config.rollouts
        params = SamplingParams(
            max_tokens=rollouts.max_new_tokens,
            temperature=rollouts.temperature,
            top_p=rollouts.top_p,
            seed=self.config.seed,
        )

        def ask() -> JSON:
            if not self.bench.has_budget():
                return None
            groups = sampler.rollouts(
                [prompt.messages for prompt in prompts],
                params,
                group=self.config.samples,
                on_progress=self.bench.progress,
            )
            found = look_at(groups, prompts, self.config, self._verifier())
            rows: JSON = _REPLIES.dump_python(found, mode="json")
            return rows

        with self.bench.stage("replies"):
            rows = self.bench.once(self.beginning.name(f"specs-{name}"), ask)
        found = _REPLIES.validate_python(rows)
        self.report[name] = "the budget is used up" if found is None else _account(found)
        return found

    def _student(self) -> RolloutSampler:
        return self.beginning.student(self.bench)

    def _verifier(self) -> Verifier | None:
        spec = self.config.verifier
        return None if spec is None else self.bench.verifier(spec)


def look_at(
    groups: Sequence[tuple[Rollout, ...]],
    prompts: Sequence[Prompt],
    config: SpecsConfig,
    verifier: Verifier | None,
) -> list[tuple[FormReply, ...]]:
    """Each rollout with what contract and verifier say of it."""
    verdicts = iter(_verdicts(groups, prompts, config, verifier))
    return [
        tuple(
            FormReply(
                rollout.text,
                fault_of(rollout.text, config.contract),
                next(verdicts),
                rollout.is_truncated,
                len(rollout.prompt_ids),
                len(rollout.ids),
            )
            for rollout in group
        )
        for group in groups
    ]


@dataclass(frozen=True)
class _Reward:
    """So much for form, so much for a right answer."""

    config: SpecsConfig
    verifier: Verifier | None

    def __call__(
        self, prompts: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        looked = look_at(groups, prompts, self.config, self.verifier)
        return [self._scored(group) for group in looked]

    def _scored(self, group: tuple[FormReply, ...]) -> Scored:
        is_told = tuple(self.verifier is None or reply.is_right is not None for reply in group)
        if not any(is_told):
            return Scored(None, skipped="the verifier could tell of no reply")
        rewards = tuple(
            self.config.form_reward * reply.keeps_form
            + self.config.answer_reward * bool(reply.is_right)
            for reply in group
        )
        facts = {"form": fmean(float(reply.keeps_form) for reply in group)}
        if self.verifier is not None:
            known = [reply.is_right for reply in group if reply.is_right is not None]
            facts["right"] = fmean(map(float, known))
        return Scored(rewards, trained=is_told, facts=facts)


@dataclass(frozen=True)
class _Served:
    """Trained weights, served only while they are asked: never beside the policy's next ones."""

    bench: Workbench
    weights: Weights

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        with self.bench.serving([self.weights]) as (sampler,):
            return sampler.chat(conversations, params, on_progress=on_progress)

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> list[tuple[Rollout, ...]]:
        with self.bench.serving([self.weights]) as (sampler,):
            return sampler.rollouts(conversations, params, group=group, on_progress=on_progress)


def _verdicts(
    groups: Sequence[tuple[Rollout, ...]],
    prompts: Sequence[Prompt],
    config: SpecsConfig,
    verifier: Verifier | None,
) -> list[bool | None]:
    """Whether each reply is right, in one row."""
    attempts = [
        Attempt(prompt, _to_judge(rollout.text, config))
        for prompt, group in zip(prompts, groups, strict=True)
        for rollout in group
    ]
    if verifier is None:
        return [None] * len(attempts)
    return [verdict.is_right for verdict in verifier.verify(attempts)]


def _to_judge(reply: str, config: SpecsConfig) -> str:
    """What the verifier sees: one that compares answers gets the answer out of the form."""
    spec = answer_spec(config)
    return reply if spec is None else answer_part(reply, config.contract, spec)


def _drawn(prompts: Sequence[Prompt], config: SpecsConfig) -> list[Prompt]:
    """At most `max_prompts`, drawn by the seed."""
    if len(prompts) <= config.max_prompts:
        return list(prompts)
    return random.Random(config.seed).sample(prompts, config.max_prompts)


def _pass_share(groups: Groups) -> float:
    """Of all replies, those that keep the form."""
    replies = [reply for group in groups for reply in group]
    return fmean(float(reply.keeps_form) for reply in replies) if replies else 0.0


def _faults(groups: Groups) -> dict[str, int]:
    counts = Counter(
        "cut off" if reply.is_truncated else reply.fault
        for group in groups
        for reply in group
        if not reply.keeps_form
    )
    return {str(fault): count for fault, count in counts.most_common(_FAULTS_SHOWN)}


def _account(groups: Groups) -> dict[str, JSON]:
    """How many replies keep the form and are right, for the run's report."""
    replies = [reply for group in groups for reply in group]
    known = [reply.is_right for reply in replies if reply.is_right is not None]
    return {
        "replies": len(replies),
        "passed": sum(reply.keeps_form for reply in replies),
        "judged": len(known),
        "right": sum(map(bool, known)),
        "faults": {**_faults(groups)},
    }
