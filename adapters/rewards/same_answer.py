"""Do two replies say the same, whatever their form?"""

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from adapters.rewards.answers import normalise
from adapters.rewards.contracts import answer_in, final_answer, read_json
from adapters.rewards.equivalence import are_equal
from adapters.rewards.extraction import extract
from adapters.spec import AnswerKind, AnswerSpec, ContractSpec, JsonSchemaContract, ToolCallContract

_TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*")(?P<is_name>\s*:)?'
    r"|(?P<plain>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\btrue\b|\bfalse\b|\bnull\b)"
)


def is_same_answer(
    one: str, other: str, contract: ContractSpec, answer: AnswerSpec | None = None
) -> bool:
    """Whether both give the same answer; False where either's cannot be told.

    By `answer`, where it is known how the final answer is read and both can be read. Else by all
    that is said: the values of the JSON or of the call (a name that is misspelt does not count, a
    value that changed places with another does), what the last tag holds, what the pattern finds.
    """
    if answer is not None:
        first, second = (read_answer(each, contract, answer) for each in (one, other))
        if first is not None and second is not None:
            return are_equal(first, second, answer)
    if isinstance(contract, (JsonSchemaContract, ToolCallContract)):
        return _same_values(one, other, contract)
    said = [normalise(answer_in(each, contract) or "") for each in (one, other)]
    return bool(said[0]) and said[0] == said[1]


def read_answer(reply: str, contract: ContractSpec, answer: AnswerSpec) -> str | None:
    """The final answer of a reply, in the contract's form or in any."""
    return extract(answer_part(reply, contract, answer), answer)


def answer_part(reply: str, contract: ContractSpec, answer: AnswerSpec) -> str:
    """The part of a reply that its final answer is read from; all of it where it is in no form."""
    found = None
    if answer.kind is not AnswerKind.JSON:
        found = final_answer(reply, contract)
    return found or answer_in(reply, contract) or reply


def values_in(text: str) -> list[str] | None:
    """The values of JSON in a text, also where it is broken, sorted; None where there is none."""
    start = min((at for at in map(text.find, "{[") if at >= 0), default=-1)
    if start < 0:
        try:
            return _leaves(read_json(text))
        except ValueError:
            return None
    end = max(text.rfind("}"), text.rfind("]"))
    found = _TOKEN.finditer(text, start, end + 1 if end > start else len(text))
    values = [_read(match[0]) for match in found if not match["is_name"]]
    return sorted(values) or None


def _same_values(one: str, other: str, contract: ContractSpec) -> bool:
    parsed = [_parsed(answer_in(each, contract)) for each in (one, other)]
    sides = [
        values_in(each) if value is None else _leaves(value)
        for each, value in zip((one, other), parsed, strict=True)
    ]
    if not sides[0] or sides[0] != sides[1]:
        return False
    return _agree(parsed[0], parsed[1])


def _agree(one: Any, other: Any) -> bool:
    """Whether names that both have hold the same."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return True
    shared = one.keys() & other.keys()
    return all(
        _leaves(one[name]) == _leaves(other[name]) and _agree(one[name], other[name])
        for name in shared
    )


def _parsed(text: str | None) -> Any:
    try:
        return None if text is None else read_json(text)
    except ValueError:
        return None


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return sorted(leaf for inner in value.values() for leaf in _leaves(inner))
    if isinstance(value, list):
        return sorted(leaf for inner in value for leaf in _leaves(inner))
    return [_plain(value)]


def _read(token: str) -> str:
    try:
        return _plain(json.loads(token))
    except ValueError:
        return token


def _plain(value: Any) -> str:
    """A value as text: "8", 8 and 8.0 are the same, the type being a matter of form."""
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return " ".join(text.split())
    return str(number.normalize()) if number.is_finite() else text
