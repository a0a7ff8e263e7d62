"""A text as its sentences, each with its subject named, and what the text is about.

Not covered: pronouns that refer to anything but the last subject, and a "she" deep in a sentence.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from adapters.corpus.sentences import split_sentences
from adapters.corpus.spans import Span, SpanKind, find_spans, known_names

_TITLE = re.compile(r"(?:Mr|Mrs|Ms|Dr|Professor|Prof|Sir|Lady|Captain|King|Queen|Saint)\b")
_POSSESSIVES = frozenset({"its", "his", "their", "her"})
_PRONOUN = re.compile(r"(?P<pronoun>It|He|She|They|Its|His|Her|Their)\b")
_LATE_PRONOUN = re.compile(
    r"(?:In|At|On|After|Before|During|By|From|Since|Until|For)\b[^,.;]{1,40}?"
    r"(?:, (?=(?:it|they)\b)|,? (?=(?:he|she)\b))(?P<pronoun>he|she|it|they)\b"
)
_DEFINITE = re.compile(r"\b(?:[Tt]he|[Tt]his) (?P<noun>[a-z][\w-]*)\b")
_SAID_OF = re.compile(
    r"[^,;:]*? (?:is|was|are|were) (?:a|an|the) (?:[a-z-]+ ){0,3}?(?P<noun>[a-z-]+)"
    r"(?= (?:made|built|by|of|in|on|at|for|from|to|with|that|which|who|and|or|near)\b|[,.;])"
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence that can stand alone: `text` names its subject, which `original` may not."""

    text: str
    original: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in a text: its sentences in order, its names by frequency, its topic.

    The topic is the name that most sentences are about, with its article; None if there is none.
    """

    sentences: tuple[Sentence, ...]
    names: tuple[str, ...]
    topic: str | None


def read_text(text: str) -> Reading:
    """The sentences of a text with their spans, and what the text is about."""
    originals = split_sentences(text)
    names = known_names(originals)
    aliases = _aliases(originals, names)
    articled = {name for name in names if re.search(rf"\b[Tt]he {re.escape(name)}\b", text)}
    people = _people(text, names)
    sentences: list[Sentence] = []
    subjects: Counter[str] = Counter()
    subject: str | None = None
    for original in originals:
        resolved = resolve_subject(original, subject, aliases=aliases, articled=articled)
        if (
            subject
            and re.search(r"\b(?:he|she)\b", original, re.IGNORECASE)
            and resolved != original
        ):
            people.add(subject)
        if own := _leading_name(resolved, names):
            subject = own
            subjects[own] += 1
        sentences.append(Sentence(resolved, original, ()))
    named_most = [name for name, _ in subjects.most_common(1)]
    topic = next(iter((*named_most, *names)), None)
    things = articled - people
    sentences = [
        replace(s, spans=tuple(_judged(find_spans(s.text, names), people, things)))
        for s in sentences
    ]
    topic = _with_article(topic, articled) if topic else None
    return Reading(tuple(sentences), names, topic)


def resolve_subject(
    sentence: str, subject: str | None, *, aliases: dict[str, str], articled: set[str]
) -> str:
    """The sentence with its first pronoun or "the museum" replaced by what it refers to.

    A leading pronoun, or one after a short opening such as "In 1938", takes `subject`; "the
    museum" takes the name that `aliases` has for "museum". Names in `articled` get their "the".
    """
    pronoun = _PRONOUN.match(sentence) or _LATE_PRONOUN.match(sentence)
    if pronoun and subject:
        word = pronoun["pronoun"]
        name = _with_article(subject, articled)
        if word.casefold() in _POSSESSIVES:
            name += "'" if name.endswith("s") else "'s"
        if pronoun.start("pronoun") == 0:
            name = name[0].upper() + name[1:]
        return sentence[: pronoun.start("pronoun")] + name + sentence[pronoun.end("pronoun") :]
    for definite in _DEFINITE.finditer(sentence):
        name = aliases.get(definite["noun"], "")
        if name and name not in sentence:
            the = "The " if definite.start() == 0 else "the "
            name = the + name if name in articled else name
            return sentence[: definite.start()] + name + sentence[definite.end() :]
    return sentence


def _aliases(sentences: Iterable[str], names: tuple[str, ...]) -> dict[str, str]:
    """Nouns that stand for a name: in it ("Museum"), or said of it ("X is a garden pump")."""
    aliases: dict[str, str] = {}
    for name in names:
        head = name.partition(" of ")[0].split()[-1]
        if head != name and head.isalpha():
            aliases.setdefault(head.casefold(), name)
    for sentence in sentences:
        said = _SAID_OF.match(sentence)
        if said and (subject := _leading_name(sentence, names)):
            aliases.setdefault(said["noun"], subject)
    return aliases


def _leading_name(sentence: str, known: tuple[str, ...]) -> str | None:
    """The known name that a sentence begins with, after an article."""
    for name in sorted(known, key=len, reverse=True):
        if re.match(rf"(?:The |A |An )?{re.escape(name)}(?!['\u2019]s)\b", sentence):
            return name
    return None


def _people(text: str, names: tuple[str, ...]) -> set[str]:
    """Names that a relative "who" or a title marks as persons."""
    return {
        name
        for name in names
        if re.search(rf"{re.escape(name)},? (?:who|whose|whom|was born)\b", text)
        or _TITLE.match(name)
    }


def _judged(spans: Iterable[Span], people: set[str], things: set[str]) -> Iterable[Span]:
    """The spans with `is_person` filled in: True, False, or None where nothing tells."""
    for span in spans:
        if span.kind is SpanKind.NAME:
            is_full_name = re.fullmatch(r"[^\W\d]+(?: [^\W\d]+)+", span.text.replace("-", ""))
            unknown = None if is_full_name and " of " not in span.text else False
            is_person = True if span.text in people else unknown
            span = replace(span, is_person=False if span.text in things else is_person)
        yield span


def _with_article(name: str, articled: set[str]) -> str:
    return f"the {name}" if name in articled else name
