"""The same reply in a form that is not the contract's: the rejected side of SPECS's pairs.

The paper (arXiv 2510.25801) strips or moves tags, in five ways. Here each contract has its own ways,
and each leaves the answer as it is: its words and values are never changed, only what is around them.
"""

import json
import random
import re
from collections.abc import Iterator
from typing import TypeAlias

from adapters.rewards.contracts import answer_in, fault_of, read_json
from adapters.spec import (
    ContractSpec,
    JsonSchemaContract,
    RegexContract,
    TagsContract,
    ToolCallContract,
)
from adapters.types import JSON

Copies: TypeAlias = Iterator[tuple[str, str]]
"""What was done, and what came of it."""

_AFTER = "\n\nLet me know if you need anything else."
_BEFORE = "Sure! Here it is:\n"


def corrupt(reply: str, contract: ContractSpec, draw: random.Random) -> tuple[str, str] | None:
    """One of the corrupted copies of a reply that keeps the contract: what was done, and the text.

    None where nothing that we know to do breaks the form.
    """
    found = corruptions(reply, contract)
    return draw.choice(sorted(found.items())) if found else None


def corruptions(reply: str, contract: ContractSpec) -> dict[str, str]:
    """The corrupted copies of a reply, one for each thing to do; all of them fail the contract."""
    found: dict[str, str] = {}
    for kind, text in _copies(reply.strip(), contract):
        if kind not in found and fault_of(text, contract) is not None:
            found[kind] = text
    return found


def _copies(reply: str, contract: ContractSpec) -> Copies:
    match contract:
        case JsonSchemaContract():
            body = answer_in(reply, contract) or reply
            yield from _around(body, fence="json")
            yield from _json_copies(body)
            yield from _shorter_objects(body, contract)
        case ToolCallContract():
            body = answer_in(reply, contract) or reply
            yield from _around(body, fence="json")
            yield from _json_copies(body)
            yield from _written_calls(body)
        case TagsContract():
            yield from _tags_copies(reply, contract.tags)
        case RegexContract():
            yield from _around(reply, fence="")
            yield from _bare_answer(reply, contract)


def _around(body: str, *, fence: str) -> Copies:
    yield "a fence around it", f"```{fence}\n{body}\n```"
    yield "a fence that is not closed", f"```{fence}\n{body}"
    yield "prose behind it", body + _AFTER
    yield "prose before it", _BEFORE + body


def _json_copies(body: str) -> Copies:
    if body.endswith(("}", "]")):
        yield "an unclosed bracket", body[:-1].rstrip()
    if body.startswith('"') and len(body) > 2:
        yield "quotes left out", str(read_json(body))
    for name in _names(body):
        place = re.compile(re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:\s*")
        if found := place.search(body):
            yield "a name left out", body[: found.start()] + body[found.end() :]
            for other in (name.upper(), f"my_{name}"):
                written = json.dumps(other, ensure_ascii=False) + ": "
                yield "a wrong name", body[: found.start()] + written + body[found.end() :]


def _shorter_objects(body: str, contract: JsonSchemaContract) -> Copies:
    """Without an entry, where the answer is known to stand under another name."""
    value = _object(body)
    if contract.answer_name in value:
        for name in sorted(value.keys() - {contract.answer_name}):
            rest = {key: inner for key, inner in value.items() if key != name}
            yield "an entry left out", json.dumps(rest, ensure_ascii=False)


def _written_calls(body: str) -> Copies:
    call = _object(body)
    arguments = call.get("arguments")
    if isinstance(arguments, dict):
        given = ", ".join(f"{key}={json.dumps(value)}" for key, value in arguments.items())
        yield "a call as code", f"{call['name']}({given})"


def _tags_copies(reply: str, tags: tuple[str, ...]) -> Copies:
    """The paper's five, for the last tag, which is the answer's, and those before it."""
    last, others = tags[-1], tags[:-1]
    yield "all tags stripped", _stripped(reply, *tags)
    yield "the answer's tags stripped", _stripped(reply, last)
    yield "an Answer: for its tags", _stripped(
        reply.replace(f"<{last}>", "Answer: "), last
    )
    if others:
        yield "the other tags stripped", _stripped(reply, *others)
        close = f"</{others[-1]}>"
        moved = _stripped(reply, last).replace(close, "")
        yield "a closing tag moved to the end", f"{moved}\n{close}"
    else:
        yield "the closing tag left out", reply.replace(f"</{last}>", "")
        yield "prose behind it", reply + _AFTER


def _stripped(reply: str, *tags: str) -> str:
    """Without these tags; a line end stands where two parts would run into one another."""
    for tag in tags:
        reply = reply.replace(f"<{tag}>", "\n").replace(f"</{tag}>", "\n")
    return re.sub(r"\n{2,}", "\n", reply).strip()


def _bare_answer(reply: str, contract: RegexContract) -> Copies:
    answer = answer_in(reply, contract)
    if answer is not None:
        yield "the bare answer", answer
        yield "the answer in a sentence", f"I would say {answer}, if I am not mistaken."


def _names(body: str) -> list[str]:
    return list(_object(body))


def _object(body: str) -> dict[str, JSON]:
    try:
        value = read_json(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


