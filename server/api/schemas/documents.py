"""Documents and the questions about them."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from adapters.types import Grader
from server.api.schemas.base import STORABLE, Body, Line, Title, View

Answer = Annotated[
    str,
    StringConstraints(max_length=2000, pattern=r"\S"),
    STORABLE,
    AfterValidator(lambda text: text.strip(" \t") if "\n" not in text else text),
]
"""One that counts as right; line breaks stay, for grids."""

_FIGURES = re.compile(
    r"[-+\u2212]?(?:(?:\d{1,3}(?:[,' ]\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d{1,2})?\s?%?",
    re.ASCII,
)
"""One number as the grader reads it: of "1,5" it would read 1."""


class QuestionBody(Body):
    question: Line
    answers: list[Answer] = Field(min_length=1, max_length=20)
    """Any of these counts as right."""
    grader: Literal["match", "numeric", "exact", "judge"] = "match"
    """How a reply is judged; `judge` is the base model, where it can be believed."""

    @model_validator(mode="after")
    def _can_be_right(self) -> Self:
        is_by_words = self.grader in (Grader.MATCH.value, Grader.JUDGE.value)
        if is_by_words and not any(char.isalnum() for answer in self.answers for char in answer):
            raise ValueError("no answer holds a letter or a digit; the grader exact compares signs")
        for answer in self.answers:
            if self.grader == Grader.NUMERIC.value and not _FIGURES.fullmatch(answer.strip()):
                raise ValueError(
                    f"the answer {answer[:50]!r} is not one number in figures, such as 4,312 or 0.5"
                )
        return self


class DocumentBody(Body):
    text: str
    """The document, as text."""
    title: Title | None = None
    """Its title; the first line when left out."""
    questions: list[QuestionBody] = Field(default=[], max_length=500)
    """Questions about it, only ever asked in exams and never trained on."""


class QuestionView(View):
    id: str
    document_id: str
    kind: str
    """user, traffic, model, cloze."""
    split: str
    """exam: only ever asked. train: left to lessons."""
    question: str
    answers: list[str]
    grader: str
    interaction_id: str | None
    """Where a question from traffic was asked."""
    created_at: datetime


class QuestionListing(View):
    data: list[QuestionView]
    """In the order sent, each once."""
    new: int
    """How many of them were not here already."""


class QuestionPage(View):
    data: list[QuestionView]
    next: str | None
    """Cursor for `after`; null on the last page."""


class JudgeView(View):
    """How far a base model agrees with verdicts that are known."""

    judge: str
    """Hash of the base model, the prompt, the known verdicts and the thresholds."""
    cases: int
    agreed: int
    false_right: int
    """Wrong replies that it called right."""
    false_wrong: int
    is_trusted: bool
    """Whether its verdicts count; else its questions are graded by match."""
    created_at: datetime


class JudgeListing(View):
    data: list[JudgeView]


class BatchBody(Body):
    """A form with files; the fields beside them are for a form with one file."""

    file: list[bytes] = Field(min_length=1, max_length=100)
    """Plain text, Markdown, HTML, PDF or DOCX; the field may be repeated."""
    title: Title | None = None
    questions: str | None = None
    """A JSON list like ``questions`` of a document."""


class FindingView(View):
    kind: str
    severity: str
    """`refuse`, `quarantine`, `contain` (the part is left out of lessons and exams) or `note`."""
    detail: str
    """What is wrong, and what can be done."""
    chunk: int | None = None
    start: int | None = None
    """With `end`, the part at fault: characters of the text."""
    end: int | None = None
    document: str | None = None
    """Another document that it is about."""


class DocumentView(View):
    id: str
    owner: str | None
    title: str
    filename: str | None
    media_type: str
    state: str
    error: str | None
    """Why it is unreadable, and what can be done."""
    language: str | None
    """ISO 639-1 code of what it is mostly written in; null where nothing could be told."""
    findings: list[FindingView]
    """What is wrong with it, and what follows."""
    released_at: datetime | None
    """When an admin let it be learnt in spite of its findings."""
    near_duplicate_of: str | None
    """An earlier document that says nearly the same; this one is learnt in its place."""
    replaced_by: str | None
    """A later one that says nearly the same and is learnt in its place."""
    content_hash: str
    size_bytes: int
    chunks: int
    exam_questions: int
    versions: list[str]
    """Versions that were trained on it."""
    created_at: datetime
    deleted_at: datetime | None
    """When what it says was forgotten; the row stays for its versions."""


class RefusedView(View):
    index: int
    """Its place among the files, from 0."""
    filename: str | None
    error: dict[str, Any]
    """As in an error's envelope."""


class BatchView(View):
    data: list[DocumentView]
    """The files that were taken, in order."""
    new: int
    """How many of them were not here already."""
    errors: list[RefusedView]


class ChunkView(View):
    position: int
    text: str
