"""SePT: the model imitates its own replies, sampled colder than it is trained.

Li, Zhao, So, Sun and Li, "SePT", arXiv 2510.18814. Each step one reply to each of a few prompts is
sampled at a temperature below 1 from the model as it is by then, and learnt by plain cross-entropy
at temperature 1, all of its tokens, right or wrong: no votes, no reward, no filter, no KL. The
fixed point multiplies every margin between two logits by one over the temperature: what the model
prefers it prefers more, and nothing else comes in. Ours differs:
- LoRA instead of all weights, so another learning rate; the paper's own code leaves LoRA open;
- the training's temperature is 1 and no setting: only the ratio of the two decides the fixed point;
- the annealing goes by the share of the steps done, not by epochs;
- a reply that says nothing is not learnt: without a reward, silence would feed on itself;
- now and then the policy is sampled at temperature 1, and the learning ends where its entropy has
  fallen, or its replies have grown, by more than the config allows.
Controls are configs: `refresh: offline`, and `rollouts.temperature: 1` (coupled, whose expected
gradient is zero). The third, the untouched model at a colder temperature, is a matter of the exam:
`adapters/evaluation/colder.py`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean

from pydantic import TypeAdapter

from adapters.lesson import Stage, Weights
from adapters.methods.continual import Beginning, begin
from adapters.methods.prompt_sets import draws, usable_prompts
from adapters.methods.workbench import Assignment, Outcome, Workbench
from adapters.sampling import WHY_REFUSED, RolloutSampler
from adapters.spec import AnnealSpec, SeptConfig
from adapters.types import (
    JSON,
    Component,
    Prompt,
    Rollout,
    SamplingParams,
    TrainingSample,
    reply_mask,
)

_ROLLOUTS = TypeAdapter(list[tuple[Rollout, ...]])
_OFFLINE_SEED = 0
_PROBE_SEED = 1
_FIRST_STEP_SEED = 2


@dataclass(frozen=True, slots=True)
class Look:
    """What the policy says at temperature 1: means over some rollouts."""

    entropy: float
    """Per token, in nats: minus the log-probability of what was sampled."""
    length: float
    """Tokens of a reply."""

    def to_json(self, step: int) -> dict[str, JSON]:
        """For the curve."""
        return {"step": step, "entropy": self.entropy, "length": self.length}


class Sept:
    """SePT for one config; holds no state between runs."""

    def __init__(self, config: SeptConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        config = self._config
        usable = usable_prompts(assignment, config)
        prompts = usable.prompts
        report: dict[str, JSON] = usable.report()
        if why := usable.why_too_few(config.min_prompts):
            return Outcome(None, {"no_update": why, "sept": report})
        beginning = begin(assignment, config)
        course = _Course(config, beginning, bench, prompts)
        weights = course.run()
        report |= course.report()
        said: dict[str, JSON] = {"sept": report, "continual": beginning.report(0)}
        if weights is None:
            why = f"No reply was learnt; {course.stopped}."
            return Outcome(None, {"no_update": why, **said})
        return Outcome(weights, said, beginning.generation)


class _Course:
    """One run through the steps."""

    def __init__(
        self,
        config: SeptConfig,
        beginning: Beginning,
        bench: Workbench,
        prompts: Sequence[Prompt],
    ) -> None:
        self._config = config
        self._beginning = beginning
        self._bench = bench
        self._prompts = prompts
        self._weights: Weights | None = None
        self._curve: list[JSON] = []
        self._looks: list[tuple[int, Look]] = []
        self._not_learnt: Counter[str] = Counter()
        self._refused: set[str] = set()
        """Ids of prompts that the engine does not take."""
        self._truncated = 0
        self._learnt = 0
        self.stopped = ""

    def run(self) -> Weights | None:
        """The weights of the last step that taught anything; None if none did."""
        spec = self._config.rollouts
        every = self._config.probe.every
        for step, numbers in enumerate(
            draws(len(self._prompts), spec.prompts_per_step, spec.steps, self._config.seed)
        ):
            if step % every == 0 and (reason := self._look(step)):
                self.stopped = reason
                break
            if not self._bench.has_budget():
                self.stopped = "the budget is used up"
                break
            self._take(step, numbers)
        else:
            self.stopped = self._look(spec.steps) or "all steps are done"
        return self._weights

    def report(self) -> dict[str, JSON]:
        """What was sampled, learnt and seen."""
        return {
            "refresh": self._config.refresh,
            "learnt": self._learnt,
            "learnt_though_cut_off": self._truncated,
            "not_learnt": dict(self._not_learnt + Counter({WHY_REFUSED: len(self._refused)})),
            "steps": self._curve,
            "looks": [look.to_json(step) for step, look in self._looks],
            "stopped": self.stopped,
        }

    def _take(self, step: int, numbers: Sequence[int]) -> None:
        temperature = self._temperature(step)
        with self._bench.stage("rollouts"):
            found = self._sample(step, numbers, temperature)
        units = self._units([self._prompts[number] for number in numbers], found)
        rollouts = [rollout for group in found for rollout in group]
        if not rollouts:
            return
        point: dict[str, JSON] = {
            "step": step,
            "temperature": round(temperature, 4),
            "learnt": len(units),
            "surprise": _surprise(rollouts),
            "length": round(fmean(len(each.ids) for each in rollouts), 2),
        }
        self._curve.append(point)
        if not units:
            return
        stage = Stage(
            lora=self._config.lora,
            training=self._config.training,
            seed=self._config.seed + step,
            units=tuple(units),
            goes_on=self._weights is not None,
        )
        start = self._weights or self._beginning.start
        with self._bench.stage("training"):
            self._weights = self._bench.train(stage, start=start)
        self._learnt += len(units)

    def _sample(
        self, step: int, numbers: Sequence[int], temperature: float
    ) -> list[tuple[Rollout, ...]]:
        """The rollouts of one step, one group for each of its prompts."""
        group = self._config.rollouts.group
        if self._config.refresh == "offline":
            params = self._params(temperature, _OFFLINE_SEED)
            frozen = self._ask("offline", self._prompts, params, group)
            return [frozen[number] for number in numbers]
        asked = [self._prompts[number] for number in numbers]
        params = self._params(temperature, _FIRST_STEP_SEED + step)
        return self._ask(f"step-{step}", asked, params, group)

    def _params(self, temperature: float, seed: int) -> SamplingParams:
        spec = self._config.rollouts
        return SamplingParams(
            max_tokens=spec.max_new_tokens,
            temperature=temperature,
            top_p=spec.top_p,
            seed=self._config.seed * 100_000 + seed,
        )

    def _ask(
        self, name: str, prompts: Sequence[Prompt], params: SamplingParams, group: int
    ) -> list[tuple[Rollout, ...]]:
        def ask() -> JSON:
            with self._policy() as policy:
                found = policy.rollouts(
                    [prompt.messages for prompt in prompts],
                    params,
                    group=group,
                    on_progress=self._bench.progress,
                )
            rows: JSON = _ROLLOUTS.dump_python(found, mode="json")
            return rows

        kept = self._bench.once(self._beginning.name(f"sept-{name}"), ask)
        return _ROLLOUTS.validate_python(kept)

    @contextmanager
    def _policy(self) -> Iterator[RolloutSampler]:
        """The model as the step before has left it."""
        if self._weights is None:
            yield self._beginning.student(self._bench)
            return
        with self._bench.serving([self._weights]) as (policy,):
            yield policy

    def _units(
        self, prompts: Sequence[Prompt], found: Sequence[tuple[Rollout, ...]]
    ) -> list[TrainingSample]:
        units: list[TrainingSample] = []
        most = self._config.training.max_tokens
        for prompt, group in zip(prompts, found, strict=True):
            if not group:
                self._refused.add(prompt.id)
            for rollout in group:
                if not rollout.text.strip():
                    self._not_learnt["the reply is empty"] += 1
                elif len(rollout.prompt_ids) + len(rollout.ids) > most:
                    self._not_learnt["longer than training.max_tokens"] += 1
                else:
                    self._truncated += rollout.is_truncated
                    shared = prompt.id if len(group) > 1 else None
                    units.append(imitation(rollout, group=shared))
        return units

    def _look(self, step: int) -> str | None:
        """Sample at temperature 1; why the learning is to stop, if it is."""
        spec = self._config.probe
        asked = self._prompts[: spec.prompts]
        with self._bench.stage("probe"):
            params = replace(self._params(1.0, _PROBE_SEED), top_p=1.0)
            found = self._ask(f"probe-{step}", asked, params, 1)
        if not any(found):  # the engine refuses these prompts, and nothing can be seen
            return None
        rollouts = [one for group in found for one in group if one.text.strip()]
        if not rollouts:
            return "the policy says nothing any more"
        look = Look(_surprise(rollouts), round(fmean(len(each.ids) for each in rollouts), 2))
        self._looks.append((step, look))
        _, first = self._looks[0]
        if look.entropy < spec.least_entropy * first.entropy:
            return f"the entropy fell from {first.entropy} to {look.entropy}"
        if look.length > spec.most_length * first.length:
            return f"the replies grew from {first.length} to {look.length} tokens"
        return None

    def _temperature(self, step: int) -> float:
        spec = self._config.rollouts
        if self._config.refresh == "offline":
            return spec.temperature
        return annealed(spec.temperature, step / spec.steps, self._config.anneal)


def annealed(start: float, progress: float, spec: AnnealSpec) -> float:
    """Temperature of the rollouts when `progress`, in [0, 1), of the steps is done.

    The paper's: with three epochs and `spec.share` 2/3 it is start + u / 2 * (1 - start) for u
    epochs done, and 1 in the third.
    """
    if not spec.is_on:
        return start
    if progress >= spec.share:
        return 1.0
    return start + progress / spec.share * (1.0 - start)


def imitation(rollout: Rollout, *, group: str | None = None) -> TrainingSample:
    """A rollout to be said again, token for token as the engine sampled it; a mean over tokens."""
    count = len(rollout.ids)
    ids = rollout.prompt_ids + rollout.ids
    return TrainingSample(
        ids,
        reply_mask(len(rollout.prompt_ids), len(ids)),
        weights={Component.CE: (1.0,) * count},
        mass=float(count),
        group=group,
    )


def _surprise(rollouts: Sequence[Rollout]) -> float:
    """Mean of minus the log-probability, at temperature 1, of the tokens; in nats."""
    logprobs = [logprob for rollout in rollouts for logprob in rollout.logprobs]
    return round(-math.fsum(logprobs) / len(logprobs), 6) if logprobs else 0.0
