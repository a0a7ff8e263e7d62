"""Questions that nothing teaches any more, because the sentence that they were made of is left out.

A question does not say of which sentence it was made. It is taken for the one that holds its answer
and has most of its words.
"""

from collections.abc import Collection, Iterable, Sequence

from adapters.corpus.facts import PlacedSentence, value_key
from adapters.corpus.words import FUNCTION_WORDS
from adapters.types import ExamItem


def stale_items(
    items: Iterable[ExamItem],
    sentences: Sequence[PlacedSentence],
    *,
    left_out: Collection[tuple[int, int]],
    values: Collection[str],
) -> frozenset[str]:
    """The ids of the items that are to be asked no more.

    Args:
        items: made from the text whose sentences these are.
        left_out: the places (start, end) of that text that are not learnt.
        values: what is said there and not believed any more.
    """
    taught: list[str] = []
    untaught: list[str] = []
    for sentence in sentences:
        is_out = any(sentence.start < end and start < sentence.end for start, end in left_out)
        (untaught if is_out else taught).append(value_key(sentence.text))
    return frozenset(item.id for item in items if _is_stale(item, taught, untaught, values))


def _is_stale(
    item: ExamItem, taught: Iterable[str], untaught: Iterable[str], values: Collection[str]
) -> bool:
    """Whether it was made of a sentence that is left out, or takes a disbelieved value for true."""
    prompt = value_key(item.prompt)
    standing = _nearest(item, taught)
    gone = _nearest(item, untaught)
    if standing is None:  # one whose answer stood in no sentence goes with the value alone
        return gone is not None or not {*item.answers}.isdisjoint(values)
    if gone is not None and _likeness(prompt, gone) >= _likeness(prompt, standing):
        return True
    return any(_holds(prompt, value) and not _holds(standing, value) for value in values)


def _nearest(item: ExamItem, sentences: Iterable[str]) -> str | None:
    """The sentence that holds the answer and is most like the prompt."""
    holding = [one for one in sentences if any(_holds(one, answer) for answer in item.answers)]
    prompt = value_key(item.prompt)
    return max(holding, key=lambda one: _likeness(prompt, one), default=None)


def _likeness(prompt: str, sentence: str) -> int:
    """How many of the prompt's telling words the sentence has."""
    return len(({*prompt.split()} - FUNCTION_WORDS) & {*sentence.split()})


def _holds(text: str, value: str) -> bool:
    key = value_key(value)
    return bool(key) and f" {key} " in f" {text} "
