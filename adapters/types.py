"""The values that pass between the parts of `adapters`; plain data, free of torch and pydantic."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

ChatMessage: TypeAlias = dict[str, str]
"""One message of a conversation: `{"role": ..., "content": ...}`."""

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) while a long stage advances."""

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""Anything `json.dumps` takes."""


class ItemKind(StrEnum):
    """Where an exam item comes from."""

    USER = "user"
    """Posted by the user together with the document."""
    MODEL = "model"
    """Written by the served model while it saw the text, and checked against the text."""
    CLOZE = "cloze"
    """A sentence of the text cut before a name or number, made by rule."""
    GENERAL = "general"
    """From the general suite; belongs to no document."""


class EditKind(StrEnum):
    """The form of a self-edit."""

    PASSAGE = "passage"
    """A chunk of the document as it stands."""
    SENTENCE = "sentence"
    """One sentence with its subject named."""
    CLOZE = "cloze"
    """A sentence cut before a name or number, to be completed."""
    QUESTION = "question"
    """A question about the text and its answer."""
    REPLAY = "replay"
    """A general prompt answered by the base model, against forgetting."""


class MediaType(StrEnum):
    """The forms in which a document may come."""

    TEXT = "text/plain"
    MARKDOWN = "text/markdown"
    HTML = "text/html"
    PDF = "application/pdf"
    DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """One source of text to learn; the chunks cover the text exactly."""

    id: str
    title: str
    text: str
    chunks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExamItem:
    """One question asked closed-book; any of `answers` is right."""

    id: str
    kind: ItemKind
    document_id: str | None
    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SelfEdit:
    """One piece of training text.

    With `prompt` None every token of `text` is trained; otherwise `prompt` is a user message and
    only the reply, `text`, is trained.
    """

    kind: EditKind
    document_id: str | None
    prompt: str | None
    text: str
    written_by: Literal["model", "rule"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to generate; temperature 0 is greedy."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


def build_item(
    kind: ItemKind, document_id: str | None, *, prompt: str, answers: tuple[str, ...]
) -> ExamItem:
    """An exam item under the id that its content gives it: the same item, the same id."""
    content = "\0".join((kind.value, document_id or "", prompt))
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return ExamItem(digest, kind, document_id, prompt, answers)
