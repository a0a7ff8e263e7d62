"""How much two texts have in common, from small sketches that a database can keep.

A sketch is the smallest hashes of all runs of five words (Broder, "On the resemblance and
containment of documents", 1997: the bottom-k sketch). It is exact for texts of up to
``SKETCH_SIZE`` runs; for longer ones the standard error of :func:`similarity` is at most 0.032.
"""

import hashlib
import re
from collections.abc import Sequence
from heapq import nsmallest

SKETCH_SIZE = 256
LOOKUP_SIZE = 8
"""How many of a sketch's hashes find its neighbours: two texts that share nine tenths of their runs
of words have none of these in common about once in a hundred million pairs."""

_RUN_WORDS = 5
_WORD = re.compile(r"\w+")

Sketch = tuple[int, ...]
"""Ascending signed 64-bit numbers, at most ``SKETCH_SIZE``."""


def build_sketch(text: str) -> Sketch:
    """The sketch of a text; case, punctuation and white space do not count.

    A text of fewer words than a run is one run; a text without words has an empty sketch.
    """
    words = _WORD.findall(text.casefold())
    last = max(1, len(words) - _RUN_WORDS + 1)
    runs = {" ".join(words[start : start + _RUN_WORDS]) for start in range(last)} - {""}
    return tuple(nsmallest(SKETCH_SIZE, map(_hash, runs)))


def similarity(one: Sequence[int], other: Sequence[int]) -> float:
    """The estimated Jaccard similarity of two texts' runs of words: 0 (none shared) to 1 (all)."""
    union = nsmallest(SKETCH_SIZE, {*one, *other})
    shared = {*one} & {*other}
    return sum(value in shared for value in union) / len(union) if union else 0.0


def _hash(run: str) -> int:
    digest = hashlib.blake2b(run.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
