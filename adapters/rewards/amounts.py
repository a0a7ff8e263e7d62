"""One number, exactly: figures, fractions, percentages, number words, plain or in LaTeX.

"1/2", "0.5", ".50", "50 %", "\\frac12" and "one half" are one amount; "1,234" is "1234". A percentage
is the share that it stands for, and nothing else, so that equality is transitive: "50 %" is "0.5"
and not "50". Dates, times, ordinals, ranges and codes are no amounts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from adapters.rewards.numbers import ONES, SCALES, TENS, quantities_in

_GAP = "[,'\u2019\u00a0\u2009\u202f]"
_DIGITS = rf"(?:\d{{1,3}}(?:{_GAP}\d{{3}})+|\d{{1,30}})(?:\.\d{{1,30}})?|\.\d{{1,30}}"
_LITERAL = rf"""
    (?P<sign>[-+\u2212]\s?)?
    (?:
        (?P<whole>\d{{1,9}}\s+)?(?P<over>\d{{1,30}}(?:\.\d{{1,30}})?)\s?/\s?(?P<under>\d{{1,30}})
      | (?P<digits>{_DIGITS})(?:[eE](?P<exponent>[+-]?\d{{1,2}})(?!\w))?
    )
    (?P<percent>\s?(?:%|per\s?cent\b))?
"""
_AMOUNT = re.compile(
    # Not within a word, number, date or version: "QX-88", "1.2.3", "3/4/2020", "5:30", "2nd".
    rf"(?<![\w.,/:^])(?<![\w)][-\u2212]){_LITERAL}(?![\w^]|[.,:/]\d|[-\u2212]\w|\s?/\s?\d)",
    re.VERBOSE,
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?[\d.]+)\s*\}|(\d))\s*(?:\{\s*([\d.]+)\s*\}|(\d))")
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad|~|\\left|\\right|\\displaystyle")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boldsymbol|mbox)\s*\{([^{}]*)\}")
_CURRENCY = "$\u20ac\u00a3\u00a5"
_DATE_LIKE = re.compile(
    r"\b\d{4}-\d{1,2}-\d{1,2}\b|\b\d{1,2}([/.])\d{1,2}\1\d{2,4}\b|\b\d{1,2}:\d{2}(?::\d{2})?\b"
)
_WORDED_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "tenth": 10}
_WORDED = re.compile(rf"(?:a|one) ({'|'.join(_WORDED_PARTS)})|({'|'.join(_WORDED_PARTS)})")
_WORDS = re.compile(r"[a-z]+(?:[ -][a-z]+)*(?: ?(?:%|per ?cent))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """An amount, and where in the plain text it stands."""

    value: Fraction
    literal: str
    start: int
    end: int


def plain_text(text: str) -> str:
    """The text without LaTeX's wrapping of numbers, Markdown's stars, and currency signs."""
    text = _SPACING.sub(" ", text).replace("\\%", "%").replace("\\$", "$").replace("{,}", ",")
    for _ in range(3):  # nested as deep as anyone writes
        text = _WRAPPED.sub(r"\1", text)
    text = _FRACTION.sub(_as_slash, text)
    text = text.translate({ord(sign): " " for sign in _CURRENCY})
    return re.sub(r"\*{1,3}|`|\\[()\[\]]|(?<![\w\d])_{1,2}|_{1,2}(?![\w\d])", "", text)


def amounts_in(plain: str) -> Iterator[Found]:
    """Every amount in figures of a plain text, in order; one that divides by zero is none."""
    masked = _DATE_LIKE.sub(lambda match: "x" * len(match.group()), plain)
    for match in _AMOUNT.finditer(masked):
        value = _value(match)
        if value is not None:
            yield Found(value, _literal(match), match.start(), match.end())


def amount_of(text: str) -> Fraction | None:
    """The amount that the text is, and nothing but it, a currency sign aside."""
    plain = plain_text(text).strip().rstrip(".").strip()
    match = _AMOUNT.fullmatch(plain)
    if match is not None:
        return _value(match)
    return worded_amount(plain)


def worded_amount(text: str) -> Fraction | None:
    """The amount that number words and nothing else say: "twelve", "minus two", "one half"."""
    words = text.strip().casefold()
    if part := _WORDED.fullmatch(words):
        return Fraction(1, _WORDED_PARTS[part[1] or part[2]])
    if len(words) > 100 or not _WORDS.fullmatch(words):
        return None
    found = quantities_in(words)
    if len(found) != 1 or not _is_one_number(words):
        return None
    value = Fraction(str(found[0].value))
    return value / 100 if found[0].is_percent else value


_OTHER_WORDS = frozenset({"and", "minus", "negative", "percent", "per", "cent"})


def _is_one_number(words: str) -> bool:
    """Whether all words are a number's, and of one: "one five" are two."""
    said = re.findall(r"[a-z]+", words)
    for one, following in pairwise(said):
        if one in ONES and (following in ONES or following in TENS):
            return False
        if one in TENS and following in TENS:
            return False
    return set(said) <= {*ONES, *TENS, *SCALES} | _OTHER_WORDS


def _as_slash(match: re.Match[str]) -> str:
    return f" {match[1] or match[2]}/{match[3] or match[4]} "


def _value(match: re.Match[str]) -> Fraction | None:
    if match["over"]:
        under = Fraction(match["under"])
        if not under:
            return None
        value = Fraction(match["over"]) / under + Fraction((match["whole"] or "0").strip())
    else:
        value = Fraction(re.sub(_GAP, "", match["digits"]))
        value *= Fraction(10) ** int(match["exponent"] or 0)
    if match["percent"]:
        value /= 100
    return -value if _sign(match) == "-" else value


def _literal(match: re.Match[str]) -> str:
    percent = " %" if match["percent"] else ""
    if match["over"]:
        whole = f"{match['whole'].strip()} " if match["whole"] else ""
        return f"{_sign(match)}{whole}{match['over']}/{match['under']}{percent}"
    exponent = f"e{match['exponent']}" if match["exponent"] else ""
    return f"{_sign(match)}{re.sub(_GAP, '', match['digits'])}{exponent}{percent}"


def _sign(match: re.Match[str]) -> str:
    return "-" if (match["sign"] or "").strip() in ("-", "\u2212") else ""
