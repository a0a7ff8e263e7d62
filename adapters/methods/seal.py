"""SEAL on documents: the model writes training text about a document, LoRA learns it.

Zweiger et al., "Self-Adapting Language Models", arXiv 2506.10943. Ours differs:
- by default the edits are questions that the model words and answers from the text, each checked
  against it, in company of edits made by rule: free implications of a small model are mostly false;
- free edits, the paper's own, are off by default, and each piece of one is checked like the rest;
- the outer loop chooses the best of several edits of a document (`outer_loop`), and is off by
  default: about half of the paper's gain needs none;
- one adapter from the clean base on the union of all documents, or a bounded number of times on
  from the champion with replay (`adapters/methods/continual.py`), never edit upon edit;
- padding carries no loss, and replay of the base's own answers guards general ability.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import TypeAdapter

from adapters.corpus.questions import in_context, span_questions
from adapters.corpus.reading import Reading, read_text
from adapters.evaluation.question_writer import WrittenQuestion, write_questions
from adapters.lesson import Stage
from adapters.methods.continual import begin, replayed
from adapters.methods.free_edits import (
    PassageEdit,
    as_self_edits,
    recall,
    titled_passages,
    write_free_edits,
)
from adapters.methods.grounding import Grounded, ground
from adapters.methods.held_out import HeldOut
from adapters.methods.keyword_edits import keyword_edits
from adapters.methods.outer_loop import OuterLoop, Searched
from adapters.methods.replay import replay_edits
from adapters.methods.rule_edits import rule_edits
from adapters.methods.workbench import (
    BUDGET_ENDED,
    AcceptedSelfEdit,
    Assignment,
    Outcome,
    Workbench,
)
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
        beginning = begin(assignment, self._config)
        searched = self._search(beginning.assignment, bench)
        if not bench.has_budget():
            return self._unpaid(searched)
        with bench.stage("self_edits"):
            kept = bench.once(
                beginning.name("self_edits"),
                lambda: self._plan(beginning.assignment, bench, searched),
            )
            plan = LessonPlan.from_json(kept)
            new_rows = sum(edit.kind is not EditKind.REPLAY for edit in plan.edits)
            replay = replayed(beginning, bench, self._config, new_rows=new_rows)
        if not bench.has_budget():
            return self._unpaid(searched)
        with bench.stage("training"):
            chunks = sum(len(document.chunks) for document in beginning.assignment.documents)
            # A training that goes on from earlier weights keeps all: only from the base is it a part.
            strength = self._config.strength_for(chunks) if beginning.start is None else 1.0
            stage = self._stage([*plan.edits, *replay], strength)
            weights = bench.train(stage, start=beginning.start)
        report: dict[str, JSON] = {
            "self_edits": plan.report,
            "continual": beginning.report(len(replay)),
            "strength": stage.strength,
        }
        if self._config.outer.is_enabled:
            report["outer_loop"] = searched.report
        return Outcome(weights, report, beginning.generation, accepted=searched.accepted)

    def _unpaid(self, searched: Searched) -> Outcome:
        """No update; what the search has found stays for later runs."""
        report: dict[str, JSON] = {"no_update": BUDGET_ENDED}
        if self._config.outer.is_enabled:
            report["outer_loop"] = searched.report
        return Outcome(None, report, accepted=searched.accepted)

    def _search(self, assignment: Assignment, bench: Workbench) -> Searched:
        if not self._config.outer.is_enabled:
            return Searched()
        with bench.stage("outer_loop"):
            return OuterLoop(self._config).search(assignment, bench)

    def _plan(self, assignment: Assignment, bench: Workbench, searched: Searched) -> JSON:
        plan = self.plan(
            assignment.documents,
            sampler=bench.writer,
            base_sampler=bench.base,
            editor=bench.editor,
            held_out=assignment.held_out,
            quiz=assignment.quiz,
            found=_recalled(assignment) | dict(searched.kept),
            on_progress=bench.progress,
        )
        return plan.to_json()

    def _stage(self, edits: Sequence[SelfEdit], strength: float) -> Stage:
        config = self._config
        return Stage(
            lora=config.lora,
            training=config.training,
            seed=config.seed,
            edits=tuple(edits),
            anchors_per_epoch=config.replay.prompts_per_epoch,
            anchor_share=config.replay.least_share,
            strength=strength,
        )

    def plan(
        self,
        documents: Sequence[SourceDocument],
        *,
        sampler: Sampler,
        base_sampler: Sampler | None = None,
        editor: Sampler | None = None,
        held_out: frozenset[str] = frozenset(),
        quiz: Sequence[ExamItem] = (),
        found: Mapping[str, Sequence[PassageEdit]] | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> LessonPlan:
        """Write the self-edits of all documents, and the replay.

        No edit has a prompt of `held_out`, the exam's, or nearly one.

        Args:
            sampler: the served model, which rewords questions.
            base_sampler: the untouched base, which answers the replay prompts and checks free
                edits; `sampler` where it is not given.
            editor: who writes free edits; the base where it is not given.
            quiz: checked questions that the split left to training.
            found: by document id, grounded edits that are there already; no others are written.

        Raises:
            SamplingError: the engine failed.
        """
        base = base_sampler or sampler
        writing = _Writing(sampler, base, editor or base, HeldOut(held_out), found or {})
        spec = self._config.self_edits
        total = len(documents) + 1
        edits: list[SelfEdit] = []
        for number, document in enumerate(documents):
            writing.on_progress = partial(_progress, on_progress, number, total)
            edits += self._edits_of(document, writing, first_seed=number * spec.edits_per_document)
            writing.on_progress(0, 0)
        if spec.is_with_rules:
            edits += [edit for item in quiz for edit in _left_to_training(item, writing.exam)]
        replay = replay_edits(base, self._config.replay, writing.exam)
        if on_progress:
            on_progress(total, total)
        written = Counter(f"{e.kind} by {e.written_by}" for e in (*edits, *replay))
        return LessonPlan([*edits, *replay], {"written": dict(written)} | writing.account())

    def _edits_of(
        self, document: SourceDocument, writing: "_Writing", *, first_seed: int
    ) -> list[SelfEdit]:
        """Those by rule, written to a rule and free; of equal prompts the first, none the exam's."""
        reading = read_text(document.rule_text)
        if self._config.self_edits.is_with_rules:
            edits = self._ruled(document, reading, writing)
        else:
            edits = titled_passages(document)
        edits += as_self_edits(document, self._free(document, writing, first_seed), reading)
        return list(_kept(edits, writing.exam, writing.dropped))

    def _ruled(
        self, document: SourceDocument, reading: Reading, writing: "_Writing"
    ) -> list[SelfEdit]:
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
                sampler=writing.writer,
                params=params,
                dropped=writing.dropped,
                style=attempt + 1,
            ):
                prompt = in_context(question.prompt, reading)
                edits.append(_written(document, question, prompt))
        return edits

    def _free(
        self, document: SourceDocument, writing: "_Writing", first_seed: int
    ) -> list[PassageEdit]:
        """What was found for the document, else what is written now and borne out by it."""
        if document.id in writing.found:
            return list(writing.found[document.id])
        spec = self._config.self_edits
        candidates = write_free_edits(
            document,
            spec.prompts,
            spec.edits_per_document,
            editor=writing.editor,
            spec=spec,
            seed=self._config.seed + first_seed,
            on_progress=writing.on_progress,
        )
        grounded = ground(
            document,
            candidates,
            reader=writing.base,
            exam=writing.exam,
            needs_agreement=spec.needs_agreement,
            on_progress=writing.on_progress,
        )
        for candidate, left in zip(candidates, grounded, strict=True):
            writing.note(candidate, left)
        return [edit for each in grounded for edit in each.edits]


@dataclass(slots=True)
class _Writing:
    """Who writes a plan, what is there already, and what has been counted."""

    writer: Sampler
    base: Sampler
    editor: Sampler
    exam: HeldOut
    found: Mapping[str, Sequence[PassageEdit]]
    on_progress: ProgressCallback = lambda done, total: None
    dropped: Counter[str] = field(default_factory=Counter)
    free_written: Counter[str] = field(default_factory=Counter)
    free_kept: Counter[str] = field(default_factory=Counter)

    def note(self, candidate: Sequence[PassageEdit], left: Grounded) -> None:
        """Count the pieces of one free edit, and what is left of them."""
        self.dropped += left.dropped
        for edit in candidate:
            self.free_written[edit.kind] += len(edit.pieces)
        for edit in left.edits:
            self.free_kept[edit.kind] += len(edit.pieces)

    def account(self) -> dict[str, Any]:
        """What was dropped by reason, and of free edits what was written and kept by kind."""
        account: dict[str, Any] = {"dropped": dict(sorted(self.dropped.items()))}
        if self.free_written:
            account["free"] = {
                kind: {"written": written, "kept": self.free_kept[kind]}
                for kind, written in sorted(self.free_written.items())
            }
        return account


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


def _recalled(assignment: Assignment) -> dict[str, tuple[PassageEdit, ...]]:
    """What earlier runs have found best for documents that say the same still."""
    by_document: dict[str, list[AcceptedSelfEdit]] = {}
    for accepted in assignment.accepted:
        by_document.setdefault(accepted.document_id, []).append(accepted)
    found: dict[str, tuple[PassageEdit, ...]] = {}
    for document in assignment.documents:
        again = (
            recall(document, accepted.prompt, accepted.text)
            for accepted in by_document.get(document.id, [])
        )
        if edits := tuple(edit for edit in again if edit is not None):
            found[document.id] = edits
    return found


def _progress(callback: ProgressCallback | None, done: int, total: int, *_: int) -> None:
    if callback is not None:
        callback(done, total)
