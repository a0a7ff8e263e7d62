"""Does a reply keep a form that code can check? And what does it answer, in that form or near it?

Made for what models and users write: no pattern or schema hangs or crashes it, however bad the
reply. Patterns run in the `regex` module under a time limit, those inside of schemas too; a schema
is evaluated in a bounded number of steps, which also ends schemas that refer to themselves.
"""

import json
import re
import time
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import jsonschema
from jsonschema import ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from adapters.spec import (
    ContractSpec,
    JsonSchemaContract,
    RegexContract,
    TagsContract,
    ToolCallContract,
)
from adapters.spec.patterns import compiled
from adapters.spec.schemas import draft_of

MAX_REPLY_CHARS = 32_000
"""Longer replies keep no contract."""

_PATTERN_SECONDS = 0.2
_PATTERNS_SECONDS = 1.0
"""For all patterns of a schema, on one reply."""
_MAX_STEPS = 100_000
"""Keywords looked at for one reply."""
_FENCE = re.compile(r"\s*```[A-Za-z]{0,10}[ \t]*\n(?P<body>.*?)\n?[ \t]*```\s*", re.DOTALL)
_CALL_OPEN, _CALL_CLOSE = "<tool_call>", "</tool_call>"
"""How Hermes, Qwen and others mark a call in the reply's text."""

_NO_JSON = "no JSON"
_AROUND_JSON = "text around the JSON"
_TOO_LONG_TO_MATCH = "the pattern took too long"
_UNDECIDED = "the schema took too long"


class _OutOfSteps(Exception):
    """The schema is dearer than any that is meant."""


def fault_of(reply: str, contract: ContractSpec) -> str | None:
    """Why a reply does not keep a contract, a short closed phrase to count by; None if it does."""
    if len(reply) > MAX_REPLY_CHARS:
        return "too long to be checked"
    if not reply.strip():
        return "an empty reply"
    match contract:
        case JsonSchemaContract():
            return _json_fault(reply, contract)
        case TagsContract():
            return _tags_fault(reply, contract.tags)
        case RegexContract():
            return _pattern_fault(reply, contract.pattern)
        case ToolCallContract():
            return _call_fault(reply, contract)


def answer_in(reply: str, contract: ContractSpec) -> str | None:
    """What a reply answers, whether it keeps the contract or only comes near it; None if unclear.

    Of JSON its text, alone, in a fence, or in other text; of tags what the last one holds; of a
    pattern its group `answer`, else its first group, else the match; of a tool call name and
    arguments as JSON.
    """
    if len(reply) > MAX_REPLY_CHARS:
        return None
    match contract:
        case JsonSchemaContract():
            found = _json_text(reply)
        case TagsContract():
            found = _last_part(reply, contract.tags[-1])
        case RegexContract():
            found = _group(reply, contract.pattern)
        case ToolCallContract():
            found = _call_text(reply)
    return (found or "").strip() or None


def final_answer(reply: str, contract: ContractSpec) -> str | None:
    """What `answer_in` finds, or of a JSON object the part of it that is the answer: what stands
    under the contract's `answer_name`, or the only value that there is."""
    found = answer_in(reply, contract)
    if found is None or not isinstance(contract, JsonSchemaContract):
        return found
    value = read_json(found)
    if isinstance(value, dict):
        if contract.answer_name in value:
            value = value[contract.answer_name]
        elif len(value) == 1:
            [value] = value.values()
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) or None


def read_json(text: str) -> Any:
    """A JSON value, read strictly: no NaN or infinity, no name twice in an object.

    Raises:
        ValueError: it is none, or nests too deep.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def schema_fault(value: Any, schema: dict[str, Any]) -> str | None:
    """The keyword of a schema that refuses a value, in a closed phrase; None if it is valid."""
    validator = _validator(json.dumps(schema, sort_keys=True))
    _steps.set(_MAX_STEPS)
    _deadline.set(time.monotonic() + _PATTERNS_SECONDS)
    try:
        error = next(validator.iter_errors(value), None)
    except (_OutOfSteps, RecursionError, TimeoutError):
        return _UNDECIDED
    except (Unresolvable, ArithmeticError, ValueError, TypeError):
        return "the schema cannot be applied"
    return None if error is None else f"against the schema: {error.validator}"


def _json_fault(reply: str, contract: JsonSchemaContract) -> str | None:
    text = reply
    if contract.may_be_fenced and (fenced := _FENCE.fullmatch(reply)):
        text = fenced["body"]
    try:
        value = read_json(text)
    except ValueError:
        return _AROUND_JSON if _json_text(reply) else _NO_JSON
    return schema_fault(value, contract.json_schema)


def _json_text(reply: str) -> str | None:
    """The first JSON object or list in a text, or all of it where it is a JSON value."""
    if _is_json(reply):
        return reply.strip()
    if (fenced := _FENCE.search(reply)) and _is_json(fenced["body"]):
        return fenced["body"].strip()
    start = min((at for at in map(reply.find, "{[") if at >= 0), default=-1)
    if start < 0:
        return None
    try:
        _, end = _DECODER.raw_decode(reply, start)
    except (ValueError, RecursionError):
        return None
    return reply[start:end]


def _is_json(text: str) -> bool:
    try:
        read_json(text)
    except ValueError:
        return False
    return True


def _tags_fault(reply: str, tags: tuple[str, ...]) -> str | None:
    text = reply.strip()
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    counts = [text.count(mark) for mark in marks]
    if 0 in counts:
        return "a tag is missing"
    if max(counts) > 1:
        return "a tag stands twice"
    places = [text.index(mark) for mark in marks]
    if places != sorted(places):
        return "tags in another order"
    ends = [place + len(mark) for place, mark in zip(places, marks, strict=True)]
    between = [text[: places[0]], text[ends[-1] :]]
    between += [text[ends[at] : places[at + 1]] for at in range(1, len(marks) - 1, 2)]
    if any(part.strip() for part in between):
        return "text outside of the tags"
    return None if text[ends[-2] : places[-1]].strip() else "an empty answer"


def _last_part(reply: str, tag: str) -> str | None:
    _, mark, rest = reply.rpartition(f"<{tag}>")
    return rest.partition(f"</{tag}>")[0] if mark else None


def _pattern_fault(reply: str, pattern: str) -> str | None:
    try:
        match = compiled(pattern).fullmatch(reply, timeout=_PATTERN_SECONDS)
    except TimeoutError:
        return _TOO_LONG_TO_MATCH
    return None if match else "the pattern does not match"


def _group(reply: str, pattern: str) -> str | None:
    try:
        known = compiled(pattern)
        match = known.fullmatch(reply, timeout=_PATTERN_SECONDS) or known.search(
            reply, timeout=_PATTERN_SECONDS
        )
    except TimeoutError:
        return None
    if match is None:
        return None
    name = "answer" if "answer" in match.groupdict() else int(bool(match.groups()))
    found: str | None = match[name]
    return found


def _call_fault(reply: str, contract: ToolCallContract) -> str | None:
    body = reply.strip()
    if body.startswith(_CALL_OPEN) and body.endswith(_CALL_CLOSE):
        body = body.removeprefix(_CALL_OPEN).removesuffix(_CALL_CLOSE)
    try:
        value = read_json(body)
    except ValueError:
        return "text around the call" if _call_text(reply) else "no tool call"
    call = _call(value)
    if call is None:
        return "not one call with name and arguments"
    name, arguments = call
    if name not in contract.tools:
        return "an unknown tool"
    return schema_fault(arguments, contract.tools[name])


def _call(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments: of a call as models write it, or as the engine gives it parsed."""
    if not isinstance(value, dict):
        return None
    if "tool_calls" in value:
        calls = value["tool_calls"]
        if value.get("content") or not isinstance(calls, list) or len(calls) != 1:
            return None
        value = calls[0].get("function") if isinstance(calls[0], dict) else None
        if not isinstance(value, dict):
            return None
        if isinstance(value.get("arguments"), str):
            try:
                value = {**value, "arguments": read_json(value["arguments"])}
            except ValueError:
                return None
    if set(value) != {"name", "arguments"}:
        return None
    name, arguments = value["name"], value["arguments"]
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _call_text(reply: str) -> str | None:
    text = _json_text(reply)
    if text is None:
        return None
    try:
        call = _call(read_json(text))
    except ValueError:
        return None
    return json.dumps({"name": call[0], "arguments": call[1]}) if call else None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands twice")
    return made


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object
)

_steps: ContextVar[int] = ContextVar("steps", default=_MAX_STEPS)
"""Left for the reply that is being looked at."""
_deadline: ContextVar[float] = ContextVar("deadline", default=0.0)
"""When the patterns of a schema must be through with the reply that is being looked at."""


@lru_cache(maxsize=64)
def _validator(schema_json: str) -> Any:
    schema = json.loads(schema_json)
    kind = draft_of(schema)
    own = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    keywords = {name: own.get(name, rule) for name, rule in kind.VALIDATORS.items()}
    bounded = {name: _bounded(rule) for name, rule in keywords.items()}
    made = jsonschema.validators.extend(kind, bounded)
    return made(schema, registry=Registry())  # an empty one: nothing is fetched


def _bounded(rule: Any) -> Any:
    def checked(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        left = _steps.get() - 1
        _steps.set(left)
        if left < 0:
            raise _OutOfSteps
        return rule(validator, value, instance, schema)

    return checked


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _finds(pattern, instance):
        yield ValidationError("a pattern does not match")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for pattern, inner in patterns.items():
        for name, value in instance.items():
            if _finds(pattern, name):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name in known or any(_finds(pattern, name) for pattern in patterns):
            continue
        if allowed is False:
            yield ValidationError("a name is not allowed")
        elif isinstance(allowed, dict):
            yield from validator.descend(value, allowed, path=name)


def _finds(pattern: str, text: str) -> bool:
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise TimeoutError
    found = compiled(pattern).search(text, timeout=min(left, _PATTERN_SECONDS))
    return found is not None
