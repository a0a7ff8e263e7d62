"""Questions made of a sentence's own key words, answered with the sentence.

People ask about anything that a text says, not only about its names and numbers, and in words of
their own; what they share with the sentence that answers them are some of its content words. So a
model that has learnt to give a sentence for any few of them finds it for a question that it has never
seen. True to the text by construction; no model is asked to write anything.
"""

import random
import re
from collections.abc import Iterator, Sequence

from adapters.corpus.questions import about
from adapters.corpus.reading import Reading
from adapters.corpus.words import FUNCTION_WORDS
from adapters.types import EditKind, SelfEdit, SourceDocument

_WORD = re.compile(r"[\w'\u2019-]+")
_DIGIT = re.compile(r"\d")
_LEAST_WORDS, _MOST_WORDS = 2, 8
_LEAST_SHARE, _MOST_SHARE = 0.25, 0.6
"""Of a sentence's content words, how many one question has."""
_SHUFFLED_SHARE = 0.3
"""Questions whose words do not keep the order of the text, as people's often do not."""
_OPENINGS = ("What", "Who", "Which", "Why", "How")
_NUMBER_OPENINGS = ("When", "How many")


def keyword_edits(
    document: SourceDocument, reading: Reading, *, per_sentence: int, seed: int
) -> list[SelfEdit]:
    """Up to so many questions for each sentence; the same for the same text and seed.

    The document's title says what they are about, as a user who asks about it would.
    """
    found: dict[str, SelfEdit] = {}
    for sentence in reading.sentences:
        source = random.Random(f"{seed}\0{sentence.text}")  # of each sentence alone: texts grow
        for words in _choices(sentence.text, per_sentence, source):
            opening = source.choice(_openings(sentence.text))
            prompt = about(document.title, f"{opening} {' '.join(words)}?")
            edit = SelfEdit(EditKind.QUESTION, document.id, prompt, sentence.text, "rule")
            found.setdefault(prompt, edit)
    return list(found.values())


def _choices(text: str, count: int, source: random.Random) -> Iterator[list[str]]:
    """Some of a sentence's content words: by turns spread over it, or side by side."""
    words = [word for word in _WORD.findall(text) if word.casefold() not in FUNCTION_WORDS]
    if len(words) < _LEAST_WORDS:
        return
    least = max(_LEAST_WORDS, round(len(words) * _LEAST_SHARE))
    most = max(_LEAST_WORDS, min(_MOST_WORDS, round(len(words) * _MOST_SHARE)))
    for number in range(count):
        size = source.randint(min(least, most), most)
        places = _side_by_side(words, size, source) if number % 2 else _spread(words, size, source)
        if source.random() < _SHUFFLED_SHARE:
            source.shuffle(places)
        yield [words[place] for place in places]


def _spread(words: Sequence[str], size: int, source: random.Random) -> list[int]:
    return sorted(source.sample(range(len(words)), size))


def _side_by_side(words: Sequence[str], size: int, source: random.Random) -> list[int]:
    first = source.randrange(len(words) - size + 1)
    return list(range(first, first + size))


def _openings(text: str) -> Sequence[str]:
    return (*_OPENINGS, *_NUMBER_OPENINGS) if _DIGIT.search(text) else _OPENINGS
