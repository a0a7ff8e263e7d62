"""What can be asked about a text: its sentences, with their subject named, and the names, numbers
and dates in them.

Rules for English prose, of capital letters and digits, with no model. Not covered: other
languages, names written in lower case, pronouns that refer to anything but the last subject.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

_MONTH = (
    "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
)
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTH}(?:,? \d{{4}})?"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?|{_MONTH} \d{{4}}"
    r"|\d{4}-\d{2}-\d{2})\b"
)
_NUMBER_WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million"]
_NUMBER_WORD = rf"(?:{'|'.join(_NUMBER_WORDS)})"
_NUMBER = re.compile(
    r"(?<![\w.,-])(?:[A-Z]{1,4}-?)?\d+(?:[.,:/-]\d+)*(?:(?: \d{2,3})+(?!\w))?[A-Za-z%]{0,2}(?![\w-])"
    rf"|\b{_NUMBER_WORD}(?:[ -]{_NUMBER_WORD})*\b"
)
_WORD = r"[A-Z\u00c0-\u00de][\w\u2019'-]*"
_NAME = re.compile(rf"{_WORD}(?:(?: (?:of|de|von|van|del|di|la|le|for|on|the|and the) )+{_WORD}| {_WORD}| \d+\b)*")
_ABBREVIATIONS = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "st", "no", "vs", "etc", "jr", "sr", "inc", "ltd", "co", "e.g", "i.e", "fig", "vol", "approx", "dept", "mt"]
)
_BOUNDARY = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+(?=[\"'\u201c\u2018(]*[A-Z0-9\u00c0-\u00de])")
_BLOCKS = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*+#]|\d+[.)])\s)")
_MARKUP = re.compile(r"^\s*(?:#{1,6}\s+|[-*+]\s+|\d+[.)]\s+|>\s*)|[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}")
_FUNCTION_WORDS = frozenset(
    ["a", "about", "above", "after", "again", "against", "all", "almost", "also", "although", "always", "among", "an", "and", "another", "any", "are", "around", "as", "at", "be", "because", "been", "before", "behind", "below", "between", "both", "but", "by", "can", "could", "despite", "did", "do", "does", "during", "each", "either", "else", "even", "every", "everyone", "few", "finally", "first", "for", "from", "had", "has", "have", "he", "hence", "her", "here", "hers", "his", "how", "however", "i", "if", "in", "inside", "instead", "into", "is", "it", "its", "itself", "last", "later", "less", "like", "made", "many", "may", "meanwhile", "me", "more", "most", "much", "must", "my", "near", "never", "next", "no", "nobody", "none", "nor", "not", "nothing", "now", "of", "off", "often", "on", "once", "one", "only", "or", "other", "our", "out", "outside", "over", "per", "perhaps", "please", "same", "several", "shall", "she", "should", "since", "so", "some", "soon", "still", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those", "though", "through", "thus", "to", "today", "together", "too", "toward", "under", "unless", "until", "up", "upon", "us", "use", "very", "was", "we", "well", "were", "what", "when", "where", "whether", "which", "while", "who", "whom", "whose", "why", "will", "with", "within", "without", "would", "yes", "yet", "you", "your"]
)
_TITLE = re.compile(r"(?:Mr|Mrs|Ms|Dr|Professor|Prof|Sir|Lady|Captain|King|Queen|Saint)\b")
_POSSESSIVES = frozenset({"its", "his", "their", "her"})
_PRONOUN = re.compile(r"(?P<pronoun>It|He|She|They|Its|His|Her|Their)\b")
_LATE_PRONOUN = re.compile(
    r"(?:In|At|On|After|Before|During|By|From|Since|Until|For)\b[^,.;]{1,40}?,? "
    r"(?P<pronoun>he|she|it|they)\b"
)
_DEFINITE = re.compile(r"\b(?:[Tt]he|[Tt]his) (?P<noun>[a-z][\w-]*)\b")
_SAID_OF = re.compile(
    r"[^,;:]*? (?:is|was|are|were) (?:a|an|the) (?:[a-z-]+ ){0,3}?(?P<noun>[a-z-]+)"
    r"(?= (?:made|built|by|of|in|on|at|for|from|to|with|that|which|who|and|or|near)\b|[,.;])"
)


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
        if subject and re.search(r"\b(?:he|she)\b", original, re.IGNORECASE) and resolved != original:
            people.add(subject)
        if own := _leading_name(resolved, names):
            subject = own
            subjects[own] += 1
        sentences.append(Sentence(resolved, original, ()))
    topic = next((name for name, _ in subjects.most_common()), next(iter(names), None))
    things = articled - people
    sentences = [
        replace(s, spans=tuple(_judged(find_spans(s.text, names), people, things)))
        for s in sentences
    ]
    return Reading(tuple(sentences), names, topic and _with_article(topic, articled))


def split_sentences(text: str) -> list[str]:
    """Sentences without line breaks or markdown marks; headings are left out.

    A full stop after an abbreviation or an initial does not end a sentence.
    """
    sentences: list[str] = []
    for block in _BLOCKS.split(text):
        if block.lstrip().startswith("#"):
            block = block.lstrip().partition("\n")[2]
        flat = " ".join(_MARKUP.sub("", line) for line in block.split("\n"))
        sentences.extend(_split_block(" ".join(flat.split())))
    return sentences


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
    for match in _NAME.finditer(sentence):
        for name, start in _trim(match.group(), match.start()):
            if name in names:
                add(SpanKind.NAME, start, name)
    for match in _NUMBER.finditer(sentence):
        add(SpanKind.NUMBER, match.start(), match.group())
    return sorted(found, key=lambda span: span.start)


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
    """Common nouns that stand for a name: in it ("Museum"), or said of it ("X is a garden pump")."""
    aliases: dict[str, str] = {}
    for name in names:
        words = name.split()
        if len(words) > 1:
            for word in words[1:] if words[0] not in names else words:
                if word.isalpha() and word.istitle():
                    aliases.setdefault(word.casefold(), name)
    for sentence in sentences:
        said = _SAID_OF.match(sentence)
        if said and (name := _leading_name(sentence, names)):
            aliases.setdefault(said["noun"], name)
    return aliases


def _split_block(block: str) -> list[str]:
    sentences: list[str] = []
    start = 0
    for match in _BOUNDARY.finditer(block):
        before = block[start : match.start()].rstrip("\"'\u201d\u2019)")
        last = before.split()[-1].rstrip(".").casefold() if before.split() else ""
        is_initial = before.endswith(".") and len(last) == 1
        if before.endswith(".") and (last in _ABBREVIATIONS or is_initial):
            continue
        sentences.append(block[start : match.end()].strip())
        start = match.end()
    sentences.append(block[start:].strip())
    return [sentence for sentence in sentences if len(sentence.split()) > 2]


def _trim(run: str, start: int) -> list[tuple[str, int]]:
    """The name within a run of capitals, without function words at its ends or a possessive."""
    words = run.split(" ")
    while words and words[0].casefold() in _FUNCTION_WORDS:
        start += len(words[0]) + 1
        words = words[1:]
    while words and words[-1].casefold() in _FUNCTION_WORDS:
        words = words[:-1]
    name = re.sub(r"['\u2019]s$", "", " ".join(words)).rstrip("'\u2019-")
    return [(name, start)] if re.search(r"[A-Z].", name) and not re.fullmatch(_MONTH, name) else []


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
