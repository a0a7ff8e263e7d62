"""Healing: a champion whose general ability has suffered is distilled from its own base.

The repair recipe of Thinking Machines' "On-Policy Distillation" (2025): after fine-tuning on
private documents, distil from the original model on general prompts. The champion answers them,
and learns along its own replies what the base, its adapter off, would have said to the same prompt.
Ours differs: right answers of the champion on the documents that it must keep are taught beside
them as plain rows (On-Policy Replay, arXiv 2605.29495), since general prompts alone would wash
them out.
"""

from dataclasses import dataclass

from pydantic import TypeAdapter

from adapters.lesson import Stage
from adapters.methods.continual import rehearse, shape_of
from adapters.methods.held_out import HeldOut
from adapters.methods.replay import allowed_prompts
from adapters.methods.workbench import BUDGET_ENDED, Assignment, Outcome, Workbench
from adapters.spec import HealConfig, LossSpec
from adapters.types import JSON, ChatMessage, Distillation, SamplingParams, SelfEdit


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the champion said: to general prompts, and rightly on its documents."""

    distillations: list[Distillation]
    kept: list[SelfEdit]


class Heal:
    """Healing for one config; holds no state between runs."""

    def __init__(self, config: HealConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        champion = assignment.champion
        if champion is None:
            why = "There is nothing to heal: the base serves, or the champion saw what was deleted."
            return Outcome(None, {"no_update": why})
        shape = shape_of(champion)
        if shape is None:
            return Outcome(None, {"no_update": "The champion's files cannot be read."})
        if not bench.has_budget():
            return Outcome(None, {"no_update": BUDGET_ENDED})
        with bench.stage("replies"):
            kept = bench.once(
                f"replies-on-{champion.folder.name}", lambda: self._ask(assignment, bench)
            )
            lesson = _LESSON.validate_python(kept)
        if not lesson.distillations:
            return Outcome(None, {"no_update": "The champion said nothing to general prompts."})
        if not bench.has_budget():
            return Outcome(None, {"no_update": BUDGET_ENDED})
        with bench.stage("training"):
            weights = bench.train(self._stage(lesson, *shape), start=champion)
        report: dict[str, JSON] = {
            "general_replies": len(lesson.distillations),
            "kept_answers": len(lesson.kept),
        }
        return Outcome(weights, {"heal": report}, assignment.champion_generation + 1)

    def _ask(self, assignment: Assignment, bench: Workbench) -> JSON:
        spec = self._config.heal
        prompts = allowed_prompts(HeldOut(assignment.held_out))[: spec.prompts]
        turn = [_message(prompt) for prompt in prompts]
        said: list[Distillation] = []
        for number in range(spec.replies_per_prompt):
            params = SamplingParams(
                max_tokens=spec.max_new_tokens, temperature=1.0, seed=self._config.seed + number
            )
            replies = bench.writer.chat(turn, params)
            said += [
                Distillation(message, message, reply.strip())
                for message, reply in zip(turn, replies, strict=True)
                if reply.strip()
            ]
            bench.progress(len(turn) * (number + 1), len(turn) * spec.replies_per_prompt)
        kept = rehearse(
            assignment.quiz,
            bench.writer,
            rows=spec.kept_answers,
            held_out=assignment.held_out,
            seed=self._config.seed,
            max_tokens=self._config.exam.max_new_tokens,
        )
        rows: JSON = _LESSON.dump_python(Lesson(said, kept), mode="json")
        return rows

    def _stage(self, lesson: Lesson, rank: int, alpha: int) -> Stage:
        """With the champion's own shape, whatever the config says: it is trained on."""
        config = self._config
        return Stage(
            lora=config.lora.model_copy(update={"rank": rank, "alpha": alpha}),
            training=config.training,
            seed=config.seed,
            edits=tuple(lesson.kept),
            distillations=tuple(lesson.distillations),
            losses=LossSpec(distill_beta=config.heal.beta, distill_top_k=config.heal.top_k),
        )


_LESSON = TypeAdapter(Lesson)


def _message(prompt: str) -> tuple[ChatMessage, ...]:
    return ({"role": "user", "content": prompt},)
