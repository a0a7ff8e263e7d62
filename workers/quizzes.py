"""The questions of each document: gathered and split once, before anything is taught."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from adapters.evaluation.bank import Bank, without_repeats
from adapters.evaluation.gate import Need
from adapters.evaluation.quiz import build_exam_items, write_further_items
from adapters.evaluation.traffic import Asked, Found, Quota, find_items, question_in
from adapters.redaction import build_redactor
from adapters.sampling import Sampler
from adapters.spec import ExamSpec, MethodConfig
from adapters.types import ExamItem, ItemKind, SourceDocument
from server.core.clock import utc_now
from server.services import documents, experience, questions
from server.services.questions import Heard
from workers.context import WorkerContext
from workers.heart import Heart
from workers.material import Material
from workers.taught import Taught, taught_by

_LOOKED_UP_FOR_ONE = 8
"""Questions of one asker that are looked up, for each that may be taken."""
_WRITTEN = (ItemKind.MODEL, ItemKind.CLOZE)


@dataclass(frozen=True, slots=True)
class Quizzes:
    """The questions about a run's documents, on both sides of the split."""

    exam: tuple[ExamItem, ...]
    train: tuple[ExamItem, ...]
    report: dict[str, Any] = field(default_factory=dict)
    """How many there are by source, and what became of traffic."""

    @property
    def held_out(self) -> frozenset[str]:
        """The prompts that must never be taught."""
        return frozenset(item.prompt for item in self.exam)


def stored_quizzes(context: WorkerContext, material: Material) -> Quizzes:
    """The questions that are there; none are written."""
    exam, train = without_repeats(*_stored(context, material.documents))
    return Quizzes(tuple(exam), tuple(train))


@dataclass(frozen=True, slots=True)
class Further:
    """What came of asking for more questions."""

    wanted: int
    items: tuple[ExamItem, ...]
    dropped: dict[str, int]
    """What was written and refused, by reason."""

    @property
    def missing(self) -> int:
        """How many could not be written: the text holds no more, or the model writes too badly."""
        return max(0, self.wanted - len(self.items))


def ensure_quizzes(
    context: WorkerContext,
    material: Material,
    sampler: Sampler,
    config: MethodConfig,
    heart: Heart,
    *,
    base: Sampler | None = None,
) -> Quizzes:
    """Give every document its exam items, and return those of all documents, none twice.

    A document that has its cloze items keeps its split for ever, also through later runs; users
    and traffic add to the exam only. `base` looks traffic's questions up in the documents; without
    it traffic is left alone.
    """
    report: dict[str, Any] = {}
    if base is not None and config.exam.traffic_items and config.exam.traffic_items_per_user:
        report["traffic"] = _hear(context, material, base, config.exam)
    for document in material.documents:
        _write_first(context, document, sampler, config, heart)
    exam, train = without_repeats(*_stored(context, material.documents))
    report["exam"] = dict(Counter(str(item.kind) for item in exam))
    report["train"] = dict(Counter(str(item.kind) for item in train))
    return Quizzes(tuple(exam), tuple(train), report)


def write_more(
    context: WorkerContext,
    material: Material,
    document: SourceDocument,
    count: int,
    sampler: Sampler,
    config: MethodConfig,
) -> Further:
    """Ask the model for `count` further exam questions on a document, and store what is good.

    Only spans of the text that no exam question asks for, in words that no question here and no
    lesson of the champion has used. What it can not write is told, never made up.

    They are for the next lesson: the one that is written already may have taught them.

    Raises:
        SamplingError: the engine failed.
    """
    exam, train = _stored(context, [document])
    taught = taught_by(context, material)
    dropped: Counter[str] = Counter()
    written = write_further_items(
        document,
        count,
        exam=exam,
        train=train,
        sampler=sampler,
        quiz=config.quiz,
        is_taught=lambda prompt: taught.covers(document.id, prompt),
        dropped=dropped,
    )
    with context.database.unit_of_work() as session:
        documents.add_exam_questions(session, document.id, exam=written, train=[])
    return Further(count, tuple(written), dict(sorted(dropped.items())))


def write_needed(
    context: WorkerContext,
    material: Material,
    needs: Sequence[Need],
    sampler: Sampler,
    config: MethodConfig,
) -> dict[str, Any]:
    """Ask for the questions that an exam lacked, shared out over the documents; what came of it by
    document. See `write_more`.

    Raises:
        SamplingError: the engine failed.
    """
    wanted: Counter[str] = Counter()
    for need in needs:
        for document_id in need.documents:
            share = math.ceil(need.items / len(need.documents))
            wanted[document_id] = max(wanted[document_id], share)
    report: dict[str, Any] = {}
    for document in material.documents:
        if count := wanted[document.id]:
            found = write_more(context, material, document, count, sampler, config)
            report[document.id] = {
                "wanted": count,
                "written": len(found.items),
                "missing": found.missing,
                "dropped": found.dropped,
            }
    return report


def _write_first(
    context: WorkerContext,
    document: SourceDocument,
    sampler: Sampler,
    config: MethodConfig,
    heart: Heart,
) -> None:
    exam, train = _stored(context, [document])
    if any(item.kind in _WRITTEN for item in (*exam, *train)):
        return
    held, rest = build_exam_items(
        document,
        asked=exam,
        sampler=sampler,
        exam=config.exam,
        quiz=config.quiz,
        on_progress=heart.progress,
    )
    with context.database.unit_of_work() as session:
        documents.add_exam_questions(session, document.id, exam=held, train=rest)


def _hear(
    context: WorkerContext, material: Material, base: Sampler, spec: ExamSpec
) -> dict[str, Any]:
    """Take users' own questions into the exam; what became of those that were heard, in numbers."""
    ids = [document.id for document in material.documents]
    with context.database.look() as session:
        so_far = questions.heard_so_far(session, ids)
    asked = _questions_heard(context, material, spec, so_far.interactions)
    if not asked:
        return {"heard": 0, "taken": 0, "dropped": {}}
    exam, train = _stored(context, material.documents)
    dropped: Counter[str] = Counter()
    taught: Taught = taught_by(context, material)
    found = find_items(
        asked,
        material.documents,
        base=base,
        banks=_banks(material.documents, (*exam, *train)),
        is_taught=taught.covers,
        quota=Quota(spec, so_far.by_asker.copy()),
        dropped=dropped,
    )
    taken = _store(context, found)
    if gone := len(found) - taken:
        dropped["deleted meanwhile"] += gone
    return {"heard": len(asked), "taken": taken, "dropped": dict(sorted(dropped.items()))}


def _questions_heard(
    context: WorkerContext, material: Material, spec: ExamSpec, used: frozenset[str]
) -> list[Asked]:
    """The newest questions of the gate's share of the line's traffic, newest first; of one asker
    only a few, so that nobody who asks much keeps others out.
    """
    redactor = build_redactor(context.settings.capture.redactor)
    since = utc_now() - timedelta(days=spec.traffic_days)
    few = _LOOKED_UP_FOR_ONE * spec.traffic_items_per_user
    by_asker: dict[str, deque[tuple[int, Asked]]] = defaultdict(lambda: deque(maxlen=few))
    with context.database.look() as session:
        learnable = experience.learnable(
            session, material.adapter, split="gate", since=since, redactor=redactor
        )
        for place, one in enumerate(learnable):
            text = None if one.was_redacted else question_in(one.messages)
            if text is not None and one.interaction_id not in used:
                asker = one.end_user or one.key_id
                by_asker[asker].append((place, Asked(one.interaction_id, asker, text)))
    newest = sorted((entry for kept in by_asker.values() for entry in kept), key=lambda e: -e[0])
    return [asked for _, asked in newest[: spec.traffic_checks]]


def _store(context: WorkerContext, found: Sequence[Found]) -> int:
    with context.database.unit_of_work() as session:
        heard = [Heard(one.item, one.interaction_id) for one in found]
        return questions.add_heard(session, heard)


def _stored(
    context: WorkerContext, of: Iterable[SourceDocument]
) -> tuple[list[ExamItem], list[ExamItem]]:
    """The exam's items of these documents, and those left to training."""
    ids = [document.id for document in of]
    with context.database.look() as session:
        return (
            documents.exam_items(session, ids, split="exam"),
            documents.exam_items(session, ids, split="train"),
        )


def _banks(of: Iterable[SourceDocument], items: Iterable[ExamItem]) -> dict[str, Bank]:
    banks = {document.id: Bank() for document in of}
    for item in items:
        if item.document_id is not None:
            banks[item.document_id].add(item)
    return banks
