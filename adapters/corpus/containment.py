"""A document without the parts that must not be taught: pure functions of chunks and places."""

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from adapters.corpus.instructions import find_suspects, neutralise, sentence_bounds
from adapters.corpus.words import FUNCTION_WORDS

_WORD = re.compile(r"\w+")
_LEAST_WORDS = 5
"""Of a question by which a text is searched; a shorter one may stand anywhere."""
_LEAST_TELLING = 2
_UNTITLED = "Untitled"


def cut(chunks: Sequence[str], places: Iterable[tuple[int, int]]) -> list[str]:
    """The chunks without the places (start, end), which count from the start of the first one.

    As many chunks as before; one of which nothing is left is empty.
    """
    merged = _merged(places)
    kept: list[str] = []
    offset = 0
    for chunk in chunks:
        rest, last = [], 0
        for start, end in merged:
            if end > offset and start < offset + len(chunk):
                rest.append(chunk[last : max(last, start - offset)])
                last = max(last, end - offset)
        kept.append("".join(rest) + chunk[last:])
        offset += len(chunk)
    return [neutralise(chunk) if chunk.strip() else "" for chunk in kept]


def safe_title(title: str) -> str:
    """The title, unless it speaks to the learner."""
    return _UNTITLED if find_suspects(title) else neutralise(title).strip() or _UNTITLED


def places_of_questions(chunks: Sequence[str], prompts: Collection[str]) -> list[tuple[int, int]]:
    """Where the chunks put one of these questions, and the sentence after it, which may answer it.

    Held-out questions about one document must not be answered by another one's lesson.
    """
    wanted = {key for prompt in prompts if (key := _key(prompt)) is not None}
    if not wanted:
        return []
    places: list[tuple[int, int]] = []
    offset = 0
    for chunk in chunks:
        is_after = False
        for start, end in sentence_bounds(chunk):
            is_asked = "?" in chunk[start:end] and _key(chunk[start:end]) in wanted
            if is_asked or is_after:
                places.append((offset + start, offset + end))
            is_after = is_asked
        offset += len(chunk)
    return places


@lru_cache(maxsize=1 << 16)  # every document is searched for the questions of all others
def _key(sentence: str) -> str | None:
    """A question's words, by which two are the same; None for one that says too little."""
    question = sentence.rpartition("?")[0] or sentence
    words = _WORD.findall(question.casefold())
    if words[:1] in (["q"], ["question"]):
        words = words[1:]
    telling = [word for word in words if word not in FUNCTION_WORDS]
    is_telling = len(words) >= _LEAST_WORDS and len(telling) >= _LEAST_TELLING
    return " ".join(words) if is_telling else None


def _merged(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(places):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
