"""What a document shows by itself and beside the others: looked for once, when it is chunked.

Not covered: two documents that are chunked in the same moment by two workers may miss each other.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from adapters.corpus.facts import (
    Fact,
    FactSheet,
    disagreements,
    placed_sentences,
    read_facts,
    subject_key,
)
from adapters.corpus.inspection import (
    Finding,
    FindingKind,
    Inspection,
    Limits,
    Severity,
)
from adapters.corpus.languages import READ_BY_RULE
from adapters.corpus.sentences import split_sentences
from server.core.settings import DocumentSettings
from server.db import DocumentState
from server.services import documents, inspections
from server.services.inspections import FactRow, Witness
from workers import stale_questions

_MOST_FACTS = 2000
"""Of one document; they come from its first chunks."""
_FLOOD = 10
"""Near duplicates of one key in a day from which it is said."""


def limits_of(settings: DocumentSettings) -> Limits:
    """The settings as the inspection takes them."""
    return Limits(
        min_words=settings.min_words,
        languages=tuple(settings.languages),
        instruction_share=settings.instruction_share,
        lesson_chunks=settings.lesson_chunks,
    )


def sheet_of(chunks: Sequence[str], inspection: Inspection, limits: Limits) -> FactSheet:
    """The facts of the chunks that a lesson takes, without those of contained sentences."""
    if inspection.language not in (None, READ_BY_RULE):
        return FactSheet((), None)
    sheet = read_facts(chunks[: limits.lesson_chunks], most=_MOST_FACTS)
    places = [(f.start, f.end) for f in inspection.findings if f.start is not None and f.end]
    trusted = (
        fact
        for fact in sheet.facts
        if all(fact.end <= start or fact.start >= end for start, end in places)
    )
    return FactSheet(tuple(trusted), sheet.topic)


def keep(
    session: Session,
    document_id: str,
    inspection: Inspection,
    sheet: FactSheet,
    *,
    settings: DocumentSettings,
) -> None:
    """Store what was found, compare with the owner's other documents, and quarantine if need be."""
    inspections.store(
        session,
        document_id,
        language=inspection.language,
        findings=rows_of(inspection.findings),
    )
    inspections.store_facts(
        session, document_id, [_row(fact) for fact in sheet.facts], topic=sheet.topic
    )
    if any(finding.severity is Severity.QUARANTINE for finding in inspection.findings):
        inspections.quarantine(session, document_id)
        return
    _weigh(session, document_id, sheet, settings)


def name_near_duplicate(session: Session, document_id: str, likeness: float) -> None:
    """Say with the newer of two near duplicates that it is one, and whether there is a flood."""
    document = documents.get_document(session, document_id)
    older = document.near_duplicate_of
    if older is None:
        return
    session.flush()
    is_learnt = document.state != DocumentState.QUARANTINED
    found = [
        Finding(
            FindingKind.NEAR_DUPLICATE,
            Severity.NOTE,
            f"It says nearly the same as {older} ({likeness:.0%} in common)"
            + (" and is learnt in its place." if is_learnt else "."),
            document=older,
        )
    ]
    if (count := inspections.near_duplicates_of_key(session, document_id)) >= _FLOOD:
        found.append(
            Finding(
                FindingKind.NEAR_DUPLICATE,
                Severity.NOTE,
                f"The key that sent it sent {count} near duplicates within a day.",
            )
        )
    inspections.add_findings(session, document_id, rows_of(found))


def rows_of(findings: Iterable[Finding]) -> list[Mapping[str, Any]]:
    """Findings as JSON."""
    return [dataclasses.asdict(finding) for finding in findings]


@dataclasses.dataclass(frozen=True, slots=True)
class _Side:
    """One of two documents that are compared."""

    id: str
    title: str
    topic: str | None
    came: tuple[datetime, str]
    """When, and its id: the order of all documents."""
    created_by: str
    near_duplicate_of: str | None
    """The document that it replaces as a whole, once nothing speaks against it."""
    facts: tuple[Fact, ...]

    def is_about(self, subject: str) -> bool:
        """Whether its title or most of its sentences are about the subject."""
        return self.topic == subject or f" {subject} " in f" {subject_key(self._heading)} "

    @property
    def _heading(self) -> str:
        """The title's first sentence: one with more is the text's beginning, and names much else."""
        return next(filter(None, split_sentences(self.title)), self.title)


@dataclasses.dataclass(frozen=True, slots=True)
class _Doubt:
    """A fact that is left out: of which document, and the value that no question asks for now."""

    at_fault: str
    finding: Finding
    value: str
    is_sign: bool = False
    """Whether many such are a sign of poison."""


def _weigh(
    session: Session, document_id: str, sheet: FactSheet, settings: DocumentSettings
) -> None:
    """Decide, for every fact on which it and another document disagree, which one is left out."""
    document = documents.get_document(session, document_id)
    most = settings.max_contradictions
    this = _Side(
        document_id,
        document.title,
        sheet.topic,
        (document.created_at, document.id),
        document.created_by,
        document.near_duplicate_of,
        sheet.facts,
    )
    doubts: list[_Doubt] = []
    for witness in inspections.witnesses(session, document_id, {f.subject for f in sheet.facts}):
        older, newer = sorted((this, _side(witness)), key=lambda side: side.came)
        is_copy = newer.near_duplicate_of == older.id
        doubts += (_doubts_of_copy if is_copy else _doubts)(newer, older, most)
    places: dict[str, set[int | None]] = {}
    for doubt in doubts:
        if doubt.is_sign:
            places.setdefault(doubt.at_fault, set()).add(doubt.finding.start)
    poisoned = {at_fault for at_fault, starts in places.items() if len(starts) >= most}
    for at_fault in sorted({doubt.at_fault for doubt in doubts}):
        # What is in quarantine supersedes nothing.
        own = [d for d in doubts if d.at_fault == at_fault and d.finding.document not in poisoned]
        findings = _once(doubt.finding for doubt in own)
        if at_fault in poisoned:
            findings.append(_poison(len(places[at_fault])))
        inspections.add_findings(session, at_fault, rows_of(findings))
        values = {doubt.value for doubt in own}
        _drop_stale_questions(session, at_fault, values, most_chunks=settings.lesson_chunks)
        if at_fault in poisoned:
            inspections.quarantine(session, at_fault)


def _drop_stale_questions(
    session: Session, document_id: str, values: set[str], *, most_chunks: int
) -> None:
    """Ask no more what is not taught any more; what users sent is asked on."""
    if not values or not (made := inspections.made_questions(session, document_id)):
        return
    stale = stale_questions.stale_items(
        made,
        placed_sentences(documents.chunks_of(session, document_id)[:most_chunks]),
        left_out=inspections.contained_places(session, document_id),
        values=values,
    )
    inspections.drop_questions(session, document_id, stale)


def _doubts(newer: _Side, older: _Side, most: int) -> list[_Doubt]:
    """Who is about the subject is believed; of two that are, the newer; of two that are not, the older.

    A newer one that overturns many facts of a document that came by another key is not believed.
    Which of the two came first tells nothing where only one is about the subject: poison may be early.
    """
    pairs = disagreements(newer.facts, older.facts)
    revised = [
        said for said, _ in pairs if newer.is_about(said.subject) and older.is_about(said.subject)
    ]
    is_trusted = newer.created_by == older.created_by or len(revised) < most
    return [
        _superseded(said, known, newer, older)
        if newer.is_about(said.subject) and (is_trusted or not older.is_about(said.subject))
        else _contradiction(
            said,
            known,
            newer,
            older,
            why=_why(said, newer, older),
            is_sign=older.is_about(said.subject),
        )
        for said, known in pairs
    ]


def _doubts_of_copy(newer: _Side, older: _Side, most: int) -> list[_Doubt]:
    """A near duplicate replaces the older as a whole, so no sentence of either is left out beside it.

    Unless it came by another key and changes many facts, whatever they are about: then all of them
    are in doubt, and what is in quarantine replaces nothing.
    """
    pairs = disagreements(newer.facts, older.facts)
    if newer.created_by == older.created_by or len(pairs) < most:
        return []
    why = "which it nearly repeats and which came by another key"
    return [
        _contradiction(said, known, newer, older, why=why, is_sign=True) for said, known in pairs
    ]


def _superseded(said: Fact, known: Fact, newer: _Side, older: _Side) -> _Doubt:
    why = (
        "newer and about the same subject"
        if older.is_about(said.subject)
        else f"newer and about {said.subject}, which this is not"
    )
    detail = (
        f"{newer.id}, {why}, says '{said.value}' where this says '{known.value}' "
        f"({' '.join(known.frame)}); this is left out."
    )
    finding = _finding(FindingKind.SUPERSEDED, detail, known, newer.id)
    return _Doubt(older.id, finding, known.value)


def _why(said: Fact, newer: _Side, older: _Side) -> str:
    """Why the older of two is believed."""
    if newer.is_about(said.subject):
        return "which came by another key"
    if older.is_about(said.subject):
        return "and it is about something else"
    return "which came first; neither is about it"


def _contradiction(
    said: Fact, known: Fact, newer: _Side, older: _Side, *, why: str, is_sign: bool
) -> _Doubt:
    detail = (
        f"It says '{said.value}' of {said.subject} ({' '.join(said.frame)}) where {older.id} says "
        f"'{known.value}', {why}; this is left out."
    )
    finding = _finding(FindingKind.CONTRADICTION, detail, said, older.id)
    return _Doubt(newer.id, finding, said.value, is_sign)


def _finding(kind: FindingKind, detail: str, fact: Fact, document: str) -> Finding:
    return Finding(
        kind, Severity.CONTAIN, detail, start=fact.start, end=fact.end, document=document
    )


def _poison(count: int) -> Finding:
    return Finding(
        FindingKind.CONTRADICTION,
        Severity.QUARANTINE,
        f"It states {count} facts otherwise than other documents do about their own subjects: it "
        "may be poisoned. An admin can release it; else delete it.",
    )


def _once(findings: Iterable[Finding]) -> list[Finding]:
    """One finding a sentence."""
    first: dict[tuple[FindingKind, int | None], Finding] = {}
    for finding in findings:
        first.setdefault((finding.kind, finding.start), finding)
    return list(first.values())


def _row(fact: Fact) -> FactRow:
    return FactRow(fact.subject, fact.slot, " ".join(fact.frame), fact.value, fact.start, fact.end)


def _side(witness: Witness) -> _Side:
    facts = tuple(
        Fact(row.subject, row.slot, tuple(row.frame.split()), row.value, row.start, row.end)
        for row in witness.facts
    )
    return _Side(
        witness.id,
        witness.title,
        witness.topic,
        (witness.created_at, witness.id),
        witness.created_by,
        witness.near_duplicate_of,
        facts,
    )
