"""Cuts a text into chunks that cover it exactly, at the largest natural border that fits.

Pure. The borders are semantic-text-splitter's: lines, then sentences, then words.
"""

from semantic_text_splitter import TextSplitter


def chunk_text(text: str, *, max_chars: int) -> list[str]:
    """Chunks whose concatenation is `text`, each as near to `max_chars` as whole sentences allow.

    A sentence is cut only when it alone is longer than `max_chars`, a word likewise. White space
    between chunks stays with the chunk before it, over the limit if need be. A text of white
    space alone is no chunk at all.

    Raises:
        ValueError: `max_chars` is not positive.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars is {max_chars}, it must be at least 1")
    if not text.strip():
        return []
    # Trimmed chunks tell the borders; left untrimmed, the splitter makes chunks of white space. It
    # knows fewer characters as white space than Python does (not the separators U+001C to U+001F).
    pieces = TextSplitter(max_chars).chunk_indices(text)
    borders = [start for start, piece in pieces if piece.strip()]
    starts = [0, *borders[1:]]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
