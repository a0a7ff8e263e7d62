"""Exam questions out of real traffic: what users ask of the model and a document answers.

The user's question is taken; the answer never is. It comes from the base model, shown the document's
own chunk, and counts only where it is a name, number or date of a sentence that is about the question.
A user so decides what is asked, and never what is right; how much one user decides is capped.

Not covered: questions that need more than one chunk, and answers that are no name, number or date.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from adapters.corpus.reading import Reading, read_text
from adapters.corpus.words import FUNCTION_WORDS
from adapters.evaluation.bank import Bank
from adapters.evaluation.open_book import open_book
from adapters.evaluation.question_checks import is_foreign
from adapters.rewards.answers import is_correct, normalise
from adapters.sampling import Sampler
from adapters.spec import ExamSpec
from adapters.types import (
    ChatMessage,
    ExamItem,
    ItemKind,
    SamplingParams,
    SourceDocument,
    build_item,
)

_MOST_CHARS = 200
_LEAST_WORDS, _MOST_WORDS = 3, 30
_MOST_REPLY_WORDS = 20
_REPLY_TOKENS = 32
_LEAST_SHARED = 2
_ASKS = re.compile(
    r"(?:who|whom|whose|what|when|where|which|why|how|in (?:what|which)|is|are|was|were|do|does|did"
    r"|can|could|has|have|had|will|would)\b",
    re.IGNORECASE,
)
_COMMANDS = re.compile(
    r"\b(?:ignore|disregard|forget|override|pretend|memori[sz]e|obey)\b"
    r"|\b(?:you (?:must|should|shall|are now)|from now on|remember (?:that|this|to)|learn that)\b"
    r"|\b(?:answer|reply|respond|say|output|print|write|repeat)\b[^?]*\b(?:with|only|exactly)\b"
    r"|\b(?:correct|right|true|new) answer (?:is|to)\b|\b(?:system|hidden) prompt\b"
    r"|\b(?:above|previous|these|following|my) instructions?\b"
    r"|<\|?\w+\|?>|\[/?inst\]|```",
    re.IGNORECASE,
)
"""What speaks to the model, or to whoever learns from it, and asks for nothing."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as somebody has asked it."""

    interaction_id: str
    asker: str
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """An exam item, and where its question was asked."""

    item: ExamItem
    interaction_id: str


@dataclass(slots=True)
class Quota:
    """How many questions of traffic documents may have, and have."""

    spec: ExamSpec
    by_asker: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By document and asker."""

    def has_room(self, document_id: str, asker: str) -> bool:
        """Whether one more by this asker on this document is within both bounds."""
        whole = sum(count for (one, _), count in self.by_asker.items() if one == document_id)
        by_asker = self.by_asker[document_id, asker]
        return whole < self.spec.traffic_items and by_asker < self.spec.traffic_items_per_user

    def take(self, document_id: str, asker: str) -> None:
        self.by_asker[document_id, asker] += 1


def question_in(messages: Sequence[Mapping[str, object]]) -> str | None:
    """The question that a conversation begins with, where it is nothing but one.

    It is the first turn, one short line, reads as a question, and orders nobody to do anything.
    """
    said = [message for message in messages if message.get("role") not in ("system", "developer")]
    if len(said) != 1 or said[0].get("role") != "user":
        return None
    text = (_text_of(said[0].get("content")) or "").strip()
    words = text.split()
    if len(text) > _MOST_CHARS or not _LEAST_WORDS <= len(words) <= _MOST_WORDS:
        return None
    if "\n" in text or "\r" in text or _COMMANDS.search(text):
        return None
    is_question = text.endswith("?") or _ASKS.match(text) is not None
    return text if is_question and text.count("?") <= 1 else None


def find_items(
    asked: Iterable[Asked],
    documents: Sequence[SourceDocument],
    *,
    base: Sampler,
    banks: Mapping[str, Bank],
    is_taught: Callable[[str, str], bool],
    quota: Quota,
    dropped: Counter[str],
) -> list[Found]:
    """Items of those questions that a document answers, in the order asked; `banks` and `quota` are
    brought up to date.

    `banks` hold the questions that each document has. `is_taught` says whether a lesson may have
    taught a prompt (document id, prompt). `dropped` counts what was refused, by reason.

    Raises:
        SamplingError: the engine failed.
    """
    library = _Library(documents)
    placed: list[tuple[Asked, _Place]] = []
    for question in asked:
        place = library.place_of(question.text)
        if place is None:
            dropped["about no document"] += 1
        elif is_taught(place.document.id, question.text):
            dropped["may have been taught"] += 1
        else:
            placed.append((question, place))
    if not placed:
        return []
    replies = base.chat(
        [_open_book(question.text, place) for question, place in placed],
        SamplingParams(max_tokens=_REPLY_TOKENS, stop=("\n",)),
    )
    found: list[Found] = []
    for (question, place), reply in zip(placed, replies, strict=True):
        document_id = place.document.id
        answer = _grounded(reply, question.text, place)
        if answer is None:
            dropped["not answered by the text"] += 1
            continue
        item = build_item(ItemKind.TRAFFIC, document_id, prompt=question.text, answers=(answer,))
        if banks[document_id].repeats(item):
            dropped["asked already"] += 1
        elif not quota.has_room(document_id, question.asker):
            dropped["over the quota"] += 1
        else:
            banks[document_id].add(item)
            quota.take(document_id, question.asker)
            found.append(Found(item, question.interaction_id))
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a question may be answered."""

    document: SourceDocument
    chunk: str
    shared: frozenset[str]
    """Telling words that question and document have in common."""


class _Shelf:
    """One document with the words that tell it from others."""

    def __init__(self, document: SourceDocument) -> None:
        self.document = document
        self.words = _words(document.text)

    @cached_property
    def named(self) -> frozenset[str]:
        """Words of its names, and its numbers."""
        reading = read_text(self.document.rule_text)
        spans = (span.text for sentence in reading.sentences for span in sentence.spans)
        return _words(" ".join((*reading.names, *spans)))


class _Library:
    """Finds the document that a question is about by the telling words that both have."""

    def __init__(self, documents: Sequence[SourceDocument]) -> None:
        self._shelves = [_Shelf(document) for document in documents]
        in_documents = Counter(word for shelf in self._shelves for word in shelf.words)
        most = max(1, len(self._shelves) // 10)
        self._common = {word for word, count in in_documents.items() if count > most}

    def place_of(self, question: str) -> _Place | None:
        """The document that has most of the question's telling words; None where it has too few,
        no name or number among them, or another has as many.
        """
        telling = _words(question) - self._common
        ranked = sorted(
            ((len(telling & shelf.words), shelf) for shelf in self._shelves),
            key=lambda pair: -pair[0],
        )
        best = [shelf for count, shelf in ranked if count == ranked[0][0]]
        if not ranked or ranked[0][0] < _LEAST_SHARED or len(best) > 1:
            return None
        [shelf] = best
        shared = telling & shelf.words
        if not shared & shelf.named:
            return None
        chunks = [chunk for chunk in shelf.document.chunks if chunk.strip()]
        if not chunks:
            return None
        chunk = max(chunks, key=lambda chunk: len(shared & _words(chunk)))
        return _Place(shelf.document, chunk, shared)


def _grounded(reply: str, question: str, place: _Place) -> str | None:
    """The one name, number or date of the text that a short reply gives and the question does not;
    None where there is none, or it stands in none of the sentences that have most in common with the question.
    """
    reading = read_text(place.chunk)
    reply = reply.strip()
    words = reply.split()
    if not 0 < len(words) <= _MOST_REPLY_WORDS:
        return None
    # The first word's capital says nothing where it is a word of grammar.
    is_grammar = words[0].casefold() in FUNCTION_WORDS
    if is_foreign(reply if is_grammar else f". {reply}", reading):
        return None
    given = {
        normalise(text): text
        for text in _spans_about(reading, place.shared)
        if is_correct(reply, [text]) and not is_correct(question, [text])
    }
    widest = [text for key, text in given.items() if not _is_within_another(key, given)]
    return widest[0] if len(widest) == 1 else None


def _spans_about(reading: Reading, shared: frozenset[str]) -> list[str]:
    """What the sentences name that have most in common with the question."""
    likeness = [len(_words(sentence.text) & shared) for sentence in reading.sentences]
    most = max(likeness, default=0)
    return [
        span.text
        for sentence, count in zip(reading.sentences, likeness, strict=True)
        if count == most > 0
        for span in sentence.spans
    ]


def _is_within_another(key: str, keys: Iterable[str]) -> bool:
    return any(key != other and f" {key} " in f" {other} " for other in keys)


def _words(text: str) -> frozenset[str]:
    """Normalised words that are no mere grammar."""
    return frozenset(
        word
        for word in normalise(text).split()
        if word not in FUNCTION_WORDS and (len(word) > 2 or word.isdigit())
    )


def _open_book(question: str, place: _Place) -> list[ChatMessage]:
    return [{"role": "user", "content": open_book(place.chunk.strip(), question)}]


def _text_of(content: object) -> str | None:
    """The words of a message; None where it holds anything but text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        return None
    part = content[0]
    text = part.get("text")
    is_text = part.get("type") in ("text", "input_text") and isinstance(text, str)
    return text if is_text else None
