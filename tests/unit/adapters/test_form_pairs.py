"""SPECS's pairs: the form differs, the answer never does."""

import json
import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.methods.corruptions import corrupt, corruptions
from adapters.methods.form_pairs import SAMPLED, WRONG, Asked, FormReply, build_pairs
from adapters.rewards.contracts import fault_of
from adapters.rewards.same_answer import is_same_answer
from adapters.spec import (
    AnswerKind,
    AnswerSpec,
    AnswerVerifier,
    ContractSpec,
    JsonSchemaContract,
    RegexContract,
    SpecsConfig,
    TagsContract,
    ToolCallContract,
)
from adapters.types import Prompt

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "unit": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}
JSON_FORM = JsonSchemaContract(json_schema=SCHEMA)
TAGS_FORM = TagsContract()
NUMBER = AnswerSpec(kind=AnswerKind.NUMBER)
BY_NUMBER = AnswerVerifier(answer=NUMBER)

words = st.text("abcdefgh ", min_size=1, max_size=12).map(str.strip).filter(bool)
names = st.text("abcdefgh", min_size=1, max_size=6)
leaves = st.integers(-999, 999) | words | st.booleans() | st.none()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)


def leaves_of(value: object) -> Counter[str]:
    """An independent reading of what JSON says, names apart."""
    if isinstance(value, dict):
        return sum((leaves_of(inner) for inner in value.values()), Counter())
    if isinstance(value, list):
        return sum((leaves_of(inner) for inner in value), Counter())
    return Counter([json.dumps(value)])


def leaves_left_in(text: str, value: object) -> bool:
    """Whether every leaf still stands in the text, as often as in the value."""
    return all(
        text.count(leaf.strip('"')) >= count for leaf, count in leaves_of(value).items()
    )


@given(st.dictionaries(names, values, min_size=1, max_size=4))
def test_corrupted_json_fails_and_says_all_that_was_said(value: dict[str, object]) -> None:
    contract = JsonSchemaContract(
        json_schema={"type": "object", "required": list(value), "additionalProperties": False,
                     "properties": dict.fromkeys(value, True)},
        answer_name="not a name",
    )
    reply = json.dumps(value)
    assert fault_of(reply, contract) is None

    found = corruptions(reply, contract)

    assert {"a fence around it", "prose behind it", "prose before it", "an unclosed bracket",
            "a wrong name", "a name left out"} <= found.keys()
    for kind, text in found.items():
        assert fault_of(text, contract) is not None, kind
        assert leaves_left_in(text, value), kind


@given(st.integers(-999, 999), words)
def test_an_entry_is_left_out_only_beside_the_answer(number: int, unit: str) -> None:
    contract = JsonSchemaContract(json_schema=SCHEMA | {"required": ["answer", "unit"]})

    found = corruptions(json.dumps({"answer": number, "unit": unit}), contract)

    assert json.loads(found["an entry left out"]) == {"answer": number}


@given(words, words, st.sampled_from([("think", "answer"), ("answer",), ("a", "b", "c")]))
def test_corrupted_tags_fail_and_keep_every_word(
    thought: str, answer: str, tags: tuple[str, ...]
) -> None:
    contract = TagsContract(tags=tags)
    parts = [*[f"<{tag}>{thought}</{tag}>" for tag in tags[:-1]], f"<{tags[-1]}>{answer}</{tags[-1]}>"]
    reply = "\n".join(parts)
    assert fault_of(reply, contract) is None

    found = corruptions(reply, contract)

    assert len(found) == 5
    said = [*[thought] * (len(tags) - 1), answer]
    for kind, text in found.items():
        assert fault_of(text, contract) is not None, kind
        bare = re.sub(r"</?\w+>|Answer:|Let me know if you need anything else\.", " ", text)
        assert bare.split() == " ".join(said).split(), kind


@given(names, st.dictionaries(names, leaves, max_size=3))
def test_corrupted_tool_calls_fail_and_call_the_same(
    tool: str, arguments: dict[str, object]
) -> None:
    contract = ToolCallContract(tools={tool: {}})
    reply = json.dumps({"name": tool, "arguments": arguments})
    assert fault_of(reply, contract) is None

    found = corruptions(reply, contract)

    assert len(found) >= 6
    for kind, text in found.items():
        assert fault_of(text, contract) is not None, kind
        assert tool in text
        assert leaves_left_in(text, arguments), kind


@given(st.integers(0, 999))
def test_corrupted_lines_fail_and_keep_the_answer(number: int) -> None:
    contract = RegexContract(pattern=r"Answer: (?P<answer>\d+)")

    found = corruptions(f"Answer: {number}", contract)

    assert len(found) >= 5
    for kind, text in found.items():
        assert fault_of(text, contract) is not None, kind
        assert re.findall(r"\d+", text) == [str(number)], kind


def test_a_contract_that_takes_everything_has_no_corruption() -> None:
    assert corrupt("anything", RegexContract(), random.Random(0)) is None


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ('{"answer": 8}', 'Here: {"answer": 8}', True),
        ('{"answer": 8}', '{"answer": "8"}', True),
        ('{"answer": 8}', '{"Answer": 8}', True),
        ('{"answer": 8}', '{"answer": 8', True),
        ('{"answer": 8}', '```json\n{"answer": 8.0}\n```', True),
        ('{"answer": 8}', '{"answer": 9}', False),
        ('{"answer": 8}', "eight", False),
        ('{"low": 1, "high": 2}', '{"low": 2, "high": 1}', False),
        ('{"low": 1, "high": 2}', '{"high": 2, "low": 1}', True),
        ('{"a": {"low": 1, "high": 2}}', '{"a": {"low": 2, "high": 1}}', False),
        ('{"answer": 8, "unit": "m"}', '{"answer": 8}', False),
    ],
)
def test_without_a_verifier_all_that_json_says_is_its_answer(
    one: str, other: str, is_same: bool
) -> None:
    assert is_same_answer(one, other, JSON_FORM) is is_same
    assert is_same_answer(other, one, JSON_FORM) is is_same


def test_with_an_answer_spec_only_the_answer_counts() -> None:
    assert is_same_answer('{"answer": 8, "unit": "m"}', "The answer is 8.", JSON_FORM, NUMBER)
    assert not is_same_answer('{"answer": 8, "unit": "m"}', "The answer is 9.", JSON_FORM, NUMBER)
    assert is_same_answer("<think>3 + 5</think><answer>8</answer>", "Answer: 8", TAGS_FORM, NUMBER)


def reply(text: str, *, is_right: bool | None = None, contract: ContractSpec = JSON_FORM,
          is_truncated: bool = False, tokens: int = 8) -> FormReply:
    return FormReply(text, fault_of(text, contract), is_right, is_truncated, 10, tokens)


def asked(*replies: FormReply, shown: tuple[FormReply, ...] = ()) -> Asked:
    prompt = Prompt("p", ({"role": "user", "content": "What is 3 + 5? Ask ada@example.org."},))
    return Asked(prompt, replies, shown)


def config(**fields: object) -> SpecsConfig:
    return SpecsConfig.model_validate({"contract": JSON_FORM, "pairs_per_prompt": 1} | fields)


def test_the_models_own_reply_out_of_form_is_taken_first() -> None:
    one = asked(reply('{"answer": 9'), reply('So {"answer": 8}'), reply('{"answer": 8}'))

    made = build_pairs([one], config())

    [pair] = made.pairs
    assert (pair.chosen, pair.rejected) == ('{"answer": 8}', 'So {"answer": 8}')
    assert made.kinds == {SAMPLED: 1}


def test_a_copy_is_corrupted_where_the_model_said_nothing_else_alike() -> None:
    one = asked(reply('{"answer": 8}'), reply("It is 9."))

    made = build_pairs([one], config())

    [pair] = made.pairs
    assert pair.rejected is not None
    assert fault_of(pair.rejected, JSON_FORM)
    assert "8" in pair.rejected
    assert set(made.kinds) <= set(corruptions(pair.chosen, JSON_FORM))


def test_both_sides_are_right_where_that_can_be_told() -> None:
    verified = config(verifier=BY_NUMBER)
    one = asked(
        reply('{"answer": 9}', is_right=False),
        reply('{"answer": 9}', is_right=False),
        reply('{"answer": 8}', is_right=True),
        reply("The answer is 9.", is_right=False),
        reply("The answer is 8.", is_right=True),
    )

    [pair] = build_pairs([one], verified).pairs

    assert (pair.chosen, pair.rejected) == ('{"answer": 8}', "The answer is 8.")


def test_without_a_verifier_the_answer_that_most_agree_on_is_kept() -> None:
    one = asked(reply('{"answer": 9}'), reply('{"answer": 8}'), reply('{"answer":8}'))

    [pair] = build_pairs([one], config()).pairs

    assert json.loads(pair.chosen) == {"answer": 8}


def test_what_the_model_says_when_asked_for_the_form_is_taught_without_the_asking() -> None:
    one = asked(reply("It is 8."), shown=(reply('{"answer": 8}'),))

    [pair] = build_pairs([one], config(verifier=BY_NUMBER)).pairs

    assert pair.prompt == one.prompt.messages
    assert (pair.chosen, pair.rejected) == ('{"answer": 8}', "It is 8.")


@pytest.mark.parametrize(
    ("one", "fields", "why"),
    [
        (asked(reply("It is 8.")), {}, "no reply keeps the form"),
        (asked(reply('{"answer": 8}', is_truncated=True)), {}, "no reply keeps the form"),
        (
            asked(reply('{"answer": 9}', is_right=False)),
            {"verifier": BY_NUMBER},
            "no reply that keeps the form is right",
        ),
        (asked(reply('{"answer": 8}', tokens=5000)), {}, "too long to be trained"),
        (
            asked(reply("8", contract=RegexContract())),
            {"contract": RegexContract()},
            "nothing fails the form with the same answer",
        ),
        (
            asked(reply('{"answer": 8}', is_right=True)),
            {"verifier": BY_NUMBER, "pairs": "coupled"},
            "no wrong reply",
        ),
    ],
)
def test_a_prompt_without_a_pair_is_counted_with_its_reason(
    one: Asked, fields: dict[str, object], why: str
) -> None:
    made = build_pairs([one], config(**fields))

    assert made.pairs == []
    assert made.skipped == {why: 1}


def test_coupled_pairs_reject_a_wrong_answer() -> None:
    one = asked(
        reply('{"answer": 8}', is_right=True),
        reply('{"answer": 9}', is_right=False),
        reply("It is 7.", is_right=False),
        reply("It is 8.", is_right=True),
    )

    made = build_pairs([one], config(verifier=BY_NUMBER, pairs="coupled"))

    [pair] = made.pairs
    assert (pair.chosen, pair.rejected) == ('{"answer": 8}', "It is 7.")
    assert made.kinds == {WRONG: 1}


def test_the_sft_control_learns_the_chosen_alone() -> None:
    one = asked(reply('{"answer": 8}'), reply("It is 8."))

    [pair] = build_pairs([one], config(cold_start="sft", sft_weight=0.0)).pairs

    assert pair.rejected is None
    assert pair.sft_weight == 1.0


def test_no_pair_is_made_twice_of_a_prompt() -> None:
    same = [reply('{"answer": 8}')] * 4 + [reply('So {"answer": 8}')] * 4

    made = build_pairs([asked(*same)], config(pairs_per_prompt=4))

    assert len(made.pairs) == 1


def test_examples_are_redacted_and_short() -> None:
    long = JsonSchemaContract()
    text = json.dumps("mail ada@example.org " * 30)
    one = asked(reply(text, contract=long))

    report = build_pairs([one], config(contract=long)).report()

    [example] = report["examples"].values()
    assert "ada@" not in json.dumps(example)
    assert all(len(each) <= 201 for each in example.values())


@given(st.lists(st.tuples(st.sampled_from([7, 8, 9]), st.sampled_from(
    ['{{"answer": {}}}', 'So {{"answer": {}}}', '{{"answer": {}', "It is {}.", "{}"]
)), min_size=1, max_size=12))
def test_no_pair_ever_differs_in_the_answer(said: list[tuple[int, str]]) -> None:
    one = asked(*[reply(form.format(n), is_right=n == 8) for n, form in said])

    agreed = build_pairs([one], config(pairs_per_prompt=3)).pairs
    verified = build_pairs([one], config(pairs_per_prompt=3, verifier=BY_NUMBER)).pairs

    for pair in (*agreed, *verified):
        assert pair.rejected is not None
        assert re.findall(r"\d", pair.chosen) == re.findall(r"\d", pair.rejected)
        assert fault_of(pair.chosen, JSON_FORM) is None
        assert fault_of(pair.rejected, JSON_FORM) is not None
    assert all("8" in pair.chosen for pair in verified)
