"""The names, numbers and dates of a sentence: what can be asked for.

Rules of capital letters and digits, with no model. Not covered: languages other than English, and
names written in lower case.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from adapters.corpus.words import FUNCTION_WORDS, NUMBER_WORDS

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTH}(?:,? \d{{4}})?"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?|{_MONTH} \d{{4}}"
    r"|\d{4}-\d{2}-\d{2})\b"
)
_NUMBER_WORD = rf"(?:{'|'.join(NUMBER_WORDS)})"
_NUMBER = re.compile(
    r"(?<![\w.,-])(?:[A-Z]{1,4}-?)?\d+(?:[.,:/-]\d+)*(?:(?: \d{2,3})+(?!\w))?[A-Za-z%]{0,2}(?![\w-])"
    rf"|\b{_NUMBER_WORD}(?:[ -]{_NUMBER_WORD})*\b"
)
_WORD = r"[A-Z\u00c0-\u00de][\w\u2019'-]*"
_NAME = re.compile(
    rf"{_WORD}(?:(?: (?:of|de|von|van|del|di|la|le|for|on|the|and the) )+{_WORD}| {_WORD}| \d+\b)*"
)
_QUOTED = re.compile(r"(?<=[\"\u201c])[^\"\u201c\u201d]{3,60}?(?=[,.]?[\"\u201d])")


class SpanKind(StrEnum):
    """What sort of thing a span names."""

    DATE = "date"
    """A day or month, with or without its year."""
    NUMBER = "number"
    """A quantity, a year or a code with digits."""
    NAME = "name"
    """A run of capitalised words."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a sentence that can be an answer: `sentence[start:end] == text`.

    `is_person` is None where the text does not tell, and for dates and numbers False.
    """

    kind: SpanKind
    start: int
    end: int
    text: str
    is_person: bool | None = False


def known_names(sentences: Iterable[str]) -> tuple[str, ...]:
    """Every name of the sentences, most frequent first, then in order of appearance.

    A single capitalised word at a sentence's start counts only if it also stands inside one.
    """
    inner: Counter[str] = Counter()
    leading: list[str] = []
    for sentence in sentences:
        for match in _NAME.finditer(sentence):
            for name, start in _trim(match.group(), match.start()):
                if start == 0 and " " not in name and not re.search(r"\d|-[A-Z]", name):
                    leading.append(name)
                else:
                    inner[name] += 1
    inside_words = {word for name in inner for word in name.split()}
    for name in leading:
        if name in inside_words:
            inner[name] += 1
    return tuple(name for name, _ in inner.most_common())


def find_spans(sentence: str, known: Iterable[str]) -> list[Span]:
    """Dates, numbers and names of a sentence in order; they do not overlap."""
    found: list[Span] = []

    def add(kind: SpanKind, start: int, text: str) -> None:
        end = start + len(text)
        if all(end <= s.start or start >= s.end for s in found):
            found.append(Span(kind, start, end, text))

    names = set(known)
    for match in _DATE.finditer(sentence):
        add(SpanKind.DATE, match.start(), match.group())
    for match in _QUOTED.finditer(sentence):
        add(SpanKind.NAME, match.start(), match.group())
    for match in _NAME.finditer(sentence):
        for name, start in _trim(match.group(), match.start()):
            if name in names:
                add(SpanKind.NAME, start, name)
    for match in _NUMBER.finditer(sentence):
        add(SpanKind.NUMBER, match.start(), match.group())
    return sorted(found, key=lambda span: span.start)


def _trim(run: str, start: int) -> list[tuple[str, int]]:
    """The name within a run of capitals, without function words at its ends or a possessive."""
    words = run.split(" ")
    while words and words[0].casefold() in FUNCTION_WORDS:
        start += len(words[0]) + 1
        words = words[1:]
    while words and words[-1].casefold() in FUNCTION_WORDS:
        words = words[:-1]
    name = re.sub(r"['\u2019]s$", "", " ".join(words)).rstrip("'\u2019-")
    return [(name, start)] if re.search(r"[A-Z].", name) and not re.fullmatch(_MONTH, name) else []
