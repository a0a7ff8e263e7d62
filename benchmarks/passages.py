"""The passages of ``squad_passages.json``: a text each, and questions that people asked about it."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.corpus.chunking import chunk_text
from adapters.types import ChatMessage, ExamItem, ItemKind, SourceDocument, build_item
from benchmarks.results import ROOT

DATA_VARIABLE = "EVERLEARN_DATA"
FILE = "squad_passages.json"
DEVELOPMENT = range(16, 48)
"""Passages that settings may be tried on; the first 16 are only ever measured."""

_CHUNK_CHARS = 1200


@dataclass(frozen=True, slots=True)
class Passage:
    """A text and its questions, each with one accepted answer."""

    number: int
    title: str
    text: str
    questions: tuple[tuple[str, str], ...]

    @property
    def id(self) -> str:
        """The document's id."""
        return f"passage-{self.number:02d}"

    def document(self) -> SourceDocument:
        """The text as methods take it."""
        chunks = tuple(chunk_text(self.text, max_chars=_CHUNK_CHARS))
        return SourceDocument(self.id, self.title, self.text, chunks)

    def items(self) -> list[ExamItem]:
        """The questions asked without the text; the title says what they are about, as in SEAL."""
        return [
            build_item(ItemKind.USER, self.id, prompt=self._asked(question), answers=(answer,))
            for question, answer in self.questions
        ]

    def open_book(self) -> list[list[ChatMessage]]:
        """The same questions with the text before them."""
        return [
            [{"role": "user", "content": f"{self.text}\n\n{self._asked(question)}"}]
            for question, _ in self.questions
        ]

    def _asked(self, question: str) -> str:
        return f"About {self.title}: {question}"


def data_file() -> Path:
    """Where the passages are: in the folder that ``EVERLEARN_DATA`` names, else ``../shared/data``."""
    folder = os.environ.get(DATA_VARIABLE)
    return (Path(folder) if folder else ROOT.parent / "shared" / "data") / FILE


def read_passages(path: Path, numbers: Sequence[int]) -> list[Passage]:
    """The passages of these numbers, counted from 0.

    Raises:
        OSError, ValueError: the file is missing, or is not of the form.
        IndexError: it has fewer passages.
    """
    rows = json.loads(path.read_text())
    return [
        Passage(
            number,
            rows[number]["title"],
            rows[number]["context"],
            tuple((each["question"], each["answer"]) for each in rows[number]["questions"]),
        )
        for number in numbers
    ]
