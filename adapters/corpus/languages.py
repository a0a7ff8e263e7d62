"""What language a text is written in, told by py3langid: offline, of 139 languages.

The rules of this package read English only, so what is in another language is learnt as passages and
asked about by nobody but its sender.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

READ_BY_RULE = "en"
_LEAST_LETTERS = 60
"""Of shorter texts the language cannot be told."""
_LEAST_PROBABILITY = 0.9
_MOST_CHARS = 1000
"""Of a chunk that are looked at; more say the same."""
_MOST_CHUNKS = 500
"""Of a document that are looked at, evenly spread over it."""


def languages_of(chunks: Sequence[str]) -> dict[int, str]:
    """The ISO 639-1 code of every chunk whose language can be told, by the chunk's number.

    Of more than 500 chunks, 500 are looked at, evenly spread.
    """
    step = max(1, -(-len(chunks) // _MOST_CHUNKS))
    told = {at: language_of(chunks[at]) for at in range(0, len(chunks), step)}
    return {at: code for at, code in told.items() if code is not None}


def main_language(chunks: Sequence[str], told: dict[int, str]) -> str | None:
    """The language of most of the text that can be told; None where none can."""
    letters: Counter[str] = Counter()
    for at, code in told.items():
        letters[code] += len(chunks[at])
    return max(letters, key=letters.__getitem__, default=None)


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language; None for a short text, and where it is unsure."""
    sample = text[:_MOST_CHARS]
    letters = sum(character.isalpha() for character in sample)
    if letters < (_LEAST_LETTERS if sample.isascii() else _LEAST_LETTERS // 3):
        return None
    code, probability = _identifier().classify(sample)
    return str(code) if probability >= _LEAST_PROBABILITY else None


@cache
def _identifier() -> LanguageIdentifier:
    """The model, read from its wheel once a process: about a tenth of a second."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
