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
    read_facts,
    subject_key,
)
from adapters.corpus.inspection import (
    Finding,
    FindingKind,
    Inspection,
    Limits,
    Severity,
    excerpt,
)
from adapters.corpus.languages import READ_BY_RULE
from server.core.settings import DocumentSettings
from server.services import documents, inspections
from server.services.inspections import FactRow, Witness

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
    _weigh(session, document_id, sheet, most=settings.max_contradictions)


def name_near_duplicate(session: Session, document_id: str, likeness: float) -> None:
    """Say with the newer of two near duplicates that it is one, and whether there is a flood."""
    document = documents.get_document(session, document_id)
    older = document.near_duplicate_of
    if older is None:
        return
    session.flush()
    found = [
        Finding(
            FindingKind.NEAR_DUPLICATE,
            Severity.NOTE,
            f"It says nearly the same as {older} ({likeness:.0%} in common) and is learnt in its "
            "place.",
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
    created_at: datetime
    facts: tuple[Fact, ...]

    def is_about(self, subject: str) -> bool:
        """Whether its title or most of its sentences are about the subject."""
        return self.topic == subject or f" {subject} " in f" {subject_key(self.title)} "


def _weigh(session: Session, document_id: str, sheet: FactSheet, *, most: int) -> None:
    """Decide, for every fact on which it and another document disagree, which one is left out."""
    document = documents.get_document(session, document_id)
    this = _Side(document_id, document.title, sheet.topic, document.created_at, sheet.facts)
    doubts: dict[str, list[Finding]] = {}
    for witness in inspections.witnesses(
        session, document_id, {fact.subject for fact in sheet.facts}
    ):
        if document.near_duplicate_of == witness.id:
            continue  # it is replaced as a whole
        other = _side(witness)
        older, newer = sorted((this, other), key=lambda side: (side.created_at, side.id))
        for said, known in disagreements(newer.facts, older.facts):
            _judge(session, newer, older, (said, known), doubts)
    for at_fault, findings in doubts.items():
        inspections.add_findings(session, at_fault, rows_of(_once(findings)))
        places = {f.start for f in findings if f.kind is FindingKind.CONTRADICTION}
        if len(places) >= most:
            reason = Finding(
                FindingKind.CONTRADICTION,
                Severity.QUARANTINE,
                f"It states {len(places)} facts about the subjects of other documents otherwise "
                "than they do: it may be poisoned. An admin can release it; else delete it.",
            )
            inspections.add_findings(session, at_fault, rows_of([reason]))
            inspections.quarantine(session, at_fault)


def _judge(
    session: Session,
    newer: _Side,
    older: _Side,
    facts: tuple[Fact, Fact],
    doubts: dict[str, list[Finding]],
) -> None:
    """A document is believed about its own subject, the newer of two; another one is not."""
    said, known = facts
    if newer.is_about(said.subject):
        doubts.setdefault(older.id, []).append(
            _doubt(
                FindingKind.SUPERSEDED,
                known,
                newer.id,
                f"{newer.id}, newer and about the same subject, says {said.value} where this says "
                f"{known.value}; this is left out",
            )
        )
        inspections.drop_questions(session, older.id, {known.value})
    else:
        doubts.setdefault(newer.id, []).append(
            _doubt(
                FindingKind.CONTRADICTION,
                said,
                older.id,
                f"It says {said.value} of {said.subject} where {older.id} says {known.value}, and "
                f"{said.subject} is not its subject; this is left out",
            )
        )
        inspections.drop_questions(session, newer.id, {said.value})


def _doubt(kind: FindingKind, fact: Fact, document: str, detail: str) -> Finding:
    return Finding(
        kind,
        Severity.CONTAIN,
        f"{detail}: {excerpt(' '.join(fact.frame))}",
        start=fact.start,
        end=fact.end,
        document=document,
    )


def _once(findings: Iterable[Finding]) -> list[Finding]:
    """One finding a sentence."""
    return list({(f.kind, f.start): f for f in reversed(list(findings))}.values())[::-1]


def _row(fact: Fact) -> FactRow:
    return FactRow(
        fact.subject, fact.slot, " ".join(fact.frame), fact.value, fact.start, fact.end
    )


def _side(witness: Witness) -> _Side:
    facts = tuple(
        Fact(row.subject, row.slot, tuple(row.frame.split()), row.value, row.start, row.end)
        for row in witness.facts
    )
    return _Side(witness.id, witness.title, witness.topic, witness.created_at, facts)
