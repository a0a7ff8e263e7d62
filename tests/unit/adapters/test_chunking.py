"""Chunks cover the text exactly, respect the limit, and keep sentences whole."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.corpus.chunking import chunk_text

TEXTS = st.text(st.characters(codec="utf-8"), max_size=300)


@given(text=TEXTS, max_chars=st.integers(1, 60))
@example(text="é" * 100 + " 東京。" * 20, max_chars=7)
@example(text="\n\n a \n\n\n b \n", max_chars=3)
@example(text="0\x1f", max_chars=1)
@example(text="\x1f0 1", max_chars=1)
def test_chunks_concatenate_to_the_text(text: str, max_chars: int):
    chunks = chunk_text(text, max_chars=max_chars)

    assert "".join(chunks) == (text if text.strip() else "")
    assert all(chunk.strip() for chunk in chunks)


@given(text=TEXTS, max_chars=st.integers(1, 60))
def test_a_chunk_without_its_outer_white_space_fits_the_limit(text: str, max_chars: int):
    for chunk in chunk_text(text, max_chars=max_chars):
        assert len(chunk.strip()) <= max_chars


def test_sentences_stay_whole_and_chunks_are_filled():
    sentences = [f"The mill number {i} stands on the river Aldra." for i in range(12)]

    chunks = chunk_text(" ".join(sentences), max_chars=150)

    assert all(chunk.strip().endswith(".") for chunk in chunks)
    assert len(chunks) == 4


def test_paragraphs_are_preferred_as_borders():
    text = "One is short.\n\nTwo is short. Two goes on.\n\nThree is short too."

    chunks = chunk_text(text, max_chars=30)

    assert chunks == ["One is short.\n\n", "Two is short. Two goes on.\n\n", "Three is short too."]


def test_a_sentence_longer_than_the_limit_is_cut_between_words():
    chunks = chunk_text("one two three four five six seven", max_chars=12)

    assert chunks == ["one two ", "three four ", "five six ", "seven"]


@pytest.mark.parametrize("text", ["", "   ", "\n\n\t"])
def test_blank_text_has_no_chunks(text: str):
    assert chunk_text(text, max_chars=10) == []


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="max_chars is 0"):
        chunk_text("text", max_chars=0)
