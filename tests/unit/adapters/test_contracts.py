"""Contracts: what keeps the form, what does not and why, and nothing that hangs or crashes."""

import json
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.rewards.contracts import (
    MAX_REPLY_CHARS,
    answer_in,
    fault_of,
    final_answer,
    schema_fault,
)
from adapters.spec import (
    CONTRACT,
    ContractSpec,
    JsonSchemaContract,
    RegexContract,
    TagsContract,
    ToolCallContract,
)
from adapters.spec.schemas import MAX_SCHEMA_CHARS, MAX_SCHEMA_DEPTH, check_schema

ANSWER = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "unit": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}
JSON_FORM = JsonSchemaContract(json_schema=ANSWER)
FENCED_FORM = JsonSchemaContract(json_schema=ANSWER, may_be_fenced=True)
TAGS_FORM = TagsContract()
PATTERN_FORM = RegexContract(pattern=r"Answer: (?P<answer>\d+)")
CALL_FORM = ToolCallContract(
    tools={"weather": {"type": "object", "required": ["city"], "additionalProperties": False,
                       "properties": {"city": {"type": "string"}}}}
)
CALL = {"name": "weather", "arguments": {"city": "Orm"}}
ENGINES_CALL = {
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Orm"}'},
        }
    ],
}
FORMS = (JSON_FORM, FENCED_FORM, TAGS_FORM, PATTERN_FORM, CALL_FORM)


@pytest.mark.parametrize(
    ("contract", "reply", "answer"),
    [
        (JSON_FORM, '{"answer": 8}', '{"answer": 8}'),
        (JSON_FORM, ' \n{"answer": 8}\n', '{"answer": 8}'),
        (FENCED_FORM, '```json\n{"answer": 8}\n```', '{"answer": 8}'),
        (JsonSchemaContract(), "[1, 2]", "[1, 2]"),
        (TAGS_FORM, "<think>3 + 5</think><answer>8</answer>", "8"),
        (TAGS_FORM, "\n<think></think>\n\n<answer>\n8\n</answer>\n", "8"),
        (TagsContract(tags=("a", "b", "c")), "<a>1</a> <b>2</b> <c>3</c>", "3"),
        (PATTERN_FORM, "Answer: 8", "8"),
        (RegexContract(pattern=r"(\w+), (\w+)"), "yes, no", "yes"),
        (RegexContract(pattern=r"\w+"), "yes", "yes"),
        (CALL_FORM, json.dumps(CALL), json.dumps(CALL)),
        (CALL_FORM, f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>", json.dumps(CALL)),
        (CALL_FORM, json.dumps(ENGINES_CALL), json.dumps(CALL)),
    ],
)
def test_a_reply_in_form_passes_and_its_answer_is_found(
    contract: ContractSpec, reply: str, answer: str
) -> None:
    assert fault_of(reply, contract) is None
    assert answer_in(reply, contract) == answer


@pytest.mark.parametrize(
    ("contract", "reply", "fault", "answer"),
    [
        (JSON_FORM, "", "an empty reply", None),
        (JSON_FORM, "eight", "no JSON", None),
        (JSON_FORM, '{"answer": 8', "no JSON", None),
        (JSON_FORM, '{"answer": NaN}', "no JSON", None),
        (JSON_FORM, '{"answer": 1e999}', "no JSON", None),
        (JSON_FORM, '{"answer": 8, "answer": 9}', "no JSON", None),
        (JSON_FORM, "[" * 20_000, "no JSON", None),
        (JSON_FORM, 'Sure: {"answer": 8}.', "text around the JSON", '{"answer": 8}'),
        (JSON_FORM, '```json\n{"answer": 8}\n```', "text around the JSON", '{"answer": 8}'),
        (JSON_FORM, '{"answer": "8"}', "against the schema: type", '{"answer": "8"}'),
        (JSON_FORM, '{"unit": "m"}', "against the schema: required", '{"unit": "m"}'),
        (
            JSON_FORM,
            '{"answer": 8, "x": 1}',
            "against the schema: additionalProperties",
            '{"answer": 8, "x": 1}',
        ),
        (TAGS_FORM, "8", "a tag is missing", None),
        (TAGS_FORM, "<think>x</think><answer>8", "a tag is missing", "8"),
        (TAGS_FORM, "<answer>8</answer><think>x</think>", "tags in another order", "8"),
        (TAGS_FORM, "<think>x</think> so <answer>8</answer>", "text outside of the tags", "8"),
        (TAGS_FORM, "<think>x</think><answer>8</answer>!", "text outside of the tags", "8"),
        (TAGS_FORM, "<think>x<answer>8</answer></think>", "tags in another order", "8"),
        (
            TAGS_FORM,
            "<think>x</think><answer>7</answer><answer>8</answer>",
            "a tag stands twice",
            "8",
        ),
        (TAGS_FORM, "<think>8</think><answer> </answer>", "an empty answer", None),
        (PATTERN_FORM, "So: Answer: 8.", "the pattern does not match", "8"),
        (PATTERN_FORM, "8", "the pattern does not match", None),
        (CALL_FORM, "weather in Orm", "no tool call", None),
        (CALL_FORM, f"Well: {json.dumps(CALL)}", "text around the call", json.dumps(CALL)),
        (CALL_FORM, '{"name": "weather"}', "not one call with name and arguments", None),
        (
            CALL_FORM,
            '{"name": "weather", "arguments": {}}',
            "against the schema: required",
            '{"name": "weather", "arguments": {}}',
        ),
        (
            CALL_FORM,
            '{"name": "time", "arguments": {}}',
            "an unknown tool",
            '{"name": "time", "arguments": {}}',
        ),
        (
            CALL_FORM,
            json.dumps({"content": None, "tool_calls": ENGINES_CALL["tool_calls"] * 2}),
            "not one call with name and arguments",
            None,
        ),
    ],
)
def test_a_reply_out_of_form_has_a_fault_and_its_answer_is_found_where_it_is_clear(
    contract: ContractSpec, reply: str, fault: str, answer: str | None
) -> None:
    assert fault_of(reply, contract) == fault
    assert answer_in(reply, contract) == answer


@given(st.text(max_size=300), st.sampled_from(FORMS))
@example('{"answer": ' * 2000, JSON_FORM)
@example("\ud800", JSON_FORM)
def test_no_text_crashes_a_contract(reply: str, contract: ContractSpec) -> None:
    fault = fault_of(reply, contract)

    assert fault is None or 0 < len(fault) < 80
    assert answer_in(reply, contract) != ""
    assert final_answer(reply, contract) != ""


@given(st.integers(), st.text(max_size=20))
def test_any_valid_value_keeps_the_schema(number: int, unit: str) -> None:
    value = {"answer": number, "unit": unit}

    assert fault_of(json.dumps(value), JSON_FORM) is None
    assert final_answer(json.dumps(value), JSON_FORM) == str(number)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ('{"result": "8 m"}', "8 m"),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 2}'),
        ('"eight"', "eight"),
        ("8", "8"),
        ('{"answer": [1, 2], "b": 3}', "[1, 2]"),
    ],
)
def test_the_answer_in_json_is_under_its_name_or_the_only_value(reply: str, answer: str) -> None:
    assert final_answer(reply, JsonSchemaContract()) == answer


def nested_references(levels: int) -> dict[str, Any]:
    """2 to the power of `levels` visits of the last definition."""
    definitions: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)
    }
    return {"$defs": definitions | {f"d{levels}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("contract", "reply"),
    [
        (RegexContract(pattern=r"(a|aa)+$"), "a" * 5000 + "b"),
        (JsonSchemaContract(json_schema={"pattern": r"^(a|aa)+$"}), '"' + "a" * 5000 + 'b"'),
        (
            JsonSchemaContract(json_schema={"patternProperties": {r"^(a|aa)+$": False}}),
            json.dumps({"a" * 5000 + "b": 1}),
        ),
        (
            JsonSchemaContract(
                json_schema={
                    "additionalProperties": False,
                    "patternProperties": {r"^(a|aa)+$": True},
                }
            ),
            json.dumps({"a" * 5000 + "b": 1}),
        ),
        (JsonSchemaContract(json_schema=nested_references(30)), "5"),
        (
            JsonSchemaContract(
                json_schema={"$defs": {"d": {"anyOf": [{"$ref": "#/$defs/d"}]}}, "$ref": "#/$defs/d"}
            ),
            "5",
        ),
        (JsonSchemaContract(), '"' + "a" * MAX_REPLY_CHARS + '"'),
    ],
)
def test_nothing_hangs(contract: ContractSpec, reply: str) -> None:
    began = time.thread_time()

    fault = fault_of(reply, contract)

    assert fault is not None
    assert "long" in fault
    assert time.thread_time() - began < 5.0


def test_patterns_that_match_are_as_in_plain_json_schema() -> None:
    schema = {
        "patternProperties": {"^n_": {"type": "integer"}},
        "additionalProperties": {"type": "string", "pattern": "^[a-z]+$"},
    }

    assert schema_fault({"n_a": 1, "b": "x"}, schema) is None
    assert schema_fault({"n_a": "1"}, schema) == "against the schema: type"
    assert schema_fault({"b": "X"}, schema) == "against the schema: pattern"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"json_schema": {"properties": {"age": {"type": "integr"}}}}, "properties.age.type"),
        ({"json_schema": {"items": {"$ref": "https://example.org/s"}}}, "items.$ref"),
        ({"json_schema": {"items": {"$ref": "other.json"}}}, "items.$ref"),
        ({"json_schema": {"items": {"$ref": "#/$defs/none"}}}, "items.$ref"),
        ({"json_schema": {"properties": {"a": {"pattern": "(a"}}}}, "properties.a.pattern"),
        ({"json_schema": {"patternProperties": {"(a": True}}}, "patternProperties"),
        ({"json_schema": {"$schema": "https://example.org/draft"}}, "$schema"),
        ({"json_schema": {"unevaluatedProperties": False}}, "unevaluatedProperties"),
        ({"json_schema": {"const": "x" * MAX_SCHEMA_CHARS}}, "characters"),
        ({"json_schema": {"required": "answer"}}, "required"),
        ({"type": "regex", "pattern": "(a"}, "pattern"),
        ({"type": "tags", "tags": ["a", "a"]}, "tags"),
        ({"type": "tags", "tags": ["a b"]}, "tags"),
        ({"type": "tool-call", "tools": {}}, "tools"),
        ({"type": "tool-call", "tools": {"f": {"type": "objekt"}}}, "type: 'objekt'"),
    ],
)
def test_a_bad_contract_is_refused_with_its_place(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as error:
        CONTRACT.validate_python({"type": "json-schema"} | fields)

    assert place in str(error.value)


def test_a_schema_nested_too_deep_is_refused_and_not_walked() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"not": schema}

    with pytest.raises(ValueError, match=f"more than {MAX_SCHEMA_DEPTH} deep"):
        check_schema(schema)


def test_names_of_properties_are_no_keywords() -> None:
    check_schema(
        {
            "properties": {
                "$ref": {"type": "string"},
                "unevaluatedItems": {"type": "string"},
                "default": {"$ref": "#/$defs/unevaluatedProperties"},
            },
            "default": {"$ref": "https://example.org"},
            "$defs": {"unevaluatedProperties": {"type": "string"}},
        }
    )


def test_older_drafts_are_read_as_such() -> None:
    schema = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 5,
              "exclusiveMaximum": True}

    assert schema_fault(4, schema) is None
    assert schema_fault(5, schema) == "against the schema: maximum"
