"""Is a reply right? Compares a reply with the accepted answers by normalised containment.

Meant for short factual answers (names, numbers, dates). Not covered: paraphrase, negation
("not in Paris" contains "Paris") and number words.
"""

import re
import unicodedata
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_THIN_SPACE = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_THOUSANDS = re.compile(r"(?<=\d)[,'](?=\d{3}(?!\d))")
_APOSTROPHES = re.compile(r"['\u2018\u2019\u02bc`](?:s\b)?")
_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_NOT_WORD = re.compile(r"[^\w\0]+|_")


def is_correct(reply: str, answers: Sequence[str]) -> bool:
    """Whether any accepted answer stands in the reply as whole words.

    An answer that normalises to nothing ("?", "the") never matches.
    """
    padded = f" {normalise(reply)} "
    return any(
        f" {normalised} " in padded for answer in answers if (normalised := normalise(answer))
    )


def says_yes(reply: str) -> bool:
    """Whether a reply to a question of yes or no begins with a clear yes."""
    return normalise(reply).split()[:1] == ["yes"]


def normalise(text: str) -> str:
    """Words in lower case (NFKC), one space apart; no articles, punctuation, possessive "'s" or
    thousands separators. Decimal points inside numbers stay. Idempotent.
    """
    joined = _THIN_SPACE.sub("", text.replace("\0", " "))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", joined).casefold())
    plain = _APOSTROPHES.sub("", _THOUSANDS.sub("", folded))
    words = _NOT_WORD.sub(" ", _DECIMAL_POINT.sub("\0", plain)).replace("\0", ".").split()
    return " ".join(word for word in words if word not in _ARTICLES)
