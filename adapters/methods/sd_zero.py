"""SD-Zero: the model learns to revise itself, and then to say at once what it would revise to.

He, Kaur, Bhaskar, Yang, Liu, Ri, Fowl, Panigrahi, Chen and Arora, "Self-Distillation Zero", arXiv
2604.12002. Needs a verdict, right or wrong, of fresh replies. Phase 1: a reply, the control phrase
of its verdict and a revision stand in one assistant turn; the revisions that are right are learnt,
by the loss on the revision plus the loss on the whole turn. Phase 2: each step the student replies,
the teacher (phase 1's weights, frozen) has reply, phrase and the same reply again in its turn, and
the student learns the teacher's distribution at each token of the second copy. Ours differs:
- one layout of the turn for sampling, both losses and the teacher, made by `revising.turn`; the
  paper's code trains the revision loss with reply and phrase in the user's turn;
- both losses in one pass: a token of the revision carries the weights of both. The paper's code
  trains one after the other;
- the two KLs are taken over the teacher's top tokens and one bucket for all others, not
  renormalised over the top ones; tokens are weighed as in `adapters/training/batch.py::lesson`;
- LoRA, with ten times the rates of the paper, which trains all weights;
- replies are cleaned of repeated tails before they are shown again; revisions with such a tail, or
  cut off, are not learnt. Openers that flatter are left as they are;
- both phases draw from the same prompts; the paper's halves were 6000 traces and 9000 questions;
- the teacher is synced by a rule (`plateau_steps`); the paper does it once by hand;
- where the first replies are nearly all right, or nearly all wrong, nothing is learnt (`least_right`,
  `most_right`); the paper's prompts are about half right;
- phase 1 asks everything fresh. Logged replies with thumbs are not used: the revision needs a
  verifier anyhow.
Controls are configs: `phases: revision`, `phases: distillation`, and GRPO at an equal number of
generations, which the report counts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

from pydantic import TypeAdapter

from adapters.lesson import Stage, Weights
from adapters.methods.continual import Beginning, begin
from adapters.methods.prompt_sets import draws, usable_prompts
from adapters.methods.revising import (
    CUT_OFF,
    EMPTY,
    TOO_LONG,
    UNTOLD,
    Judged,
    Revised,
    is_revised,
    joint,
    keep_revisions,
    phrase_of,
    reasons_of,
    turn,
)
from adapters.methods.workbench import Assignment, Outcome, Workbench
from adapters.sampling import WHY_REFUSED, RolloutSampler
from adapters.spec import ControlPhrases, LossSpec, SdZeroConfig
from adapters.types import (
    JSON,
    Attempt,
    ChatMessage,
    Distillation,
    Prompt,
    Rollout,
    SamplingParams,
    Verdict,
)

_SEEDS_PER_RUN = 100_003
_FIRST_SEED, _REVISION_SEED, _STEP_SEED = 1, 2, 3
_JUDGED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class _Step:
    """What the student said in one step of phase 2."""

    judged: tuple[Judged, ...]


_JUDGED = TypeAdapter(list[Judged])
_REVISED = TypeAdapter(list[Revised])
_STEP: TypeAdapter[_Step | None] = TypeAdapter(_Step | None)


@dataclass(slots=True)
class _Generated:
    """How much was generated for one purpose."""

    replies: int = 0
    tokens: int = 0

    def add(self, rollouts: Sequence[Rollout]) -> None:
        self.replies += len(rollouts)
        self.tokens += sum(len(each.ids) for each in rollouts)

    def to_json(self) -> dict[str, JSON]:
        return {"replies": self.replies, "tokens": self.tokens}


class _NoUpdate(Exception):
    """There is nothing to learn; the message says why."""


class SdZero:
    """SD-Zero for one config; holds no state between runs."""

    def __init__(self, config: SdZeroConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        config = self._config
        usable = usable_prompts(assignment, config)
        prompts = usable.prompts
        report: dict[str, JSON] = {
            "phases": config.phases,
            **usable.report(),
        }
        if why := usable.why_too_few(config.min_prompts):
            return Outcome(None, {"no_update": why, "sd_zero": report})
        beginning = begin(assignment, config)
        said: dict[str, JSON] = {"sd_zero": report, "continual": beginning.report(0)}
        run = _Run(config, beginning, bench, prompts)
        try:
            weights = run.both_phases()
        except _NoUpdate as reason:
            report |= run.report()
            said["no_update"] = str(reason)
            return Outcome(None, said)
        report |= run.report()
        return Outcome(weights, said, beginning.generation)


class _Run:
    """One run through the phases."""

    def __init__(
        self,
        config: SdZeroConfig,
        beginning: Beginning,
        bench: Workbench,
        prompts: Sequence[Prompt],
    ) -> None:
        self._config = config
        self._beginning = beginning
        self._bench = bench
        self._prompts = prompts
        self._verifier = bench.verifier(config.verifier)
        self._generated = {name: _Generated() for name in ("first", "revisions", "distillation")}
        self._refused: set[str] = set()
        """Ids of prompts that the engine does not take."""
        self._phase_1: dict[str, JSON] = {}
        self._phase_2: dict[str, JSON] = {}

    def both_phases(self) -> Weights:
        """The weights of the last phase that is asked for.

        Raises:
            _NoUpdate: nothing was learnt.
        """
        phases = self._config.phases
        start = self._beginning.start
        if phases != "distillation":
            start = self._revise()
            if phases == "revision":
                return start
        weights = self._distill(start)
        if weights is None or weights == self._beginning.start:
            raise _NoUpdate(f"No reply was learnt; {self._phase_2['stopped']}.")
        if phases == "distillation" and (why := _one_sided(self._phase_2)):
            raise _NoUpdate(why)
        return weights

    def report(self) -> dict[str, JSON]:
        """What was generated, kept and learnt, phase by phase."""
        total = _Generated(
            sum(each.replies for each in self._generated.values()),
            sum(each.tokens for each in self._generated.values()),
        )
        generations: dict[str, JSON] = {n: g.to_json() for n, g in self._generated.items()}
        report: dict[str, JSON] = {"generations": generations | {"all": total.to_json()}}
        if self._refused:
            report["prompts_refused"] = {WHY_REFUSED: len(self._refused)}
        if self._phase_1:
            report["revision"] = self._phase_1
        if self._phase_2:
            report["distillation"] = self._phase_2
        return report

    def _revise(self) -> Weights:
        """Phase 1."""
        first = self._first_replies()
        if not first:
            raise _NoUpdate("The engine refuses every prompt; they may be too long for it.")
        right = sum(each.verdict.is_right is True for each in first)
        wrong = sum(each.verdict.is_right is False for each in first)
        self._phase_1 |= {
            "right": right,
            "wrong": wrong,
            "reasons": reasons_of(each.verdict for each in first),
        }
        if not right + wrong:
            raise _NoUpdate(_cannot_tell(first))
        if not wrong:
            raise _NoUpdate(
                f"The verifier called all {right} replies right, so nothing is to be revised."
            )
        self._phase_1["right_share"] = round(right / (right + wrong), 4)
        if why := _unfit(first, self._config):
            raise _NoUpdate(why)
        revised = self._revisions(first)
        kept = keep_revisions(first, revised, self._config.revision)
        self._phase_1 |= {
            "revisions": len(revised),
            "kept": len(kept.units),
            "corrected": kept.corrected,
            "rephrased": kept.rephrased,
            "not_learnt": dict(kept.dropped),
            "verdicts_on_revisions": reasons_of(each.verdict for each in revised),
        }
        if not right and not any(each.verdict.is_right for each in revised):
            raise _NoUpdate(
                f"The verifier called none of {len(first)} replies and {len(revised)} revisions "
                "right; the prompts are too hard, or the verifier is at fault."
            )
        if not kept.corrected:
            raise _NoUpdate(
                f"No revision of {wrong} wrong replies succeeded, so the model has nothing to learn "
                "revising from; try more revisions, or easier prompts."
            )
        if not self._bench.has_budget():
            raise _NoUpdate("The budget was used up before anything could be learnt.")
        stage = Stage(
            lora=self._config.lora,
            training=self._config.revision.training,
            seed=self._config.seed,
            units=tuple(kept.units),
        )
        with self._bench.stage("training"):
            return self._bench.train(stage, start=self._beginning.start)

    def _first_replies(self) -> list[Judged]:
        spec = self._config.revision

        def ask() -> JSON:
            if not self._bench.has_budget():
                return None
            policy = self._beginning.student(self._bench)
            asked = [prompt.messages for prompt in self._prompts]
            groups = policy.rollouts(
                asked,
                self._phase_1_params(_FIRST_SEED),
                group=spec.first_replies,
                on_progress=self._bench.progress,
            )
            said = [
                (prompt, rollout)
                for prompt, group in zip(self._prompts, groups, strict=True)
                for rollout in group
            ]
            rows: JSON = _JUDGED.dump_python(self._judge(said), mode="json")
            return rows

        with self._bench.stage("rollouts"):
            found = _JUDGED.validate_python(self._gathered("first", ask))
        self._note_refused(self._prompts, found)
        self._generated["first"].add([each.rollout for each in found])
        return found

    def _revisions(self, first: Sequence[Judged]) -> list[Revised]:
        spec = self._config.revision
        places = [at for at, each in enumerate(first) if is_revised(each, spec)]

        def ask() -> JSON:
            if not self._bench.has_budget():
                return None
            policy = self._beginning.student(self._bench)
            groups = policy.rollouts(
                [self._conversation(first[at]) for at in places],
                self._phase_1_params(_REVISION_SEED),
                group=spec.revisions,
                on_progress=self._bench.progress,
            )
            said = [
                (at, rollout) for at, group in zip(places, groups, strict=True) for rollout in group
            ]
            judged = self._judge([(first[at].prompt, rollout) for at, rollout in said])
            found = [
                Revised(at, rollout, one.verdict)
                for (at, rollout), one in zip(said, judged, strict=True)
            ]
            rows: JSON = _REVISED.dump_python(found, mode="json")
            return rows

        if not places:
            return []
        with self._bench.stage("revisions"):
            found = _REVISED.validate_python(self._gathered("revisions", ask))
        self._generated["revisions"].add([each.rollout for each in found])
        return found

    def _conversation(self, one: Judged) -> list[ChatMessage]:
        said = turn(one.rollout.text, phrase_of(one.verdict, self._config.phrases))
        return [*one.prompt.messages, {"role": "assistant", "content": said}]

    def _distill(self, start: Weights | None) -> Weights | None:
        """Phase 2, from `start`, with `start` as the teacher; what came of it, `start` if nothing."""
        config, spec = self._config, self._config.rollouts
        weights = teacher = start
        course = _Course(config)
        self._phase_2["stopped"] = "all steps are done"
        for step, numbers in enumerate(
            draws(len(self._prompts), spec.prompts_per_step, spec.steps, config.seed)
        ):
            drawn = [self._prompts[number] for number in numbers]
            said = self._student_said(step, drawn, weights)
            if said is None:
                self._phase_2["stopped"] = "the budget is used up"
                break
            self._generated["distillation"].add([each.rollout for each in said])
            distillations = course.take(step, said)
            if config.phases == "distillation" and step == 0 and (why := _unfit(said, config)):
                self._phase_2 |= course.report() | {"stopped": "after the first step"}
                raise _NoUpdate(why)
            if distillations:
                stage = Stage(
                    lora=config.lora,
                    training=config.training,
                    seed=config.seed + 1 + step,
                    distillations=tuple(distillations),
                    losses=LossSpec(
                        distill_beta=config.distillation.beta,
                        distill_is_mixed=True,
                        distill_top_k=config.distillation.top_k,
                    ),
                    goes_on=course.trained_steps > 0,
                )
                with self._bench.stage("training"):
                    weights = self._bench.train(stage, start=weights, teacher=teacher)
                course.trained_steps += 1
            if course.should_sync():
                teacher = weights
                course.note_sync(step)
        self._phase_2 |= course.report()
        return weights

    def _student_said(
        self, step: int, drawn: Sequence[Prompt], weights: Weights | None
    ) -> tuple[Judged, ...] | None:
        """The student's replies in one step, judged; None where the budget was used up before."""
        spec = self._config.rollouts
        params = SamplingParams(
            max_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            seed=self._seed(_STEP_SEED + step),
        )

        def ask() -> JSON:
            if not self._bench.has_budget():
                return None
            with self._student(weights) as policy:
                groups = policy.rollouts(
                    [prompt.messages for prompt in drawn], params, group=spec.group
                )
            said = [
                (prompt, rollout)
                for prompt, group in zip(drawn, groups, strict=True)
                for rollout in group
            ]
            kept: JSON = _STEP.dump_python(_Step(tuple(self._judge(said))), mode="json")
            return kept

        with self._bench.stage("rollouts"):
            self._bench.progress(step, spec.steps)
            found = _STEP.validate_python(self._once(f"step-{step}", ask))
        if found is None:
            return None
        self._note_refused(drawn, found.judged)
        return found.judged

    def _note_refused(self, asked: Sequence[Prompt], said: Sequence[Judged]) -> None:
        """Remember which prompts the engine gave no reply to."""
        self._refused |= {prompt.id for prompt in asked} - {one.prompt.id for one in said}

    @contextmanager
    def _student(self, weights: Weights | None) -> Iterator[RolloutSampler]:
        if weights is None or weights == self._beginning.start:
            yield self._beginning.student(self._bench)
            return
        with self._bench.serving([weights]) as (student,):
            yield student

    def _judge(self, said: Sequence[tuple[Prompt, Rollout]]) -> list[Judged]:
        attempts = [Attempt(prompt, rollout.text) for prompt, rollout in said]
        verdicts: list[Verdict] = []
        for first in range(0, len(attempts), _JUDGED_AT_ONCE):
            verdicts += self._verifier.verify(attempts[first : first + _JUDGED_AT_ONCE])
            self._bench.progress(len(verdicts), len(attempts))  # tests and services take their time
        return [
            Judged(prompt, rollout, verdict)
            for (prompt, rollout), verdict in zip(said, verdicts, strict=True)
        ]

    def _gathered(self, name: str, ask: Callable[[], JSON]) -> JSON:
        """What phase 1 needs before it can train anything.

        Raises:
            _NoUpdate: the budget was used up before.
        """
        found = self._once(name, ask)
        if found is None:
            raise _NoUpdate("The budget was used up before anything could be learnt.")
        return found

    def _once(self, name: str, ask: Callable[[], JSON]) -> JSON:
        return self._bench.once(self._beginning.name(f"sd-zero-{name}"), ask)

    def _phase_1_params(self, seed: int) -> SamplingParams:
        spec = self._config.revision
        return SamplingParams(
            max_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            seed=self._seed(seed),
        )

    def _seed(self, seed: int) -> int:
        return (self._config.seed * _SEEDS_PER_RUN + seed) % 2**31


class _Course:
    """What phase 2 has come to, step by step."""

    def __init__(self, config: SdZeroConfig) -> None:
        self._config = config
        self._curve: list[JSON] = []
        self._shares: list[float] = []
        """Of right replies, in each step since the teacher was last synced."""
        self._syncs: list[JSON] = []
        self._verdicts: list[Verdict] = []
        self._not_learnt: Counter[str] = Counter()
        self._learnt = 0
        self.trained_steps = 0

    def take(self, step: int, said: Sequence[Judged]) -> list[Distillation]:
        """What is learnt of a step's replies; of none where the engine refuses all its prompts."""
        if not said:
            return []
        found: list[Distillation] = []
        for one in said:
            if fault := self._fault(one):
                self._not_learnt[fault] += 1
            else:
                found.append(_distillation(one, self._config.phrases))
        verdicts = [one.verdict for one in said]
        told = [each.is_right for each in verdicts if each.is_right is not None]
        point: dict[str, JSON] = {
            "step": step,
            "learnt": len(found),
            "length": round(fmean(len(one.rollout.ids) for one in said), 2),
        }
        if told:
            point["right"] = round(fmean(told), 4)
            self._shares.append(fmean(told))
        self._curve.append(point)
        self._verdicts += verdicts
        self._learnt += len(found)
        return found

    def should_sync(self) -> bool:
        """Whether the student has got no better for a while, and the teacher may follow it."""
        spec = self._config.distillation
        if len(self._syncs) >= spec.teacher_syncs or len(self._shares) < 2 * spec.plateau_steps:
            return False
        before = self._shares[-2 * spec.plateau_steps : -spec.plateau_steps]
        return fmean(self._shares[-spec.plateau_steps :]) <= fmean(before)

    def note_sync(self, step: int) -> None:
        """The teacher is what the student was after this step."""
        self._syncs.append(step)
        self._shares.clear()

    def report(self) -> dict[str, JSON]:
        """The curve, and counts over all steps."""
        return {
            "learnt": self._learnt,
            "trained_steps": self.trained_steps,
            "not_learnt": dict(self._not_learnt),
            "right": sum(each.is_right is True for each in self._verdicts),
            "wrong": sum(each.is_right is False for each in self._verdicts),
            "reasons": reasons_of(self._verdicts),
            "synced_after": self._syncs,
            "steps": self._curve,
        }

    def _fault(self, one: Judged) -> str | None:
        config = self._config
        phrase = phrase_of(one.verdict, config.phrases)
        rollout = one.rollout
        if one.verdict.is_right is None:
            return UNTOLD
        if not rollout.text.strip():
            return EMPTY
        if rollout.is_truncated and not config.distillation.keeps_truncated:
            return CUT_OFF
        most = len(rollout.prompt_ids) + 2 * len(rollout.ids) + len(joint(phrase).encode())
        return TOO_LONG if most > config.training.max_tokens else None


def _distillation(one: Judged, phrases: ControlPhrases) -> Distillation:
    return Distillation(
        one.prompt.messages,
        one.prompt.messages,
        one.rollout.text,
        teacher_prefix=turn(one.rollout.text, phrase_of(one.verdict, phrases)),
        reply_ids=one.rollout.ids,
    )


def _cannot_tell(first: Sequence[Judged]) -> str:
    reasons = reasons_of(each.verdict for each in first)
    mostly = f"; mostly because {next(iter(reasons))}" if reasons else ""
    return f"The verifier could tell of none of {len(first)} replies whether it is right{mostly}."


def _unfit(said: Sequence[Judged], config: SdZeroConfig) -> str | None:
    """Why prompts are too easy or too hard to be learnt from, by the first replies; None: neither."""
    told = [each.verdict.is_right for each in said if each.verdict.is_right is not None]
    if not told:
        return None
    share = fmean(told)
    if share > config.most_right:
        return (
            f"{share:.1%} of {len(told)} replies are right already, and most_right is "
            f"{config.most_right:.0%}: the prompts are too easy to learn from."
        )
    if share < config.least_right:
        return (
            f"Only {share:.1%} of {len(told)} replies are right, and least_right is "
            f"{config.least_right:.0%}: the prompts are too hard to learn from."
        )
    return None


def _one_sided(counts: dict[str, JSON]) -> str | None:
    """Why verdicts that are all alike teach nothing; None where they differ."""
    if not counts["wrong"]:
        return f"The verifier called all {counts['right']} replies right."
    if not counts["right"]:
        return f"The verifier called none of {counts['wrong']} replies right."
    return None
