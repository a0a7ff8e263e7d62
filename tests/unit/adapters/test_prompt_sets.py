"""Which prompts a run learns from: nobody beyond the share, and nothing lost without a count."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from adapters.methods.prompt_sets import BEYOND_SHARE, draws, key_of, most_each, shared_out

counts = st.lists(st.integers(1, 60), min_size=1, max_size=8)
shares = st.floats(0.0, 1.0)


@given(counts=counts, others=st.integers(0, 60), share=shares)
def test_what_is_left_of_each_user_is_within_the_share_of_what_is_left(
    counts: list[int], others: int, share: float
) -> None:
    most = most_each(counts, others=others, share=share)

    kept = [min(count, most) for count in counts]
    fair = max(share, 1 / (len(counts) + bool(others)))
    assert 1 <= most <= max(counts)
    assert max(kept) <= fair * (sum(kept) + others) + 1e-6
    if most < max(counts):  # one more would be too many
        more = [min(count, most + 1) for count in counts]
        assert max(more) > fair * (sum(more) + others)


@given(counts=counts, share=shares, seed=st.integers(0, 9))
def test_items_keep_their_order_and_the_dropped_ones_are_counted(
    counts: list[int], share: float, seed: int
) -> None:
    items = [(f"u{user}", n) for user, count in enumerate(counts) for n in range(count)]
    left_out: Counter[str] = Counter()

    kept = shared_out(items, lambda item: item[0], share=share, seed=seed, left_out=left_out)

    assert kept == [item for item in items if item in set(kept)]
    assert left_out[BEYOND_SHARE] == len(items) - len(kept)
    assert {user for user, _ in kept} == {user for user, _ in items}


def test_one_user_alone_has_all_and_what_is_nobodys_is_not_capped() -> None:
    left_out: Counter[str] = Counter()

    def kept(owners: list[str | None]) -> int:
        return len(shared_out(owners, lambda it: it, share=0.25, seed=0, left_out=left_out))

    assert kept(["a"] * 9) == 9
    assert kept([None] * 9) == 9
    assert not +left_out
    assert kept(["a"] * 90 + [None] * 3) == 6


@given(count=st.integers(1, 20), size=st.integers(1, 8), steps=st.integers(1, 12))
def test_all_have_their_turn_before_any_has_another(count: int, size: int, steps: int) -> None:
    taken = list(draws(count, size, steps, seed=3))

    assert taken == list(draws(count, size, steps, seed=3))
    turns: Counter[int] = Counter()
    for step in taken:
        assert len(set(step)) == len(step) == min(size, count)
        turns.update(step)
        assert max(turns.values()) - min(turns[n] for n in range(count)) <= 2
    most, least = max(turns.values()), min(turns[n] for n in range(count))
    assert most - least <= (1 if count % min(size, count) == 0 else 2)


def test_prompts_are_told_apart_by_the_whole_conversation_signs_and_all() -> None:
    def key(*contents: str) -> str:
        return key_of([{"role": "user", "content": each} for each in contents])

    assert key("What is 3 + 5?") == key(" what is\n3 + 5? ")
    assert len({key("3 + 5"), key("3 - 5"), key("3 +", "5"), key("Hi.", "3 + 5")}) == 4
