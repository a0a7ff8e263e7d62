"""Which questions about a text go when some of its sentences are left out."""

import pytest

from adapters.corpus.facts import placed_sentences
from adapters.types import ExamItem, ItemKind, build_item
from tests.support.texts import LIGHTHOUSE_TEXT
from workers.stale_questions import stale_items

TEXT = f"{LIGHTHOUSE_TEXT} Marlow Lighthouse was painted in 1874. Wilma Stroud is from Vessin."
BUILT = "It was built in 1874 by Tobias Renk."
KEEPER = "The keeper of Marlow Lighthouse is Odile Brandt."


def question(prompt: str, answer: str) -> ExamItem:
    return build_item(ItemKind.MODEL, "doc_1", prompt=prompt, answers=(answer,))


def is_stale(item: ExamItem, *, without: str, value: str) -> bool:
    start = TEXT.index(without)
    stale = stale_items(
        [item],
        placed_sentences([TEXT]),
        left_out=[(start, start + len(without))],
        values={value},
    )
    return stale == {item.id}


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Complete: Marlow Lighthouse was built in", "1874"),
        ("When was Marlow Lighthouse built?", "1874"),
        ("Complete: Marlow Lighthouse was built in 1874 by", "Tobias Renk"),
        ("Who built Marlow Lighthouse?", "Tobias Renk"),
    ],
)
def test_what_the_left_out_sentence_alone_taught_goes(prompt: str, answer: str) -> None:
    assert is_stale(question(prompt, answer), without=BUILT, value="1874")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Complete: Marlow Lighthouse was painted in", "1874"),
        ("When was Marlow Lighthouse painted?", "1874"),
        ("Complete: Marlow Lighthouse was painted", "in 1874"),
        ("Who is the cook of Marlow Lighthouse?", "Wilma Stroud"),
    ],
)
def test_what_another_sentence_teaches_stays_even_with_the_same_answer(
    prompt: str, answer: str
) -> None:
    assert not is_stale(question(prompt, answer), without=BUILT, value="1874")


def test_a_question_that_takes_the_old_value_for_true_goes() -> None:
    told = question(
        "What does the keeper Odile Brandt of Marlow Lighthouse hold in October?", "feast"
    )
    itself = question("Where was Odile Brandt born?", "Karsund")

    assert is_stale(told, without=KEEPER, value="Odile Brandt")
    assert not is_stale(itself, without=KEEPER, value="Odile Brandt")


def test_an_answer_that_stands_in_no_sentence_goes_with_the_value_alone() -> None:
    assert is_stale(question("How old is it?", "1874 or so"), without=BUILT, value="1874 or so")
    assert not is_stale(question("How old is it?", "very"), without=BUILT, value="1874")
