"""Whether a question that a model wrote about a text can be used: checks by words, no model.

Not covered: a false premise put in the text's own words.
"""

import re

from adapters.corpus.questions import SpanQuestion
from adapters.corpus.reading import Reading
from adapters.rewards.answers import is_correct, normalise

_EVERYDAY_TEXT = """
after before below above called carry country date does each english from have held high into
located long made many month much name named number open people place since start take that there
this time town under until used what when where which while whom whose with word year years will
were been
"""
_EVERYDAY = frozenset(_EVERYDAY_TEXT.split())
_MOST_NEW_WORDS = 1
_ASKS_A_NUMBER = re.compile(r"\b(?:how many|how much|how long|how old|what year)\b", re.IGNORECASE)
_ASKS_NO_NUMBER = re.compile(r"(?:who|whose|whom|where|why)\b", re.IGNORECASE)
_MOST_WORDS = 25
_LEAST_WORDS = 4


def fault_of(
    prompt: str, question: SpanQuestion, reading: Reading, *, example_words: frozenset[str]
) -> str | None:
    """Why a written question is of no use, or None.

    `example_words` are those of the examples that the writer was shown and may have copied.
    """
    words = normalise(prompt).split()
    if not prompt.endswith("?") or prompt.count("?") > 1:
        return "not one question"
    if not _LEAST_WORDS <= len(words) <= _MOST_WORDS:
        return "too short or long"
    if is_correct(prompt, [question.answer]):
        return "gives the answer away"
    if _ASKS_NO_NUMBER.match(prompt) if question.is_number else _ASKS_A_NUMBER.search(prompt):
        return "asks for something else"
    if is_foreign(prompt, reading):
        return "names what the text does not"
    if is_inventive(prompt, reading):
        return "too far from the text"
    if _new_words(prompt, reading) & example_words:
        return "copied from the examples"
    own = set(normalise(question.echo).split())
    if not any(len(word) > 3 and word in own and word not in _EVERYDAY for word in words):
        return "about something else"
    return None


def is_foreign(text: str, reading: Reading) -> bool:
    """Whether a name or number in it, its first word aside, is not in the document."""
    text_words = _words_of(reading)
    return any(
        word not in text_words
        for token in text.split()[1:]
        if token[:1].isupper() or re.search(r"\d", token)
        for word in normalise(token).split()
    )


def is_inventive(text: str, reading: Reading) -> bool:
    """Whether more than one of its longer words is neither the document's nor everyday English."""
    return len(_new_words(text, reading)) > _MOST_NEW_WORDS


def _new_words(text: str, reading: Reading) -> set[str]:
    """Its longer words that are neither the document's nor everyone's."""
    known = _words_of(reading) | _EVERYDAY
    return {word for word in normalise(text).split() if len(word) > 3 and word not in known}


def _words_of(reading: Reading) -> set[str]:
    return set(normalise(" ".join(s.text for s in reading.sentences)).split())
