"""Patterns that users write: measured before anything compiles them."""

import contextlib
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.rewards.contracts import schema_fault
from adapters.rewards.extraction import find_pattern
from adapters.spec import CONTRACT, AnswerSpec
from adapters.spec.patterns import MAX_PATTERN_SIZE, compile_pattern, size_of
from adapters.spec.schemas import check_schema

HUGE = "((a{1000}){1000}){10}"
TOO_LARGE = [
    HUGE,
    "(((a{1000}){1000}){1000}){1000}",
    r"((\p{L}{1000}){1000}){10}",
    "(a{1000,}){1000,}",
    "(?:" * 30 + "a" + ")+" * 30,
    "(?:" * 30 + "a" + "){1,2}" * 30,
    "(?<=(?:a{1000}){1000})",
    "(?:[[:alpha:])]a{1000}[[:alpha:](]){1000}",
    r"(?:(?#\)((?:)a{1000}(?#\))){1000}",
    "a{9999999}",
    "a{" + "9" * 5000 + "}",
    "a{1000}" * 60,
]
HIDDEN = ["(?x)(?:a{10 00}){1000}", "(?x)(?:a{1#}\n000}){1000}", "(?if)(?:[a-\U0010ffff]){9999}"]
FINE = [
    r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})T(\d{2}):(\d{2}):(\d{2})(\.\d+)?(Z|[+-]\d{2})",
    r"([0-9a-f]{8})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{12})",
    r"(?s)<think>.{0,8000}</think>\s*(?P<answer>.{1,2000})",
    r"(?:- \w+(?: \w+)*\n){3,5}",
    r"((a{0,1000}){0,1000}){0,1000}",
    r"\p{Lu}\p{L}+(?: \p{Lu}\p{L}+){1,3}",
    r"\((?:foo|bar)\) #[0-9]{4}",
]


@pytest.mark.parametrize("pattern", TOO_LARGE)
def test_what_would_be_huge_is_refused_at_once(pattern: str) -> None:
    began = time.monotonic()

    with pytest.raises(ValueError, match="use smaller counts"):
        compile_pattern(pattern)

    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("pattern", HIDDEN)
def test_flags_under_which_nothing_can_be_counted_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="flags x and f"):
        compile_pattern(pattern)


@pytest.mark.parametrize("pattern", FINE)
def test_what_people_write_is_taken(pattern: str) -> None:
    assert compile_pattern(pattern).pattern == pattern


@given(st.text(alphabet=r"ab()[]{}\?*+|,:#-<>=^0123456789pLxfi", max_size=60))
@example("(" * 5000 + ")" * 5000)
@example("(?:" * 5000)
@settings(max_examples=300, deadline=2000)
def test_any_text_compiles_or_is_refused(pattern: str) -> None:
    try:
        compile_pattern(pattern)
    except ValueError:
        return
    assert size_of(pattern) <= MAX_PATTERN_SIZE


@pytest.mark.parametrize(
    "config",
    [
        {"type": "regex", "pattern": HUGE},
        {"type": "json-schema", "json_schema": {"properties": {"a": {"pattern": HUGE}}}},
        {"type": "json-schema", "json_schema": {"patternProperties": {HUGE: True}}},
        {"type": "tool-call", "tools": {"f": {"pattern": HUGE}}},
    ],
)
def test_no_contract_takes_a_huge_one(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="use smaller counts"):
        CONTRACT.validate_python(config)


def test_no_answer_is_found_by_a_huge_one() -> None:
    with pytest.raises(ValidationError, match="use smaller counts"):
        AnswerSpec.model_validate({"kind": "regex", "pattern": HUGE})

    assert find_pattern(HUGE, "aaa") is None


def test_a_schema_may_not_have_many_large_ones_either() -> None:
    many = [{"pattern": f"a{{4{number:03}}}"} for number in range(20)]

    check_schema({"allOf": many[:9]})
    with pytest.raises(ValueError, match="use smaller counts"):
        check_schema({"allOf": many})


def test_a_huge_one_in_data_that_a_reference_makes_a_schema_cannot_be_applied() -> None:
    schema = {"default": {"pattern": HUGE}, "$ref": "#/default"}

    check_schema(schema)

    assert schema_fault("aaa", schema) == "the schema cannot be applied"


@pytest.mark.parametrize("deep", [300, 3000])
def test_brackets_as_deep_as_can_be_are_taken_or_refused(deep: int) -> None:
    with contextlib.suppress(ValueError):
        check_schema({"pattern": "(" * deep + ")" * deep})
