"""What of a document is taught and asked: all of it but what its findings contain.

An admin's release lifts what the findings contain. What no document may do stays: mark a chat's
turns, hide characters, answer another document's held-out questions, or be without end.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from adapters.corpus.containment import cut, places_of_questions, safe_title
from adapters.corpus.instructions import neutralise
from adapters.corpus.languages import READ_BY_RULE, languages_of
from adapters.redaction import redact_secrets
from adapters.types import ExamItem, SourceDocument
from server.db import Document

_OTHERS_QUESTION = "others_exam"
_BEYOND = "chunks_beyond_lesson"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A document as a run takes it, and how many of its parts are left out, by kind."""

    document: SourceDocument
    counts: Mapping[str, int]


def lesson_of(
    row: Document,
    chunks: Sequence[str],
    *,
    asked_elsewhere: Collection[str],
    most_chunks: int | None,
) -> Lesson:
    """The document without what is contained, and without secrets.

    Args:
        asked_elsewhere: held-out questions about other documents.
        most_chunks: how many chunks a lesson takes, from the beginning; None: all.
    """
    taken = chunks[:most_chunks]
    places: list[tuple[int, int]] = []
    counts: Counter[str] = Counter()
    if row.released_at is None:
        for finding in row.findings or ():
            if finding.get("severity") == "contain" and finding.get("start") is not None:
                places.append((finding["start"], finding["end"]))
                counts[finding["kind"]] += 1
    asked = places_of_questions(taken, asked_elsewhere)
    counts[_OTHERS_QUESTION] += len(asked)
    counts[_BEYOND] += len(chunks) - len(taken)
    kept = [chunk for chunk in cut(taken, [*places, *asked]) if chunk.strip()]
    document = SourceDocument(
        id=row.id,
        title=redact_secrets(neutralise(row.title) if row.released_at else safe_title(row.title)),
        text=redact_secrets("".join(kept)),  # a secret may lie across a border
        chunks=tuple(map(redact_secrets, kept)),
        foreign_chunks=_foreign(row.language, kept),
    )
    return Lesson(document, dict(+counts))


def without_questions_of_others(
    document: SourceDocument, exam: Iterable[ExamItem]
) -> SourceDocument:
    """The document without the exam's questions about others, as they stand in it, and what follows
    them: those that came to the exam after `lesson_of` are not in it either.
    """
    asked = {item.prompt for item in exam if item.document_id not in (None, document.id)}
    places = places_of_questions(document.chunks, asked)
    if not places:
        return document
    chunks = tuple(cut(document.chunks, places))
    return dataclasses.replace(document, text="".join(chunks), chunks=chunks)


def _foreign(language: str | None, chunks: Sequence[str]) -> frozenset[int]:
    """The chunks that the rules cannot read. One that says too little is in the main language."""
    told = languages_of(chunks)
    main = language or READ_BY_RULE
    return frozenset(at for at in range(len(chunks)) if told.get(at, main) != READ_BY_RULE)
