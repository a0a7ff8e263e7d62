"""The OpenAPI document: what FastAPI derives, with the errors and the keys that every route shares."""

from typing import Any

from fastapi import FastAPI

from server.http.shapes import is_anthropic

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""OpenAI's envelope."""

ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
"""Anthropic's envelope, where its clients call."""

MEANINGS = {
    "400": "The request is malformed; `param` names the field.",
    "401": "The key is missing, unknown or revoked.",
    "403": "The key lacks the scope.",
    "404": "There is no such thing, or it is another tenant's.",
    "409": "It is in a state that does not allow this.",
    "413": "The body is too long.",
    "429": "A limit of the key is reached; `retry-after` says when to come again.",
    "502": "The engine failed.",
    "503": "Database or engine is away; `retry-after` says when to come again.",
}

_OPEN_ROUTES = frozenset({"/healthz", "/readyz"})
_METHODS = frozenset({"get", "put", "post", "delete", "patch"})


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of an app, made once and kept by FastAPI."""
    document = app.openapi()
    if "Error" in document.setdefault("components", {}).setdefault("schemas", {}):
        return document
    document["components"]["schemas"] |= {"Error": ERROR, "AnthropicError": ANTHROPIC_ERROR}
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, item in document["paths"].items():
        for method in _METHODS & set(item):
            _complete(path, item[method])
    return document


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Add what such a route may answer, and the envelope to every error."""
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own; ours answers 400
    if path not in _OPEN_ROUTES:
        operation["security"] = [{"key": []}]
        for status in _shared_statuses(path, operation):
            responses.setdefault(status, {})
    for status, response in responses.items():
        if status in MEANINGS and "content" not in response:
            response["description"] = MEANINGS[status]
            name = "AnthropicError" if is_anthropic(path) else "Error"
            schema = {"$ref": f"#/components/schemas/{name}"}
            response["content"] = {"application/json": {"schema": schema}}


def _shared_statuses(path: str, operation: dict[str, Any]) -> set[str]:
    statuses = {"400", "401", "403", "429", "503"}
    if "{" in path or path.startswith("/v1/"):  # names a thing, or a model
        statuses.add("404")
    if "requestBody" in operation:
        statuses.add("413")
    if path.startswith("/v1/"):
        statuses.add("502")
    return statuses
