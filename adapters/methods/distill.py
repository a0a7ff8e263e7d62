"""Distillation on documents: the base that sees the text teaches the one that does not.

Shenfeld et al., "Self-Distillation Enables Continual Learning" (SDFT), arXiv 2601.19897, and
on-policy context distillation (OPCD), arXiv 2602.12275. Teacher and student are one model: the
student is asked a question about the text, the teacher sees the text before the same question, and
the student learns the teacher's next-token distribution along a reply. Ours differs:
- the teacher is the base with the adapter off and never moves (SDFT takes a slow average of the
  student; a frozen one did as well in an independent check), kept as its top-k tokens and a rest;
- the first round's replies are the teacher's own, checked against the text. On-policy replies of a
  model that has never met the fact hardly ever come to where the fact is said; later rounds mix;
- where the teacher's reply fails the check, the sentence that holds the answer stands in for it;
- the questions are made by rule from the text, and those that the split left to training;
- replay anchors hold the model to the base on general prompts, as in `adapters/methods/seal.py`.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter

from adapters.corpus.questions import (
    SpanQuestion,
    cloze_prompt,
    in_context,
    is_enough,
    span_questions,
)
from adapters.corpus.reading import Reading, read_text
from adapters.evaluation.question_checks import is_foreign, is_inventive
from adapters.lesson import Stage, Weights
from adapters.methods.continual import Beginning, begin, replayed
from adapters.methods.held_out import HeldOut
from adapters.methods.replay import replay_edits
from adapters.methods.teaching import distillation, student_prompt, teacher_prompt
from adapters.methods.workbench import BUDGET_ENDED, Assignment, Outcome, Workbench
from adapters.rewards.answers import is_correct, normalise
from adapters.sampling import Sampler
from adapters.spec import DistillConfig, LossSpec
from adapters.types import (
    JSON,
    ChatMessage,
    Distillation,
    ExamItem,
    SamplingParams,
    SelfEdit,
    SourceDocument,
)

Speaker = Literal["teacher", "student", "sentence"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about a document, and what of it the teacher sees."""

    prompt: str
    answers: tuple[str, ...]
    """Any of them is right."""
    context: str
    document_id: str
    sentence: str | None
    """Of the text, which says the answer."""


@dataclass(frozen=True, slots=True)
class Round:
    """What was gathered for one training, and an account of it."""

    distillations: list[Distillation]
    report: dict[str, dict[str, int]]


class Distill:
    """Distillation for one config; holds no state between runs."""

    def __init__(self, config: DistillConfig) -> None:
        self._config = config

    def learn(self, assignment: Assignment, bench: Workbench) -> Outcome:
        """See `Method.learn`."""
        beginning = begin(assignment, self._config)
        questions, left_out = self._questions(beginning.assignment)
        report: dict[str, JSON] = {"questions": len(questions), "left_out": dict(left_out)}
        if not questions:
            why = "No question that the exam does not ask could be made of the documents."
            return Outcome(None, {"no_update": why, "distill": report})
        if not bench.has_budget():
            return Outcome(None, {"no_update": BUDGET_ENDED, "distill": report})
        with bench.stage("replies"):
            anchors = self._anchors(beginning, bench)
            replay = replayed(beginning, bench, self._config, new_rows=len(questions))
        weights = beginning.start
        rounds: list[JSON] = []
        for number in range(self._config.distill.rounds):
            if not bench.has_budget():
                report["stopped"] = "the budget is used up"
                break
            with bench.stage("replies"):
                gathered = self._gather(beginning, bench, questions, number, weights)
            rounds.append({name: dict(counts) for name, counts in gathered.report.items()})
            stage = self._stage(gathered.distillations, [*anchors, *replay], number)
            if not stage.distillations:
                continue
            with bench.stage("training"):
                weights = bench.train(stage, start=weights)
        report["rounds"] = rounds
        continual = beginning.report(len(replay))
        if weights == beginning.start:
            why = "Nothing that was said about the documents held against the text."
            if "stopped" in report:
                why = BUDGET_ENDED
            return Outcome(None, {"no_update": why, "distill": report, "continual": continual})
        return Outcome(weights, {"distill": report, "continual": continual}, beginning.generation)

    def _questions(self, assignment: Assignment) -> tuple[list[Question], Counter[str]]:
        exam = HeldOut(assignment.held_out)
        left_out: Counter[str] = Counter()
        found: list[Question] = []
        for document in assignment.documents:
            quiz = [item for item in assignment.quiz if item.document_id == document.id]
            own = list(_kept(_asked_of(document, quiz), exam, left_out))
            most = self._config.distill.questions_per_document
            left_out["beyond the most per document"] += max(0, len(own) - most)
            found += own[:most]
        return found, +left_out

    def _anchors(self, beginning: Beginning, bench: Workbench) -> list[SelfEdit]:
        exam = HeldOut(beginning.assignment.held_out)

        def answer() -> JSON:
            edits = replay_edits(bench.base, self._config.replay, exam)
            rows: JSON = _EDITS.dump_python(edits, mode="json")
            return rows

        return _EDITS.validate_python(bench.once("anchors", answer))

    def _gather(
        self,
        beginning: Beginning,
        bench: Workbench,
        questions: Sequence[Question],
        number: int,
        weights: Weights | None,
    ) -> Round:
        """The replies of one round, asked of the student that the round before has left."""

        def ask() -> JSON:
            if weights is None or weights == beginning.start:
                made = self._ask(questions, beginning.student(bench), bench, number)
            else:
                with bench.serving([weights]) as (student,):
                    made = self._ask(questions, student, bench, number)
            rows: JSON = _ROUND.dump_python(made, mode="json")
            return rows

        return _ROUND.validate_python(bench.once(beginning.name(f"replies-{number}"), ask))

    def _ask(
        self, questions: Sequence[Question], student: Sampler, bench: Workbench, number: int
    ) -> Round:
        spec = self._config.distill
        share = spec.teacher_share if number else spec.first_teacher_share
        numbers = list(range(len(questions)))
        draw = random.Random(self._config.seed * 1000 + number)
        by_teacher = frozenset(draw.sample(numbers, round(share * len(numbers))))
        asked = {
            "teacher": [one for i, one in enumerate(questions) if i in by_teacher],
            "student": [one for i, one in enumerate(questions) if i not in by_teacher],
        }
        bench.progress(0, len(questions))
        teachers = _chat(
            bench.base,
            [teacher_prompt(one.prompt, one.context) for one in asked["teacher"]],
            SamplingParams(max_tokens=spec.max_new_tokens, stop=("\n",)),
        )
        bench.progress(len(teachers), len(questions))
        students = _chat(
            student,
            [student_prompt(one.prompt) for one in asked["student"]],
            SamplingParams(
                max_tokens=spec.max_new_tokens,
                temperature=spec.temperature,
                seed=self._config.seed + number,
                stop=("\n",),
            ),
        )
        bench.progress(len(questions), len(questions))
        dropped: Counter[str] = Counter()
        said = [
            *_teachers(asked["teacher"], teachers, dropped),
            *_students(asked["student"], students, dropped),
        ]
        by: Counter[str] = Counter(speaker for speaker, _ in said)
        return Round([one for _, one in said], {"said_by": dict(by), "dropped": dict(dropped)})

    def _stage(
        self, distillations: Sequence[Distillation], edits: Sequence[SelfEdit], number: int
    ) -> Stage:
        config = self._config
        return Stage(
            lora=config.lora,
            training=config.training,
            seed=config.seed + number,
            edits=tuple(edits),
            distillations=tuple(distillations),
            anchors_per_epoch=config.replay.prompts_per_epoch,
            anchor_share=config.replay.least_share,
            losses=LossSpec(distill_beta=config.distill.beta, distill_top_k=config.distill.top_k),
        )


_EDITS = TypeAdapter(list[SelfEdit])
_ROUND = TypeAdapter(Round)


def _asked_of(document: SourceDocument, quiz: Sequence[ExamItem]) -> Iterator[Question | None]:
    """Every question that can be asked of a document; None for one that no chunk answers."""
    reading = read_text(document.rule_text)
    spans = span_questions(reading.sentences)
    for item in quiz:
        sources = [span for span in spans if span.answer in item.answers]
        source = sources[0] if len(sources) == 1 else None  # of several nobody knows which is meant
        yield _question(item.prompt, item.answers, document, source)
    for span in spans:
        for form in span.forms:
            yield _question(in_context(form, reading), (span.answer,), document, span)
    for span in spans:
        if is_enough(span.cut):
            prompt = cloze_prompt(span.cut, reading)
            yield _question(prompt, (span.answer,), document, span)


def _question(
    prompt: str, answers: tuple[str, ...], document: SourceDocument, span: SpanQuestion | None
) -> Question | None:
    chunks = [chunk for chunk in document.chunks if is_correct(chunk, answers)]
    if not chunks:
        return None
    telling = [chunk for chunk in chunks if span and span.sentence.original in chunk]
    context = (telling or chunks)[0].strip()
    return Question(prompt, answers, context, document.id, span.sentence.text if span else None)


def _kept(
    questions: Iterator[Question | None], exam: HeldOut, left_out: Counter[str]
) -> Iterator[Question]:
    seen: set[str] = set()
    for question in questions:
        if question is None:
            left_out["no chunk holds the answer"] += 1
        elif (key := normalise(question.prompt)) in seen:
            left_out["repeated"] += 1
        elif exam.covers(question.prompt):
            left_out["asked in the exam"] += 1
        else:
            seen.add(key)
            yield question


def _chat(
    sampler: Sampler, prompts: Sequence[tuple[ChatMessage, ...]], params: SamplingParams
) -> list[str]:
    return sampler.chat(prompts, params) if prompts else []


def _teachers(
    questions: Sequence[Question], replies: Sequence[str], dropped: Counter[str]
) -> Iterator[tuple[Speaker, Distillation]]:
    """The teacher's replies that hold against the text; else the sentence that says it."""
    readings: dict[str, Reading] = {}
    for question, raw in zip(questions, replies, strict=True):
        if question.context not in readings:
            readings[question.context] = read_text(question.context)
        reply = raw.strip()
        fault = _fault_of(reply, question, readings[question.context])
        if fault is None:
            yield "teacher", _learn(question, reply)
            continue
        dropped[fault] += 1
        if question.sentence is not None:
            yield "sentence", _learn(question, question.sentence)


def _students(
    questions: Sequence[Question], replies: Sequence[str], dropped: Counter[str]
) -> Iterator[tuple[Speaker, Distillation]]:
    """Whatever the student said, right or wrong: the teacher sets it right token by token."""
    for question, reply in zip(questions, replies, strict=True):
        if reply.strip():
            yield "student", _learn(question, reply.strip())
        else:
            dropped["the student said nothing"] += 1


def _fault_of(reply: str, question: Question, reading: Reading) -> str | None:
    if not reply:
        return "the teacher said nothing"
    if not is_correct(reply, question.answers):
        return "the teacher missed the answer"
    if is_foreign(reply, reading) or is_inventive(reply, reading):
        return "the teacher went beyond the text"
    return None


def _learn(question: Question, reply: str) -> Distillation:
    return distillation(question.prompt, question.context, reply, question.document_id)
