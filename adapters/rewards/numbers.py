"""Is a reply the right number? Compares what it says in figures or in English words.

"12", "twelve" and "12 cranes" are one number, and so are "4,312", "4 312" and "four thousand three
hundred and twelve". A percentage equals the same number with its unit left aside, and the share that it
is: "50 %" is "50" and "0.5". Dates, times of day, ordinals and codes ("QX-88", "1.2.3") are no numbers.

A reply that gives several different numbers, of which the question names none, is no answer.

Not covered: decimal commas, fractions, Roman numerals, other languages.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_RELATIVE_TOLERANCE = 1e-6

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_NO_NUMBER = re.compile(
    rf"\b{_DAY}(?: of)? {_MONTH}(?:,? \d{{4}}\b)?"
    rf"|\b{_MONTH} {_DAY}\b(?:,? \d{{4}}\b)?"
    rf"|\b{_MONTH},? \d{{4}}\b"
    r"|\b\d{4}-\d{1,2}-\d{1,2}\b|\b\d{1,2}([/.])\d{1,2}\1\d{2,4}\b"
    r"|\b\d{1,2}:\d{2}(?::\d{2})?\b"
    r"|\b\d+(?:st|nd|rd|th)\b"
    r"|\b\d+(?:\.\d+){2,}\b"
    r"|\b[a-z]+[-_]?\d[\w-]*",
    re.IGNORECASE,
)
_GAP = "[,'\u2019\u00a0\u2009\u202f ]"
_FIGURES = re.compile(
    r"(?P<sign>(?<![\w.)])[-\u2212])?"
    rf"(?P<digits>\d{{1,3}}(?:{_GAP}\d{{3}})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\w.])\.\d+)"
    r"(?:e(?P<exponent>[+-]?\d{1,2})(?![\w.]))?",
    re.IGNORECASE,
)
ONES = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
TENS = {
    word: 10 * value
    for value, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_SCALE = re.compile(rf"[ -](?P<scale>{'|'.join(SCALES)})s?\b", re.IGNORECASE)
_PERCENT = re.compile(r"\s?(?:%|per ?cent\b)", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:minus|negative) $", re.IGNORECASE)
_ONE = "one"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as a text gives it."""

    value: float
    is_percent: bool = False

    def equals(self, other: "Quantity") -> bool:
        """Whether both say the same, to a relative tolerance of 1e-6."""
        if _is_close(self.value, other.value):
            return True
        if self.is_percent == other.is_percent:
            return False
        percent, plain = (self, other) if self.is_percent else (other, self)
        return _is_close(percent.value / 100, plain.value)


def is_number_right(reply: str, answers: Sequence[str], *, question: str = "") -> bool:
    """Whether the one number that a reply gives equals an accepted one.

    Numbers that the question names are no answers, unless one of them is accepted.
    """
    accepted = [quantity for answer in answers for quantity in quantities_in(answer)[:1]]
    named = [one for one in quantities_in(question) if not _is_among(one, accepted)]
    given = [one for one in quantities_in(reply) if not _is_among(one, named)]
    return bool(given) and all(_is_among(one, accepted) for one in given)


def quantities_in(text: str) -> list[Quantity]:
    """The different numbers of a text, in order; "one" counts only where nothing else does."""
    found: list[Quantity] = []
    lone: list[Quantity] = []
    for quantity, is_lone_one in _read(_NO_NUMBER.sub(" ; ", text)):
        (lone if is_lone_one else found).append(quantity)
    different: list[Quantity] = []
    for quantity in found or lone:
        if not _is_among(quantity, different):
            different.append(quantity)
    return different


def _read(text: str) -> Iterator[tuple[Quantity, bool]]:
    """Each number, and whether it is a mere "one", which may stand for a thing."""
    place = 0
    while place < len(text):
        figures, word = _FIGURES.search(text, place), _next_number_word(text, place)
        if figures and (word is None or figures.start() < word.start()):
            value, place = _figures(text, figures), figures.end()
            is_lone_one = False
        elif word:
            value, place = _words(text, word)
            is_lone_one = text[word.start() : place].casefold() == _ONE
        else:
            return
        value, place = _scaled(text, value, place)
        percent = _PERCENT.match(text, place)
        place = percent.end() if percent else place
        yield Quantity(value, percent is not None), is_lone_one and percent is None


def _figures(text: str, match: re.Match[str]) -> float:
    digits = re.sub(_GAP, "", match["digits"])
    value = float(digits) * 10.0 ** int(match["exponent"] or 0)
    return -value if match["sign"] or _is_negated(text, match.start()) else value


def _is_negated(text: str, start: int) -> bool:
    return _NEGATED.search(text, max(0, start - len("negative ") - 1), start) is not None


def _next_number_word(text: str, place: int) -> re.Match[str] | None:
    words = (match for match in _WORD.finditer(text, place) if _is_whole(text, match))
    return next((match for match in words if _is_number_word(match.group())), None)


def _is_whole(text: str, word: re.Match[str]) -> bool:
    around = text[max(0, word.start() - 1) : word.start()], text[word.end() : word.end() + 1]
    return not any(sign.isalnum() or sign == "_" for sign in around)


def _is_number_word(word: str) -> bool:
    return word.casefold() in ONES or word.casefold() in TENS or word.casefold() in SCALES


def _words(text: str, first: re.Match[str]) -> tuple[float, int]:
    """The value of a run of number words, and where it ends.

    "two thousand three hundred and twelve": parts below a scale are summed and then scaled.
    """
    total, part, place, last = 0.0, 0.0, first.start(), first.end()
    previous = ""
    while match := _WORD.match(text, place):
        word = match.group().casefold()
        if word == "and" and previous in SCALES:
            following = re.compile(r" ([a-z]+)", re.IGNORECASE).match(text, match.end())
            if following is None or following[1].casefold() not in ONES | TENS:
                break
        elif not _is_whole(text, match) or not _goes_on(previous, word):
            break
        elif word in SCALES:
            scale = SCALES[word]
            part = (part or 1) * scale
            if scale > 100:
                total, part = total + part, 0.0
        else:
            part += ONES.get(word, 0) + TENS.get(word, 0)
        previous = previous if word == "and" else word
        last = match.end()
        place = last + 1 if text[last : last + 1] in (" ", "-") else len(text)
    value = total + part
    return (-value if _is_negated(text, first.start()) else value), last


def _goes_on(previous: str, word: str) -> bool:
    """Whether a word belongs to the number that the one before it has begun."""
    if not previous:
        return True
    if word in SCALES:
        return True
    if word in ONES and previous in TENS:
        return 0 < ONES[word] < 10
    return (word in ONES or word in TENS) and previous in SCALES and previous != "dozen"


def _scaled(text: str, value: float, place: int) -> tuple[float, int]:
    """ "3 million" and "2.5 thousand"."""
    while match := _SCALE.match(text, place):
        value, place = value * SCALES[match["scale"].casefold()], match.end()
    return value, place


def _is_among(quantity: Quantity, others: Sequence[Quantity]) -> bool:
    return any(quantity.equals(other) for other in others)


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_RELATIVE_TOLERANCE)
