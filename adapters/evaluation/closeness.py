"""Does a reply say what a user corrected an earlier one to?

Nobody has said which other wordings are right, so this is strict: the correction stands in the
reply, or nearly all words are the same and no figure differs. A reply that is right in words of its
own counts as wrong, for both versions alike.
"""

import re
from collections import Counter

from adapters.rewards.answers import is_correct, normalise

_SAME = 0.9
"""Token F1 (Rajpurkar et al., arXiv 1606.05250) above which two texts say the same. One wrong name in
a sentence of ten words is not."""
_FIGURE = re.compile(r"\d+(?:\.\d+)?")


def is_close(reply: str, correction: str) -> bool:
    """Whether the reply holds the correction, or is nearly it."""
    if is_correct(reply, (correction,)):
        return True
    said, wanted = normalise(reply), normalise(correction)
    if Counter(_FIGURE.findall(said)) != Counter(_FIGURE.findall(wanted)):
        return False
    return token_f1(said, wanted) > _SAME


def token_f1(one: str, other: str) -> float:
    """Harmonic mean of the shares of words that two texts have in common, in 0..1."""
    first, second = Counter(one.split()), Counter(other.split())
    common = (first & second).total()
    total = first.total() + second.total()
    return 2 * common / total if total else 0.0
