"""Which prompts a run learns from: pure choices, no database."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from adapters.types import Opinion, Prompt
from server.services import prompt_selection
from server.services.prompt_selection import Candidate, Rules, cap_of, choose
from server.services.prompts import is_drawn

RULES = Rules(held_out=0.0, per_user=1.0, most=100)


def said(*texts: str, asked_by: str = "ada", is_gate: bool = False, **fields: object) -> Candidate:
    roles = ("user", "assistant")
    messages = tuple({"role": roles[n % 2], "content": text} for n, text in enumerate(texts))
    prompt = Prompt(f"{asked_by}:{'|'.join(texts)}", messages, asked_by=asked_by)
    return Candidate(prompt, is_gate, **fields)  # type: ignore[arg-type]


def texts(candidates: tuple[Candidate, ...]) -> list[str]:
    return [each.prompt.messages[-1]["content"] for each in candidates]


def test_the_same_words_count_once() -> None:
    found = choose([said("What is 1 + 1?"), said("what  is 1 + 1?"), said("Why?")], [], RULES)

    assert texts(found.train) == ["What is 1 + 1?", "Why?"]
    assert found.left_out == {prompt_selection.SAID_TWICE: 1}


def test_of_a_conversation_only_the_last_turn_is_taken() -> None:
    whole = said("One?", "1.", "Two?")

    found = choose([whole, said("One?"), said("One?", "1.", "Two?", "2.", "Three?")], [], RULES)

    assert texts(found.train) == ["Three?"]
    assert found.left_out == {prompt_selection.EARLIER_TURN: 2}


def test_what_the_exam_asks_is_never_taught_in_whatever_company_it_comes() -> None:
    held = said("What is 3 + 5?", is_gate=True)
    elsewhere = said("Hello.", "Hello!", "what is 3 + 5?", asked_by="bob")

    found = choose([held, elsewhere, said("Free?")], [], RULES)

    assert texts(found.held_out) == ["What is 3 + 5?"]
    assert texts(found.train) == ["Free?"]
    assert found.left_out == {prompt_selection.HELD_OUT: 1}


def test_what_the_general_suite_asks_is_not_taught() -> None:
    asked = frozenset({prompt_selection.words_key("What is the capital of France?")})
    rules = Rules(0.0, 1.0, 100, asked)

    found = choose([said("what is the capital of france"), said("Free?")], [], rules)

    assert texts(found.train) == ["Free?"]
    assert found.left_out == {prompt_selection.GENERAL: 1}


def test_one_user_cannot_flood_a_run() -> None:
    flood = [said(f"Mine {n}?", asked_by="eve") for n in range(90)]
    others = [said(f"{name}?", asked_by=name) for name in "abcdef"]

    found = choose([*flood, *others], [], Rules(0.0, 0.25, 100))

    by_user = Counter(each.prompt.asked_by for each in found.train)
    assert by_user["eve"] == 2
    assert found.left_out == {prompt_selection.FLOODED: 88}


def test_what_was_sent_for_learning_is_not_a_flood() -> None:
    sent = [said(f"Sent {n}?", asked_by="key", is_uploaded=True) for n in range(50)]

    found = choose([*sent, said("Asked?")], [], Rules(0.0, 0.25, 100))

    assert len(found.train) == 51


def test_opinions_of_one_user_are_capped_and_none_is_of_a_held_out_prompt() -> None:
    def judged(text: str, asked_by: str, *, is_gate: bool = False) -> Candidate:
        prompt = said(text, asked_by=asked_by).prompt
        return Candidate(prompt, is_gate, opinion=Opinion(prompt, "No.", "m@v1", is_liked=False))

    flood = [judged(f"Q{n}?", "eve") for n in range(40)]
    others = [judged(f"{name}?", name) for name in "abc"]
    held = judged("Held?", "d", is_gate=True)

    found = choose([held], [*flood, *others, held], Rules(0.0, 0.5, 100))

    by_user = Counter(each.prompt.asked_by for each in found.opinions)
    assert by_user == {"eve": 3, "a": 1, "b": 1, "c": 1}


def test_the_newest_are_taken() -> None:
    found = choose([said(f"{n}?") for n in range(5)], [], Rules(0.0, 1.0, 2))

    assert texts(found.train) == ["0?", "1?"]
    assert found.left_out == {prompt_selection.BEYOND: 3}


@given(st.lists(st.integers(1, 60), min_size=2, max_size=12), st.floats(0.05, 1.0))
def test_no_user_has_more_than_the_share_or_a_fair_part(counts: list[int], share: float) -> None:
    cap = cap_of(counts, share)
    kept = [min(count, cap) for count in counts]

    assert cap >= 1
    assert cap == 1 or max(kept) <= max(share, 1 / len(counts)) * sum(kept) + 1e-6


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_out_all_of_a_smaller(key: str, one: float, other: float) -> None:
    low, high = sorted((one, other))

    assert not is_drawn(key, low) or is_drawn(key, high)
