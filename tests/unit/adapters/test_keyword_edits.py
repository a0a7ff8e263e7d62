"""Questions of a sentence's key words: true to the text, the same each time."""

import pytest

from adapters.corpus.reading import read_text
from adapters.corpus.words import FUNCTION_WORDS
from adapters.methods.held_out import HeldOut
from adapters.methods.keyword_edits import keyword_edits
from adapters.rewards.answers import normalise
from adapters.types import EditKind, SelfEdit, SourceDocument

TEXT = (
    "The bridge of Orm was built from grey slate by the weavers' guild in 1911. "
    "It crosses the river on nine arches. So be it."
)
DOCUMENT = SourceDocument("d", "Orm", TEXT, (TEXT,))
READING = read_text(TEXT)


def edits(count: int = 6, seed: int = 0, document: SourceDocument = DOCUMENT) -> list[SelfEdit]:
    return keyword_edits(document, read_text(document.text), per_sentence=count, seed=seed)


def test_every_question_has_words_of_the_sentence_that_answers_it():
    found = edits()

    assert {edit.text for edit in found} == {s.text for s in READING.sentences[:2]}
    for edit in found:
        assert edit.kind is EditKind.QUESTION
        assert edit.written_by == "rule"
        assert edit.prompt is not None
        assert edit.prompt.startswith("About Orm: ")
        assert edit.prompt.endswith("?")
        asked = normalise(edit.prompt).split()[2:]
        assert len(set(asked) & set(normalise(edit.text).split())) >= 2
        assert not set(asked[2:]) & FUNCTION_WORDS


def test_there_are_so_many_a_sentence_and_none_twice():
    prompts = [edit.prompt for edit in edits(count=4)]

    assert 4 < len(prompts) <= 8  # two sentences have content words enough; "So be it" has none
    assert len(set(prompts)) == len(prompts)
    assert edits(count=0) == []


def test_they_follow_from_text_and_seed():
    assert edits() == edits()
    assert edits() != edits(seed=1)


@pytest.mark.parametrize("title", ["Orm: a guide", "Why Orm?", "Orm " * 100, ":"])
def test_no_title_hides_what_is_asked_from_the_exam(title: str) -> None:
    document = SourceDocument("d", title, TEXT, (TEXT,))
    prompts = [str(edit.prompt) for edit in edits(document=document)]

    # The exam's own question has no topic before it.
    asked = [edit.prompt.removeprefix("About Orm: ") for edit in edits() if edit.prompt]
    assert len(prompts) == len(asked)
    assert all(HeldOut([one]).covers(prompt) for one, prompt in zip(asked, prompts, strict=True))


def test_a_text_that_grows_keeps_what_it_had():
    longer = SourceDocument("d", "Orm", f"{TEXT} A toll was asked of every cart.", ())

    assert edits(document=longer)[: len(edits())] == edits()
