"""The on-policy loop that TTRL, GRPO and their kin share: rollouts, rewards, a step, again.

GRPO: Shao et al., arXiv 2402.03300; Dr. GRPO: 2503.20783; DAPO: 2503.14476. In each step the present
policy replies a group of times to each of a few prompts, a method's `Score` rewards the replies, and
one training moves the policy by the advantages within each group. What is trained are the tokens
that the engine sampled, as it sampled them: no text is encoded again, and there is no padding.

- Advantages are taken over the rollouts that are trained: those that a method leaves out (votes
  beyond the trained ones, verdicts that could not be told) and those that were cut off are no part
  of the mean.
- A group whose rewards are all equal is not trained: it would be a step of the KL alone. It is
  counted, and a step in which no group is left trains nothing.
- With one optimiser step per batch of rollouts the ratio is 1, and the engine's log-probabilities
  weigh each token by a truncated importance weight (TIS). With several, the ratio is taken to the
  engine's policy itself, which sampled, and is clipped; nothing is weighed twice.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Protocol, TypeAlias

from pydantic import TypeAdapter

from adapters.lesson import Stage, Weights
from adapters.methods.workbench import Workbench
from adapters.sampling import WHY_REFUSED, RolloutSampler
from adapters.spec import LoraSpec, LossSpec, PolicyGradientSpec, RolloutSpec, TrainingSpec
from adapters.training.advantages import (
    TokenWeight,
    centred_advantages,
    dapo_weight,
    dr_grpo_weight,
    grpo_advantages,
    grpo_weight,
    is_informative,
)
from adapters.types import (
    JSON,
    Component,
    Prompt,
    Rollout,
    SamplingParams,
    TrainingSample,
    reply_mask,
)

ALL_EQUAL = "all rewards equal"
"""Why most groups that teach nothing are skipped."""
_SEEDS_PER_RUN = 100_003
_DIGITS = 4


class PolicyConfig(Protocol):
    """What the loop reads of a method's config."""

    @property
    def lora(self) -> LoraSpec: ...

    @property
    def training(self) -> TrainingSpec: ...

    @property
    def rollouts(self) -> RolloutSpec: ...

    @property
    def gradient(self) -> PolicyGradientSpec: ...

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Scored:
    """What a method makes of one prompt's group of G rollouts."""

    rewards: tuple[float, ...] | None
    """One for each rollout; None: the group is skipped."""
    trained: tuple[bool, ...] | None = None
    """Which rollouts are trained, and counted in the advantages; None: all."""
    skipped: str | None = None
    """Why it is skipped: a short closed phrase, to be counted by."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Numbers for the curve, each averaged over the groups of a step that have it."""
    is_dropped: bool = False
    """Whether the prompt is not to be drawn again."""


Score: TypeAlias = Callable[[Sequence[Prompt], Sequence[tuple[Rollout, ...]]], list[Scored]]
"""Rewards the groups of one step; called once a step, with equally many prompts and groups."""

Curve: TypeAlias = Sequence[Mapping[str, float]]
"""One entry a step, the present one last: `step`, `reward`, `entropy`, `length` and others."""

ShouldStop: TypeAlias = Callable[[Curve], str | None]
"""Why to stop, asked before each training with the curve up to its rollouts; None: go on."""


@dataclass(frozen=True, slots=True)
class Course:
    """What came of it."""

    weights: Weights | None
    """None: no step taught anything."""
    report: dict[str, JSON]
    """`curve`, `stopped`, `steps`, `trained_steps`, `skipped`, `dropped_prompts`."""


def never(curve: Curve) -> str | None:
    """Do not stop early."""
    return None


def run(
    config: PolicyConfig,
    prompts: Sequence[Prompt],
    score: Score,
    bench: Workbench,
    *,
    start: Weights | None,
    policy: RolloutSampler,
    should_stop: ShouldStop = never,
    name: str = "policy",
) -> Course:
    """Move the policy for at most `config.rollouts.steps` steps.

    Args:
        start: where the training begins; None is the clean base. The KL holds to the base either way.
        policy: who samples as long as nothing is trained: what `start` is.
        name: of what is remembered by `bench.once`; one for each loop of a run.

    Raises:
        SamplingError: the engine failed.
    """
    spec = config.rollouts
    deck = _Deck(prompts, spec.prompts_per_step, config.seed)
    weights: Weights | None = None
    account = _Account()
    if start is not None:  # after a crash another champion may serve
        name = f"{name}-on-{start.folder.name}"
    for step in range(spec.steps):
        drawn = deck.draw()
        if not drawn:
            account.stopped = "no prompt is left"
            break
        with bench.stage("rollouts"):
            bench.progress(step, spec.steps)
            made = _gathered(config, drawn, score, bench, weights, policy, f"{name}-{step}", step)
        if made is None:
            account.stopped = "the budget is used up"
            break
        deck.drop(made.dropped)
        account.add(made, step)
        if made.facts and (reason := should_stop(account.curve)) is not None:
            account.stopped = reason
            break
        if made.taught:
            with bench.stage("training"):
                stage = _stage(config, made.taught, step, goes_on=weights is not None)
                weights = bench.train(stage, start=weights or start)
            account.trained_steps += 1
            deck.note_taught()
        elif deck.is_idle():
            account.stopped = "a whole pass over the prompts had nothing to teach"
            break
    return Course(weights, account.report())


@dataclass(frozen=True, slots=True)
class _Taught:
    """A rollout that is trained, with its advantage."""

    prompt_id: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float


@dataclass(frozen=True, slots=True)
class _Step:
    """What one step's rollouts came to; kept over a crash."""

    taught: tuple[_Taught, ...]
    facts: dict[str, float]
    skipped: dict[str, int]
    dropped: tuple[str, ...]
    """Ids of prompts that are not drawn again."""


_STEP: TypeAdapter[_Step | None] = TypeAdapter(_Step | None)


class _Deck:
    """Prompts in seeded order: each once in a pass, in steps of nearly equal size."""

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int) -> None:
        self._live = list(prompts)
        self._per_step = per_step
        self._seed = seed
        self._pass = 0
        self._hands: list[list[Prompt]] = []
        self._has_taught = True

    def draw(self) -> list[Prompt]:
        """The prompts of the next step; none where all were dropped."""
        while self._live:
            if not self._hands:
                self._deal()
            hand = [prompt for prompt in self._hands.pop(0) if prompt in self._live]
            if hand:
                return hand
        return []

    def drop(self, ids: Sequence[str]) -> None:
        """Draw these no more."""
        self._live = [prompt for prompt in self._live if prompt.id not in ids]

    def note_taught(self) -> None:
        """The pass has taught something."""
        self._has_taught = True

    def is_idle(self) -> bool:
        """Whether a pass is over in which nothing was taught, with prompts left."""
        return bool(self._live) and not self._hands and not self._has_taught

    def _deal(self) -> None:
        order = list(self._live)
        random.Random(f"{self._seed}/{self._pass}").shuffle(order)
        count = math.ceil(len(order) / self._per_step)
        self._hands = [order[first::count] for first in range(count)]
        self._pass += 1
        self._has_taught = False


@dataclass(slots=True)
class _Account:
    curve: list[dict[str, float]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    trained_steps: int = 0
    stopped: str = "all steps are done"

    def add(self, made: _Step, step: int) -> None:
        if made.facts:  # a step whose prompts were all refused tells nothing
            self.curve.append({"step": float(step), **made.facts})
        self.skipped.update(made.skipped)
        self.dropped += len(made.dropped)

    def report(self) -> dict[str, JSON]:
        curve: list[JSON] = [dict(entry) for entry in self.curve]
        return {
            "curve": curve,
            "steps": len(self.curve),
            "trained_steps": self.trained_steps,
            "stopped": self.stopped,
            "skipped": dict(self.skipped),
            "dropped_prompts": self.dropped,
        }


def _gathered(
    config: PolicyConfig,
    drawn: Sequence[Prompt],
    score: Score,
    bench: Workbench,
    weights: Weights | None,
    policy: RolloutSampler,
    name: str,
    step: int,
) -> _Step | None:
    """A step's rollouts, rewarded; None where the budget was used up before."""

    def gather() -> JSON:
        if not bench.has_budget():
            return None
        if weights is None:
            groups = _sample(config, drawn, policy, step)
        else:
            with bench.serving([weights]) as (sampler,):
                groups = _sample(config, drawn, sampler, step)
        made = _answered(config, drawn, groups, score)
        kept: JSON = _STEP.dump_python(made, mode="json")
        return kept

    return _STEP.validate_python(bench.once(name, gather))


def _sample(
    config: PolicyConfig, drawn: Sequence[Prompt], sampler: RolloutSampler, step: int
) -> list[tuple[Rollout, ...]]:
    spec = config.rollouts
    params = SamplingParams(
        max_tokens=spec.max_new_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        seed=(config.seed * _SEEDS_PER_RUN + step) % 2**31,
    )
    return sampler.rollouts([prompt.messages for prompt in drawn], params, group=spec.group)


def _answered(
    config: PolicyConfig,
    drawn: Sequence[Prompt],
    groups: Sequence[tuple[Rollout, ...]],
    score: Score,
) -> _Step:
    """The step, of the prompts that the engine took; those that it refuses are drawn no more."""
    taken = [(prompt, group) for prompt, group in zip(drawn, groups, strict=True) if group]
    refused = [prompt.id for prompt, group in zip(drawn, groups, strict=True) if not group]
    made = _Step((), {}, {}, ())
    if taken:
        prompts, whole = [prompt for prompt, _ in taken], [group for _, group in taken]
        made = _rewarded(config, prompts, whole, score(prompts, whole))
    if not refused:
        return made
    skipped = {**made.skipped, WHY_REFUSED: len(refused)}
    return replace(made, skipped=skipped, dropped=(*made.dropped, *refused))


def _rewarded(
    config: PolicyConfig,
    drawn: Sequence[Prompt],
    groups: Sequence[tuple[Rollout, ...]],
    scored: Sequence[Scored],
) -> _Step:
    taught: list[_Taught] = []
    skipped: Counter[str] = Counter()
    for prompt, group, verdict in zip(drawn, groups, scored, strict=True):
        found = _taught(config, prompt, group, verdict)
        if isinstance(found, str):
            skipped[found] += 1
        else:
            taught += found
    facts = _facts(groups, scored) | {"trained": float(len(taught))}
    dropped = tuple(
        prompt.id for prompt, verdict in zip(drawn, scored, strict=True) if verdict.is_dropped
    )
    return _Step(tuple(taught), facts, dict(skipped), dropped)


def _taught(
    config: PolicyConfig, prompt: Prompt, group: tuple[Rollout, ...], scored: Scored
) -> list[_Taught] | str:
    """The group's rollouts with their advantages, or why it is skipped."""
    if scored.rewards is None:
        return scored.skipped or "not rewarded"
    flags = scored.trained or (True,) * len(group)
    marked = [
        (rollout, reward)
        for rollout, reward, is_trained in zip(group, scored.rewards, flags, strict=True)
        if is_trained
    ]
    kept = [(rollout, reward) for rollout, reward in marked if _is_usable(rollout, config)]
    rewards = [reward for _, reward in kept]
    if len(kept) < 2:
        return "under two rollouts" if len(marked) < 2 else "under two whole rollouts"
    if not is_informative(rewards):
        return ALL_EQUAL
    scale = grpo_advantages if config.gradient.scale == "group" else centred_advantages
    return [
        _Taught(prompt.id, rollout.prompt_ids, rollout.ids, rollout.logprobs, advantage)
        for (rollout, _), advantage in zip(kept, scale(rewards), strict=True)
    ]


def _is_usable(rollout: Rollout, config: PolicyConfig) -> bool:
    """Whether it can be trained on: something was said, it fits, and it was not cut off unduly."""
    if not rollout.ids or not rollout.prompt_ids or not all(map(math.isfinite, rollout.logprobs)):
        return False
    if len(rollout.prompt_ids) + len(rollout.ids) > config.training.max_tokens:
        return False
    return config.gradient.keeps_truncated or not rollout.is_truncated


def _facts(groups: Sequence[tuple[Rollout, ...]], scored: Sequence[Scored]) -> dict[str, float]:
    """A step in numbers; the entropy is that of a token, in nats, estimated by what was sampled."""
    rollouts = [rollout for group in groups for rollout in group]
    logprobs = [logprob for rollout in rollouts for logprob in rollout.logprobs]
    facts: dict[str, list[float]] = {
        "reward": [fmean(each.rewards) for each in scored if each.rewards],
        "entropy": [-logprob for logprob in logprobs],
        "length": [float(len(rollout.ids)) for rollout in rollouts],
        "truncated": [float(rollout.is_truncated) for rollout in rollouts],
    }
    for each in scored:
        for name, value in each.facts.items():
            facts.setdefault(name, []).append(value)
    return {name: round(fmean(values), _DIGITS) for name, values in facts.items() if values}


def _stage(config: PolicyConfig, taught: Sequence[_Taught], step: int, *, goes_on: bool) -> Stage:
    gradient = config.gradient
    takes_several = config.training.epochs > 1 or len(taught) > config.training.batch_size
    return Stage(
        lora=config.lora,
        training=config.training,
        seed=config.seed + step,
        units=tuple(_unit(config, one, takes_several=takes_several) for one in taught),
        losses=LossSpec(
            clip_low=gradient.clip_low,
            clip_high=gradient.clip_high,
            importance_cap=gradient.importance_cap,
            reference_kl="k3",
        ),
        goes_on=goes_on,
    )


def _unit(config: PolicyConfig, taught: _Taught, *, takes_several: bool) -> TrainingSample:
    count = len(taught.ids)
    weight, mass = _token_weight(config, count)
    weights = {Component.RL: (weight,) * count}
    if beta := config.gradient.reference_kl:
        weights[Component.REF_KL] = (beta * weight,) * count
    total = len(taught.prompt_ids) + count
    return TrainingSample(
        ids=taught.prompt_ids + taught.ids,
        is_trained=reply_mask(len(taught.prompt_ids), total),
        weights=weights,
        mass=mass,
        group=taught.prompt_id,
        advantages=(taught.advantage,) * count,
        sampler_logprobs=taught.logprobs,
        old_logprobs=taught.logprobs if takes_several else None,
    )


def _token_weight(config: PolicyConfig, count: int) -> TokenWeight:
    match config.gradient.loss:
        case "grpo":
            return grpo_weight(count)
        case "dr_grpo":
            return dr_grpo_weight(config.rollouts.max_new_tokens)
        case "dapo":
            return dapo_weight(count)
