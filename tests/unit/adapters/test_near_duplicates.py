"""Sketches estimate what two texts share; a revision is near, another text is not."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.corpus.near_duplicates import (
    LOOKUP_SIZE,
    SKETCH_SIZE,
    build_sketch,
    similarity,
)

WORDS = [f"word{number}" for number in range(5000)]


def runs_of(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


def exact(one: str, other: str) -> float:
    a, b = runs_of(one), runs_of(other)
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("changed", [0, 3, 10, 40, 200])
def test_the_estimate_is_near_the_exact_share(changed: int) -> None:
    errors = []
    for seed in range(20):
        source = random.Random(seed)
        words = source.choices(WORDS, k=2000)
        revised = list(words)
        for at in source.sample(range(2000), changed):
            revised[at] = "changed"
        one, other = " ".join(words), " ".join(revised)
        errors.append(similarity(build_sketch(one), build_sketch(other)) - exact(one, other))

    assert max(map(abs, errors)) < 4 * 0.032  # four standard errors, at the worst share
    assert abs(sum(errors) / len(errors)) < 0.032


@given(st.lists(st.sampled_from(WORDS[:30]), min_size=1, max_size=120), st.data())
def test_a_short_text_is_compared_exactly(words: list[str], data: st.DataObject) -> None:
    other = data.draw(st.permutations(words))
    one_text, other_text = " ".join(words), " ".join(other)

    estimate = similarity(build_sketch(one_text), build_sketch(other_text))

    assert estimate == pytest.approx(exact(one_text, other_text))


@given(st.text(max_size=400))
def test_a_sketch_is_sorted_bounded_and_like_itself(text: str) -> None:
    sketch = build_sketch(text)

    assert list(sketch) == sorted(set(sketch))
    assert len(sketch) <= SKETCH_SIZE
    assert all(-(2**63) <= value < 2**63 for value in sketch)
    assert similarity(sketch, sketch) == (1.0 if sketch else 0.0)


def test_case_and_punctuation_do_not_count() -> None:
    assert build_sketch("The light, on Vessin!\nIt is old.") == build_sketch(
        "the light on vessin it is OLD"
    )


def test_texts_that_share_nine_tenths_are_looked_up_by_the_same_hashes() -> None:
    for seed in range(200):
        source = random.Random(seed)
        words = source.choices(WORDS, k=1000)
        revised = [*words[:-50], *source.choices(WORDS, k=50)]
        one, other = build_sketch(" ".join(words)), build_sketch(" ".join(revised))
        assert len({*one[:LOOKUP_SIZE]} & {*other[:LOOKUP_SIZE]}) >= 2
