"""SEAL, direct form: the served model writes training text about a document, LoRA learns it.

Zweiger et al., "Self-Adapting Language Models", arXiv 2506.10943. Ours differs:
- no outer loop: the writer is not itself trained by reward (about half of the gain needs none);
- the edits are questions that the model words and answers from the text, each checked against it,
  in company of edits made by rule: free implications of a small model are mostly false;
- one adapter from the clean base on the union of all documents, never edit upon edit;
- padding carries no loss, and replay of the base's own answers guards general ability.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from adapters.corpus.questions import in_context, span_questions
from adapters.corpus.reading import read_text
from adapters.evaluation.question_writer import WrittenQuestion, write_questions
from adapters.lesson import Stage
from adapters.methods.held_out import HeldOut
from adapters.methods.keyword_edits import keyword_edits
from adapters.methods.replay import replay_edits
from adapters.methods.rule_edits import rule_edits
from adapters.methods.workbench import Assignment, Outcome, Workbench
from adapters.rewards.answers import normalise
from adapters.sampling import Sampler
from adapters.spec import SealConfig
from adapters.types import (
    JSON,
    EditKind,
    ExamItem,
    ProgressCallback,
    SamplingParams,
    SelfEdit,
    SourceDocument,
)


@dataclass(frozen=True, slots=True)
class LessonPlan:
    """The self-edits to train on, and an account of what was written and what was dropped."""

    edits: list[SelfEdit]
    report: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> JSON:
        """Plain JSON."""
        rows: JSON = _PLAN.dump_python(self, mode="json")
        return rows

    @classmethod
    def from_json(cls, fields: JSON) -> "LessonPlan":
        """The plan that `to_json` wrote."""
        return _PLAN.validate_python(fields)


class Seal:
    """SEAL for one config; holds no state between runs."""

    def __init__(self, config: SealConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        with bench.stage("self_edits"):
            kept = bench.once("self_edits", lambda: self._plan(assignment, bench).to_json())
            plan = LessonPlan.from_json(kept)
        with bench.stage("training"):
            weights = bench.train(self._stage(plan.edits))
        return Outcome(weights, {"self_edits": plan.report})

    def _plan(self, assignment: Assignment, bench: Workbench) -> LessonPlan:
        return self.plan(
            assignment.documents,
            sampler=bench.writer,
            base_sampler=bench.base,
            held_out=assignment.held_out,
            quiz=assignment.quiz,
            on_progress=bench.progress,
        )

    def _stage(self, edits: Sequence[SelfEdit]) -> Stage:
        config = self._config
        return Stage(
            lora=config.lora,
            training=config.training,
            seed=config.seed,
            edits=tuple(edits),
            anchors_per_epoch=config.replay.prompts_per_epoch,
        )

    def plan(
        self,
        documents: Sequence[SourceDocument],
        *,
        sampler: Sampler,
        base_sampler: Sampler | None = None,
        held_out: frozenset[str] = frozenset(),
        quiz: Sequence[ExamItem] = (),
        on_progress: ProgressCallback | None = None,
    ) -> LessonPlan:
        """Write the self-edits of all documents, and the replay.

        `sampler` is the served model; `base_sampler` the untouched base, which answers the replay
        prompts (`sampler` does where it is not given). No edit has a prompt of `held_out`, the
        exam's, or nearly one; `quiz` are checked questions that the split left to training.

        Raises:
            SamplingError: the engine failed.
        """
        exam = HeldOut(held_out)
        dropped: Counter[str] = Counter()
        total = len(documents) + 1
        edits: list[SelfEdit] = []
        for number, document in enumerate(documents, start=1):
            edits += self._edits_of(document, sampler, exam, dropped)
            if on_progress:
                on_progress(number, total)
        edits += [edit for item in quiz for edit in _left_to_training(item, exam)]
        replay = replay_edits(
            base_sampler or sampler,
            self._config.replay,
            forbidden=frozenset(normalise(prompt) for prompt in held_out),
        )
        if on_progress:
            on_progress(total, total)
        written = Counter(f"{e.kind} by {e.written_by}" for e in (*edits, *replay))
        return LessonPlan(
            [*edits, *replay], {"written": dict(written), "dropped": dict(sorted(dropped.items()))}
        )

    def _edits_of(
        self,
        document: SourceDocument,
        sampler: Sampler,
        exam: HeldOut,
        dropped: Counter[str],
    ) -> list[SelfEdit]:
        """Rule edits and written ones; of equal prompts the first, none that the exam asks."""
        reading = read_text(document.text)
        questions = span_questions(reading.sentences)
        spec = self._config.self_edits
        edits = rule_edits(document, reading, questions if spec.span_questions else [])
        edits += keyword_edits(
            document, reading, per_sentence=spec.keyword_questions, seed=self._config.seed
        )
        for attempt in range(spec.rewordings):
            # The first rewording is greedy; the later ones are sampled, for variety.
            params = SamplingParams(
                max_tokens=spec.max_new_tokens,
                temperature=spec.temperature if attempt else 0.0,
                seed=self._config.seed + attempt,
                stop=("\n",),
            )
            for question in write_questions(
                questions[: spec.questions_per_document],
                reading,
                sampler=sampler,
                params=params,
                dropped=dropped,
                style=attempt + 1,
            ):
                prompt = in_context(question.prompt, reading)
                edits.append(_written(document, question, prompt))
        return list(_kept(edits, exam, dropped))


_PLAN = TypeAdapter(LessonPlan)


def _written(document: SourceDocument, question: WrittenQuestion, prompt: str) -> SelfEdit:
    reply = question.reply or question.source.sentence.text
    return SelfEdit(EditKind.QUESTION, document.id, prompt, reply, "model")


def _kept(edits: Sequence[SelfEdit], exam: HeldOut, dropped: Counter[str]) -> Iterator[SelfEdit]:
    seen: set[str] = set()
    for edit in edits:
        key = normalise(edit.prompt) if edit.prompt is not None else f"\0{edit.text}"
        if key in seen:
            dropped["repeated"] += 1
        elif edit.prompt is not None and exam.covers(edit.prompt):
            dropped["asked in the exam"] += 1
        else:
            seen.add(key)
            yield edit


def _left_to_training(item: ExamItem, exam: HeldOut) -> Iterator[SelfEdit]:
    if not exam.covers(item.prompt):
        yield SelfEdit(
            EditKind.QUESTION, item.document_id, item.prompt, f"{item.answers[0]}.", "model"
        )
