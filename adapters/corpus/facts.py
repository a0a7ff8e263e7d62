"""Simple facts of a text (a subject, a sentence frame, a value), and which of two texts' disagree.

By the rules of :mod:`adapters.corpus.reading`, with no model: "Marlow Lighthouse was built in 1874"
is the subject "marlow lighthouse", the frame "built", the slot "in a number" and the value "1874".
Two facts disagree when subject and slot are the same, the frames nearly so, and the values differ.

Not covered: English only; what is not said by a name, number or date; paraphrases with other words;
relations that have several true values ("It won in 1994") unless one of the texts shows it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from adapters.corpus.instructions import sentence_bounds
from adapters.corpus.reading import Reading, Sentence, read_text
from adapters.corpus.spans import Span, SpanKind
from adapters.corpus.words import FUNCTION_WORDS

LEAST_OVERLAP = 0.5
"""Share of the frames' words in common (Jaccard) from which two facts say the same thing."""
_WORD = re.compile(r"[^\W_]+")
_ARTICLE = re.compile(r"(?:the|an?) ", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[,;:](?: and| but)? (?P<relative>(?:who|whose|whom|which|where|when)\b)?"
    r"| (?:and|but) (?=(?:its|his|her|their|it|he|she|they|the|was|were|is|are|has|had)\b)"
)
_MOST_CHARS = 120
_MOST_SLOT_CHARS = 40


@dataclass(frozen=True, slots=True)
class Fact:
    """What a sentence says of its subject: the sentence is `text[start:end]`."""

    subject: str
    """In lower case, without article."""
    slot: str
    """The word before the value, and what kind of value it is."""
    frame: tuple[str, ...]
    """The sentence's other words that carry meaning, sorted."""
    value: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FactSheet:
    """The facts of a document, and what it is about (in lower case, without article)."""

    facts: tuple[Fact, ...]
    topic: str | None


@dataclass(frozen=True, slots=True)
class PlacedSentence:
    """A sentence that names its subject, as questions are made of it, and where it stands."""

    text: str
    start: int
    end: int


def read_facts(chunks: Sequence[str], *, most: int) -> FactSheet:
    """The facts of the chunks in order, at most `most`; places count from the first chunk's start."""
    facts: list[Fact] = []
    topics: Counter[str] = Counter()
    offset = 0
    for chunk in chunks:
        if len(facts) >= most:
            break
        reading = read_text(chunk)
        if reading.topic:
            topics[subject_key(reading.topic)] += len(reading.sentences)
        facts += _facts_of(chunk, reading, offset)
        offset += len(chunk)
    topic = next((name for name, _ in topics.most_common(1)), None)
    return FactSheet(tuple(facts[:most]), topic)


def placed_sentences(chunks: Sequence[str]) -> list[PlacedSentence]:
    """The sentences of the chunks in order; places count from the first chunk's start."""
    found: list[PlacedSentence] = []
    offset = 0
    for chunk in chunks:
        found += [
            PlacedSentence(sentence.text, offset + start, offset + end)
            for sentence, start, end in _placed(chunk, read_text(chunk))
        ]
        offset += len(chunk)
    return found


def disagreements(newer: Iterable[Fact], older: Iterable[Fact]) -> list[tuple[Fact, Fact]]:
    """Pairs of facts that cannot both be true, one pair a sentence of `newer` at most.

    A subject that has several values of one slot in either text can have several: it is left out.
    """
    ours, theirs = _by_place(newer), _by_place(older)
    found: dict[int, tuple[Fact, Fact]] = {}
    for place in (place for place in ours if place in theirs):  # in the order of the text
        for fact in ours[place]:
            same = [other for other in theirs[place] if overlap(fact, other) >= LEAST_OVERLAP]
            more = [other for other in ours[place] if overlap(fact, other) >= LEAST_OVERLAP]
            values = {value_key(other.value) for other in same}
            is_single = len(values) == 1 and len({value_key(other.value) for other in more}) == 1
            if is_single and not _agree(value_key(fact.value), values.pop()):
                found.setdefault(fact.start, (fact, same[0]))
    return [found[start] for start in sorted(found)]


def overlap(one: Fact, other: Fact) -> float:
    """How much of the two frames is the same: 0 to 1."""
    ours, theirs = {*one.frame}, {*other.frame}
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 0.0


def subject_key(name: str) -> str:
    """A name as facts and titles are compared by it."""
    return _ARTICLE.sub("", " ".join(_WORD.findall(name.casefold())), count=1)[:_MOST_CHARS]


def value_key(value: str) -> str:
    """A value as it is compared."""
    return " ".join(_WORD.findall(value.casefold().replace(",", "")))


def _agree(one: str, other: str) -> bool:
    """Whether one value is the other, or a part of it ("Renk", "Tobias Renk")."""
    ours, theirs = {*one.split()}, {*other.split()}
    return ours <= theirs or theirs <= ours


def _by_place(facts: Iterable[Fact]) -> dict[tuple[str, str], list[Fact]]:
    places: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        places.setdefault((fact.subject, fact.slot), []).append(fact)
    return places


def _facts_of(chunk: str, reading: Reading, offset: int) -> list[Fact]:
    return [
        fact
        for sentence, start, end in _placed(chunk, reading)
        for fact in _facts_in(sentence, reading, offset + start, offset + end)
    ]


def _placed(chunk: str, reading: Reading) -> Iterator[tuple[Sentence, int, int]]:
    """The sentences that are found again in the chunk, each with its start and end there."""
    place = 0
    for sentence in reading.sentences:
        bounds = _bounds(chunk, sentence.original, place)
        if bounds is not None:
            yield sentence, *bounds
            place = bounds[1]


def _bounds(chunk: str, sentence: str, place: int) -> tuple[int, int] | None:
    """Where in the chunk a sentence stands, whose white space and marks the reading took out."""
    words = _WORD.findall(sentence)
    if not words:
        return None
    start = chunk.find(words[0], place)
    if start < 0:
        return None
    last = start
    for word in words:
        at = chunk.find(word, last)
        if at < 0:
            return None
        last = at + len(word)
    end = next((end for _, end in sentence_bounds(chunk[last:])), 0)
    return start, last + end


def _facts_in(sentence: Sentence, reading: Reading, start: int, end: int) -> list[Fact]:
    subject = _subject_of(sentence)
    name = subject.text if subject else reading.topic
    if name is None:
        return []
    found = []
    for first, last in _clauses(sentence):
        spans = [span for span in sentence.spans if first <= span.start < last]
        frame = _frame(sentence.text[first:last], first, spans)
        found += [
            Fact(subject_key(name), _slot(sentence, span), frame, _value(span), start, end)
            for span in spans
            if frame and subject_key(span.text) != subject_key(name)
        ]
    return found


def _clauses(sentence: Sentence) -> list[tuple[int, int]]:
    """Start and end of the parts that say something of the subject; "who ..." says it of another."""
    borders = [
        match
        for match in _CLAUSE.finditer(sentence.text)
        if all(not span.start < match.start() < span.end for span in sentence.spans)
    ]
    starts = [0, *(border.end() for border in borders)]
    ends = [*(border.start() for border in borders), len(sentence.text)]
    is_own = [True, *(not border["relative"] for border in borders)]
    return [(first, last) for first, last, own in zip(starts, ends, is_own, strict=True) if own]


def _subject_of(sentence: Sentence) -> Span | None:
    """The name that the sentence begins with, or that its first words lead to ("The keeper of X")."""
    for span in sentence.spans:
        if span.kind is SpanKind.NAME:
            before = sentence.text[: span.start]
            is_near = re.fullmatch(
                r"(?:(?:The|An?|In|At) )?(?:[a-z-]+ ){0,2}(?:of |at )?(?:the )?", before
            )
            return span if is_near or not before else None
    return None


def _frame(clause: str, first: int, spans: Sequence[Span]) -> tuple[str, ...]:
    """The words of the clause that are no name, number or date and carry meaning."""
    rest, last = [], 0
    for span in spans:
        rest.append(clause[last : span.start - first])
        last = span.end - first
    words = {word.casefold() for word in _WORD.findall(" ".join([*rest, clause[last:]]))}
    return tuple(sorted(word for word in words - FUNCTION_WORDS if len(word) > 1))


def _value(span: Span) -> str:
    return span.text[:_MOST_CHARS]


def _slot(sentence: Sentence, span: Span) -> str:
    before = _WORD.findall(sentence.text[: span.start])
    lead = next(
        (word for word in reversed(before) if word.casefold() not in ("the", "a", "an")), ""
    )
    kind = "name" if span.kind is SpanKind.NAME else "number"
    return f"{lead.casefold()[:_MOST_SLOT_CHARS]} {kind}"
