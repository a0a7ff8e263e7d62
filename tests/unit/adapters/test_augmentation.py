"""Augmentations: each can be undone, changes inputs and outputs alike, and keeps the rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.grids import Grid, format_grid, grid_of, parse_grid
from adapters.methods.augmentation import (
    Augmentation,
    are_labels,
    enlarged,
    input_variants,
    recolouring,
    repetitions,
    symmetries,
)
from adapters.types import Example

ON_GRIDS = (*symmetries(), enlarged(), *repetitions(), recolouring(0), recolouring(7))


def grids(side: int = 7) -> st.SearchStrategy[Grid]:
    return st.integers(1, side).flatmap(
        lambda width: st.lists(
            st.tuples(*[st.integers(0, 9)] * width), min_size=1, max_size=side
        ).map(tuple)
    )


def pairs() -> st.SearchStrategy[Example]:
    return st.builds(
        lambda one, other: Example(format_grid(one), format_grid(other)), grids(), grids()
    )


@pytest.mark.parametrize("augmentation", ON_GRIDS, ids=lambda one: one.name)
@given(example=pairs())
def test_a_change_of_grids_can_be_undone(augmentation: Augmentation, example: Example) -> None:
    assert augmentation.undo(augmentation.apply(example)) == example


@given(example=pairs(), first=st.sampled_from(ON_GRIDS), second=st.sampled_from(ON_GRIDS))
def test_a_chain_is_undone_from_its_end(
    example: Example, first: Augmentation, second: Augmentation
) -> None:
    chain = first.then(second)

    assert chain.apply(example) == second.apply(first.apply(example))
    assert chain.undo(chain.apply(example)) == example


@pytest.mark.parametrize("augmentation", ON_GRIDS, ids=lambda one: one.name)
@given(grid=grids())
def test_an_output_changes_as_its_input_does(augmentation: Augmentation, grid: Grid) -> None:
    """Of a task whose output is its input, so it is afterwards: fails if the sides are apart."""
    text = format_grid(grid)
    changed = augmentation.apply(Example(text, text))

    assert changed.input == changed.output


def test_the_symmetries_are_seven_different_ones() -> None:
    grid = "1 2 3\n4 5 6"

    assert len({augmentation.of_input(grid) for augmentation in symmetries()} - {grid}) == 7


def test_the_symmetries_do_what_they_are_called() -> None:
    done = {one.name: one.of_input("1 2\n3 4") for one in symmetries()}

    assert done["turned right"] == "3 1\n4 2"
    assert done["mirrored"] == "2 1\n4 3"
    assert done["transposed"] == "1 3\n2 4"
    assert enlarged().of_input("1 2") == "1 1 2 2\n1 1 2 2"


@given(seed=st.integers(0, 2**32))
def test_the_background_keeps_its_colour_and_no_colour_is_lost(seed: int) -> None:
    changed = recolouring(seed).of_input("0 1 2 3 4 5 6 7 8 9").split()

    assert changed[0] == "0"
    assert sorted(changed) == list("0123456789")


def test_a_grid_that_would_become_too_large_is_refused() -> None:
    wide = format_grid(grid_of([[1] * 16]))

    with pytest.raises(ValueError, match="30 by 30"):
        enlarged().of_input(wide)


@given(text=st.text(st.characters(exclude_categories=("Cs",))), label=st.text())
def test_a_variant_of_an_input_can_be_undone_and_leaves_the_output(text: str, label: str) -> None:
    example = Example(text, label)
    for variant in input_variants():
        assert variant.undo(variant.apply(example)) == example
        assert variant.apply(example).output == label


def test_only_labels_of_the_meaning_let_their_inputs_vary() -> None:
    kinds = [
        Example("a red apple", "fruit"),
        Example("a carrot", "root"),
        Example("a pear", "fruit"),
    ]

    assert are_labels(kinds)
    assert not are_labels(kinds[:2])  # every output another one: no labels
    assert not are_labels([*kinds, Example("fruit cake", "fruit")])  # the output is copied
    assert not are_labels([*kinds, Example("A PEAR", "loud")])  # case decides
    assert not are_labels([*kinds, Example("a  plum", "fruit")])  # white space may decide


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "at least one row"),
        ([[]], "row 1"),
        ([[1], [1, 2]], "1 and 2 cells"),
        ([[1], [10]], "row 2 holds 10"),
        ([[True]], "row 1 holds True"),
        ([["1"]], "row 1 holds '1'"),
        ("12", "list"),
        ([[0] * 31], "30 by 30"),
    ],
)
def test_what_is_no_grid_is_told_by_its_defect(rows: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        grid_of(rows)


@given(grid=grids())
def test_a_grid_is_read_as_it_was_written(grid: Grid) -> None:
    assert parse_grid(format_grid(grid)) == grid


def test_a_text_of_other_signs_is_no_grid() -> None:
    with pytest.raises(ValueError, match="row 1"):
        parse_grid("1 x")
    with pytest.raises(ValueError, match="row 1"):
        parse_grid("²")
