"""Learning from corrections: who sees the user's correction teaches who does not.

Shenfeld et al., "Self-Distillation Enables Continual Learning" (SDFT), arXiv 2601.19897, with a
user's correction for the demonstration. One model in two roles: the student is asked what the user
had asked, the teacher is shown the correction before that, and along a reply the student learns
the teacher's next-token distribution. Ours differs:
- the teacher is the base with its adapter off, or the champion where the training begins there,
  and never moves; its top-k tokens and a rest are kept;
- the first round goes along the correction itself: replies of a model that does not know better
  hardly ever come to where it would be said. Later rounds add the student's own replies;
- the correction is learnt as it stands, too (`text_weight`): a small model is a poor reader, and
  what it makes of a correction that it is shown is often not what was written there;
- nothing is taught that two users contradict each other on, nor what speaks to the learner.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from adapters.corpus.instructions import find_suspects
from adapters.lesson import Stage, Weights
from adapters.methods.continual import Beginning, begin
from adapters.methods.lengths import prompt_lengths
from adapters.methods.prompt_sets import ORDERS, REPEATED, fault_of, key_of, plain, shared_out
from adapters.methods.teaching import corrected_prompt
from adapters.methods.workbench import Assignment, Outcome, Workbench
from adapters.sampling import WHY_REFUSED, RolloutSampler
from adapters.spec import CorrectionsConfig, LossSpec
from adapters.types import (
    JSON,
    Distillation,
    GivenReply,
    Opinion,
    Prompt,
    Rollout,
    SamplingParams,
)

_ROLLOUTS = TypeAdapter(list[tuple[Rollout, ...]])


@dataclass(frozen=True, slots=True)
class Corrected:
    """A prompt, and what a user would have had answered."""

    prompt: Prompt
    correction: str

    @property
    def added_tokens(self) -> int:
        """Most tokens by which the teacher's prompt can be longer: no token is less than a byte."""
        (*_, alone), (*_, shown) = (
            self.prompt.messages,
            corrected_prompt(self.prompt.messages, self.correction),
        )
        return len(shown["content"].encode()) - len(alone["content"].encode())

    def teach(self, reply: str, ids: tuple[int, ...] = ()) -> Distillation:
        """A reply of the student's, to be set right by who sees the correction."""
        messages = self.prompt.messages
        return Distillation(
            messages, corrected_prompt(messages, self.correction), reply, reply_ids=ids
        )


class Corrections:
    """Learning from corrections for one config; holds no state between runs."""

    def __init__(self, config: CorrectionsConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        config = self._config
        left_out: Counter[str] = Counter()
        with bench.stage("prompts"):
            taught = self._usable(assignment, bench, left_out)
        report: dict[str, JSON] = {"corrections": len(taught), "left_out": dict(+left_out)}
        if len(taught) < config.min_prompts:
            why = (
                f"{len(taught)} of {len(assignment.opinions)} opinions have a correction that can "
                f"be learnt, and {config.min_prompts} are needed; collect more, or lower "
                "min_prompts."
            )
            return Outcome(None, {"no_update": why, "corrections": report})
        beginning = begin(assignment, config)
        weights: Weights | None = None
        rounds: list[JSON] = []
        for number in range(config.corrections.rounds):
            if not bench.has_budget():
                report["stopped"] = "the budget is used up"
                break
            said: list[Distillation] = []
            counts: Counter[str] = Counter()
            if weights is not None:
                with bench.stage("replies"):
                    said = self._students(taught, number, weights, beginning, bench, counts)
            rounds.append({"set_right": len(said), **counts})
            with bench.stage("training"):
                weights = bench.train(
                    self._stage(taught, said, number, goes_on=weights is not None),
                    start=weights or beginning.start,
                    teacher=beginning.start,
                )
        report["rounds"] = rounds
        outcome: dict[str, JSON] = {"corrections": report, "continual": beginning.report(0)}
        if weights is None:
            return Outcome(None, {"no_update": "The budget was used up at the start.", **outcome})
        return Outcome(weights, outcome, beginning.generation)

    def _usable(
        self, assignment: Assignment, bench: Workbench, left_out: Counter[str]
    ) -> list[Corrected]:
        exam = frozenset(map(plain, assignment.held_out))
        sound: list[Opinion] = []
        for opinion in assignment.opinions:
            if fault := correction_fault(opinion, exam):
                left_out[fault] += 1
            else:
                sound.append(opinion)
        agreed = [
            Corrected(one.prompt, (one.correction or "").strip())
            for one in undisputed(sound, left_out)
        ]
        lengths = prompt_lengths(
            [one.prompt.messages for one in agreed], bench, name="corrections-lengths"
        )
        most = self._config.training.max_tokens
        sized = [(one, length) for one, length in zip(agreed, lengths, strict=True) if length]
        fitting = [one for one, length in sized if length + one.added_tokens < most]
        left_out[WHY_REFUSED] += len(agreed) - len(sized)
        left_out["longer than training.max_tokens"] += len(sized) - len(fitting)
        return shared_out(
            fitting,
            lambda one: one.prompt.asked_by,
            share=self._config.prompts_per_user,
            seed=self._config.seed,
            left_out=left_out,
        )

    def _students(
        self,
        taught: Sequence[Corrected],
        number: int,
        weights: Weights,
        beginning: Beginning,
        bench: Workbench,
        counts: Counter[str],
    ) -> list[Distillation]:
        """The student's own replies, right or wrong: the teacher sets them right token by token."""

        def ask() -> JSON:
            with bench.serving([weights]) as (student,):
                found = self._ask(student, taught, number, bench)
            rows: JSON = _ROLLOUTS.dump_python(found, mode="json")
            return rows

        kept = bench.once(beginning.name(f"corrections-{number}"), ask)
        said: list[Distillation] = []
        for one, group in zip(taught, _ROLLOUTS.validate_python(kept), strict=True):
            for rollout in group:
                if rollout.text.strip():
                    said.append(one.teach(rollout.text, rollout.ids))
                else:
                    counts["the student said nothing"] += 1
            if not group:  # there is no room for the reply
                counts[WHY_REFUSED] += 1
        return said

    def _ask(
        self, student: RolloutSampler, taught: Sequence[Corrected], number: int, bench: Workbench
    ) -> list[tuple[Rollout, ...]]:
        spec = self._config.corrections
        return student.rollouts(
            [one.prompt.messages for one in taught],
            SamplingParams(
                max_tokens=spec.max_new_tokens,
                temperature=spec.temperature,
                seed=self._config.seed + number,
            ),
            on_progress=bench.progress,
        )

    def _stage(
        self,
        taught: Sequence[Corrected],
        said: Sequence[Distillation],
        number: int,
        *,
        goes_on: bool,
    ) -> Stage:
        config, spec = self._config, self._config.corrections
        replies = tuple(
            GivenReply(one.prompt.messages, one.correction, weight=spec.text_weight)
            for one in taught
            if spec.text_weight
        )
        return Stage(
            lora=config.lora,
            training=config.training,
            seed=config.seed + number,
            distillations=(*(one.teach(one.correction) for one in taught), *said),
            replies=replies,
            losses=LossSpec(distill_beta=spec.beta, distill_top_k=spec.top_k),
            goes_on=goes_on,
        )


def correction_fault(opinion: Opinion, exam: frozenset[str]) -> str | None:
    """Why nothing is learnt from a correction; `exam` are the held-out prompts as `plain` has them."""
    correction = opinion.correction
    if correction is None:
        return "no correction given"
    if not correction.strip():
        return "the correction is empty"
    if plain(correction) == plain(opinion.reply):
        return "the correction is the reply"
    if find_suspects(correction):
        return ORDERS
    return fault_of(opinion.prompt, exam)


def undisputed(opinions: Sequence[Opinion], left_out: Counter[str]) -> list[Opinion]:
    """One opinion for each prompt that all who corrected it agree on, in their order.

    A user's later correction of the same prompt stands for the earlier one.
    """
    by_prompt: dict[str, dict[str | None, Opinion]] = {}
    for opinion in opinions:
        of_users = by_prompt.setdefault(key_of(opinion.prompt.messages), {})
        if (user := opinion.prompt.asked_by) in of_users:
            earlier = of_users.pop(user)
            is_same = plain(earlier.correction or "") == plain(opinion.correction or "")
            left_out[REPEATED if is_same else "corrected again later"] += 1
        of_users[user] = opinion
    kept: list[Opinion] = []
    for of_users in by_prompt.values():
        said = {plain(opinion.correction or "") for opinion in of_users.values()}
        if len(said) > 1:
            left_out["users contradict each other"] += len(of_users)
            continue
        first, *others = of_users.values()
        kept.append(first)
        left_out[REPEATED] += len(others)
    return kept
