"""Does a text bear out the names, numbers and dates of a statement? By rule, with no model.

Small models invent freely, and an invention is mostly a name or a number. Not covered: wrong
relations between things that the text does name, and names written in lower case. Where capitals
do not tell whether a sentence's first word is a name, the rule leans towards "name" and drops more
than it must.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from enum import StrEnum

from adapters.corpus.reading import read_text
from adapters.corpus.sentences import split_sentences
from adapters.corpus.spans import SpanKind, find_spans, known_names
from adapters.corpus.words import FUNCTION_WORDS, NUMBER_WORDS

_MONTHS = {
    month: number
    for number, month in enumerate(
        [
            "january",
            "february",
            "march",
            "april",
            "may",
            "june",
            "july",
            "august",
            "september",
            "october",
            "november",
            "december",
        ],
        start=1,
    )
}
_TENS = {word: 10 * n for n, word in enumerate(NUMBER_WORDS[18:26], start=2)}
_UNITS = {"one": 1} | {word: n for n, word in enumerate(NUMBER_WORDS[:18], start=2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_NUMERALS = _UNITS | _TENS | _SCALES
_THOUSANDS = re.compile(r"(?<=\d)[,'\u2019\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"(?<!\d)\d{1,3}(?: \d{3})+(?!\d)")
_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_SPELLED = re.compile(
    rf"\b(?:{'|'.join(_NUMERALS)})(?:(?:[ -]| and )(?:{'|'.join(_NUMERALS)}))*\b", re.IGNORECASE
)
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_FIRST_WORD = re.compile(r"[\"'\u201c\u2018(]*(?P<word>[^\W\d_][\w'\u2019-]*)(?: (?P<next>\S+))?")
_IS_COMMON = re.compile(r"(?:s|ing|ly|ed|tion|sion|ity|ment|ness)$")
_LEADING_NUMBERS = re.compile(r"^(?:\d+ )+")  # of "In 1874 Ada Penhallow"; they are looked up apart
_SINGULAR_VERBS = frozenset({"is", "was", "has", "does"})
_PREPOSITIONS = frozenset({"as", "at", "by", "for", "from", "in", "on", "to", "with"})
_CAPITALS = re.compile(r"(?<=\s)[\"'\u201c\u2018(]*(?P<word>[^\W\d_a-z][\w'\u2019-]*)")


class Ungrounded(StrEnum):
    """What a statement has that the text has not."""

    NAME = "a name that is not in the text"
    NUMBER = "a number that is not in the text"
    DATE = "a date that is not in the text"


class Source:
    """A text that statements are held against; title and text count alike."""

    def __init__(self, text: str) -> None:
        self._words = f" {_folded(text)} "
        # As it reads with its subjects named, "its pump" also bears out "the harbour's pump".
        resolved = "\n\n".join(sentence.text for sentence in read_text(text).sentences)
        self._resolved = f" {_folded(resolved)} "
        self._numbers = frozenset(_numbers_of(text))
        self._dates = tuple(_dates_of(text))

    def fault_of(self, statement: str) -> Ungrounded | None:
        """The first thing in the statement that the text does not have, or None."""
        dates = list(_dates_of(statement))
        if any(not any(date <= known for known in self._dates) for date in dates):
            return Ungrounded.DATE
        # The text may have a date in other words, "3 May" for "05-03".
        dated = {part.partition(" ")[2] for date in dates for part in date}
        if not (self._numbers | dated).issuperset(_numbers_of(statement)):
            return Ungrounded.NUMBER
        if not all(map(self._names, _names_of(statement))):
            return Ungrounded.NAME
        return None

    def _names(self, name: str) -> bool:
        """Whether the text names it, whole, or each part of "the Museum and the Tower"."""
        return all(
            f" {part} " in self._words or f" {part} " in self._resolved
            for piece in re.split(r" and (?:the )?", _LEADING_NUMBERS.sub("", name))
            if (part := _folded(piece))
        )


def _folded(text: str) -> str:
    """Words in lower case, one space apart, without punctuation, articles and possessive "'s"."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", re.sub(r"['\u2019](?:s\b)?", "", plain))
    return " ".join(word for word in words if word not in {"a", "an", "the"})


def _numbers_of(text: str) -> Iterator[str]:
    """Every number as digits, spelled ones too; "1850s" counts as 1850, "3rd" as 3."""
    plain = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text))
    plain = _SPACED_THOUSANDS.sub(lambda match: match.group().replace(" ", ""), plain)
    for match in _DIGITS.finditer(plain):
        yield _canonical(match.group())
    for match in _SPELLED.finditer(plain):
        if match.group().casefold() != "one":  # mostly no count: "one of the"
            yield str(_value_of(re.split(r"[ -]", match.group().casefold())))


def _canonical(digits: str) -> str:
    whole, _, fraction = digits.partition(".")
    kept = fraction.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{kept}" if kept else "")


def _value_of(words: Iterable[str]) -> int:
    """What a spelled number says: "two hundred and five thousand" is 205000."""
    total = current = 0
    for word in words:
        if word in _SCALES:
            current = max(current, 1) * _SCALES[word]
            if _SCALES[word] > 100:
                total, current = total + current, 0
        else:
            current += _NUMERALS.get(word, 0)
    return total + current


def _dates_of(text: str) -> Iterator[frozenset[str]]:
    """Each date as its known parts: `{"day 3", "month 5", "year 1902"}` or fewer."""
    for span in find_spans(text, ()):
        if span.kind is SpanKind.DATE:
            yield frozenset(_date_parts(span.text))


def _date_parts(date: str) -> Iterator[str]:
    if _ISO_DATE.fullmatch(date):
        year, month, day = map(int, date.split("-"))
        yield from (f"year {year}", f"month {month}", f"day {day}")
        return
    for word in re.findall(r"[A-Za-z]+|\d+", date):
        if word.isdigit():
            yield f"{'year' if len(word) == 4 else 'day'} {int(word)}"
        elif number := _MONTHS.get(word.casefold()):
            yield f"month {number}"


def _names_of(text: str) -> Iterator[str]:
    """Runs of capitals, quoted words, and first words that are likely a name."""
    sentences = split_sentences(text) or [text]
    for sentence in sentences:
        for span in find_spans(sentence, known_names([sentence])):
            if span.kind is SpanKind.NAME:
                yield span.text
        # Single capitals that no run of the rules holds: "I", "Plan B", other alphabets.
        for match in _CAPITALS.finditer(sentence):
            if match["word"][0].isupper() and match["word"].casefold() not in FUNCTION_WORDS:
                yield match["word"]
        first = _FIRST_WORD.match(sentence)
        if first and _is_likely_name(first["word"], first["next"] or ""):
            yield first["word"]


def _is_likely_name(word: str, after: str) -> bool:
    """Whether the first word of a sentence is a name, as far as its form and the next one tell."""
    lower = word.casefold()
    if lower in FUNCTION_WORDS or lower in _NUMERALS or not word[:1].isupper():
        return False
    if after in _PREPOSITIONS:  # "Built in 1874, ..."
        return False
    return after in _SINGULAR_VERBS or _IS_COMMON.search(lower) is None
