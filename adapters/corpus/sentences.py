"""Sentences of plain text or markdown prose, by rule. English; headings are left out."""

import re

from adapters.corpus.words import ABBREVIATIONS

_BOUNDARY = re.compile(
    r"(?<=[.!?])[\"'\u201d\u2019)]*\s+(?=[\"'\u201c\u2018(]*[A-Z0-9\u00c0-\u00de])"
)
_BLOCKS = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*+#]|\d+[.)])\s)")
_MARKUP = re.compile(
    r"^\s*(?:#{1,6}\s+|[-*+]\s+|\d+[.)]\s+|>\s*)|[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}"
)


def split_sentences(text: str) -> list[str]:
    """Sentences without line breaks or markdown marks; headings are left out.

    A full stop after an abbreviation or an initial does not end a sentence.
    """
    sentences: list[str] = []
    for block in _BLOCKS.split(text):
        if block.lstrip().startswith("#"):
            block = block.lstrip().partition("\n")[2]
        flat = " ".join(_MARKUP.sub("", line) for line in block.split("\n"))
        sentences.extend(_split_block(" ".join(flat.split())))
    return sentences


def _split_block(block: str) -> list[str]:
    sentences: list[str] = []
    start = 0
    for match in _BOUNDARY.finditer(block):
        before = block[start : match.start()].rstrip("\"'\u201d\u2019)")
        last = before.split()[-1].rstrip(".").casefold() if before.split() else ""
        is_initial = before.endswith(".") and len(last) == 1
        if before.endswith(".") and (last in ABBREVIATIONS or is_initial):
            continue
        sentences.append(block[start : match.end()].strip())
        start = match.end()
    sentences.append(block[start:].strip())
    return [sentence for sentence in sentences if len(sentence.split()) > 2]
