"""Whether a JSON schema that a user wrote may be used at all.

Checked when a config is read, so that a bad one is refused with its place named and never met in
the middle of a run. The libraries are imported when there is something to check.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from adapters.spec.patterns import check_size, compile_pattern, size_of

MAX_SCHEMA_CHARS = 20_000
"""Of a schema, written as JSON."""
MAX_SCHEMA_DEPTH = 32
"""Of lists and objects in one another."""

_DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are data, not schemas."""
_NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords below which the names are the user's own."""
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_UNSUPPORTED = {
    "unevaluatedProperties": "name the properties and use additionalProperties",
    "unevaluatedItems": "name the items and use items",
}


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that is none, is too large, or points outside of itself.

    Raises:
        ValueError: the message names the place in the schema and what is wrong with it.
    """
    import jsonschema

    if _depth(schema) > MAX_SCHEMA_DEPTH:  # before anything walks it
        raise ValueError(f"the schema is nested more than {MAX_SCHEMA_DEPTH} deep; flatten it")
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the schema is no JSON: {error}") from None
    if size > MAX_SCHEMA_CHARS:
        raise ValueError(
            f"the schema has {size} characters, more than {MAX_SCHEMA_CHARS}; shorten it"
        )
    _check_patterns(schema)  # before the library compiles any of them
    kind = draft_of(schema)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"{_place(error.absolute_path)}: {error.message[:300]}") from None
    except (OverflowError, RecursionError) as error:  # a pattern that plain `re` cannot take
        raise ValueError(f"the schema cannot be read: {error}") from None
    for place, keyword, value in _keywords(schema, ()):
        _check_keyword(schema, place, keyword, value)


def draft_of(schema: Mapping[str, Any]) -> Any:
    """The validator class of the draft that a schema names, else of 2020-12.

    Raises:
        ValueError: it names a draft that is not known.
    """
    import jsonschema

    named = schema.get("$schema")
    if named is None:
        return jsonschema.Draft202012Validator
    known = {
        kind.META_SCHEMA.get("$schema", "").rstrip("#"): kind
        for kind in (
            jsonschema.Draft4Validator,
            jsonschema.Draft6Validator,
            jsonschema.Draft7Validator,
            jsonschema.Draft201909Validator,
            jsonschema.Draft202012Validator,
        )
    }
    if not isinstance(named, str) or named.rstrip("#") not in known:
        raise ValueError(f"$schema: {named!r} is not known; leave it out or use one of {[*known]}")
    return known[named.rstrip("#")]


def _check_keyword(schema: Mapping[str, Any], place: str, keyword: str, value: Any) -> None:
    if keyword in _UNSUPPORTED:
        raise ValueError(f"{place}: not supported; {_UNSUPPORTED[keyword]}")
    if keyword in _REFERENCES and isinstance(value, str):
        _check_reference(schema, place, value)


def _check_patterns(schema: Mapping[str, Any]) -> None:
    """Each by itself, and all of them together, since all are compiled."""
    size = 0
    for place, pattern in _patterns(schema):
        size += size_of(pattern)
        check_size(size, f"{place}: the patterns up to here")
        try:
            compile_pattern(pattern)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


def _patterns(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every pattern in a schema, and its place."""
    for place, keyword, value in _keywords(schema, ()):
        if keyword == "pattern" and isinstance(value, str):
            yield place, value
        if keyword == "patternProperties" and isinstance(value, Mapping):
            yield from ((place, str(pattern)) for pattern in value)


def _check_reference(schema: Mapping[str, Any], place: str, reference: str) -> None:
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    if not reference.startswith("#"):
        raise ValueError(
            f"{place}: {reference!r} points outside of the schema, and nothing is fetched; "
            'put it under "$defs" and refer to "#/$defs/…"'
        )
    base = "urn:contract"
    resource = DRAFT202012.create_resource({**schema, "$id": base})
    registry: Registry[Any] = Registry().with_resource(base, resource)
    try:
        registry.crawl().resolver(base).lookup(reference)
    except Unresolvable:
        raise ValueError(f"{place}: {reference!r} is not in the schema") from None


def _keywords(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    """Every keyword in a schema: its place, its name, its value."""
    if isinstance(schema, Mapping):
        is_named_by_user = bool(path) and path[-1] in _NAMES
        for name, value in schema.items():
            here = (*path, str(name))
            if not is_named_by_user:
                yield _place(here), str(name), value
            if is_named_by_user or name not in _DATA:
                yield from _keywords(value, here)
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from _keywords(value, (*path, str(number)))


def _place(path: Any) -> str:
    return ".".join(map(str, path)) or "the schema"


def _depth(value: Any) -> int:
    """How deep lists and objects lie in one another; stops counting just above the limit."""
    level, depth = [value], 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                inner.extend(one.values())
            elif isinstance(one, (list, tuple)):
                inner.extend(one)
        level = [one for one in inner if isinstance(one, (Mapping, list, tuple))]
        depth += 1
    return depth
