"""What both HTTP surfaces share: keys, errors as responses, request ids. Knows no route."""

from server.http.auth import KeyRing, get_runtime, require
from server.http.body import BodyLimitMiddleware, parse_json, read_body
from server.http.context import RequestIdMiddleware
from server.http.errors import install_error_handlers

__all__ = [
    "BodyLimitMiddleware",
    "KeyRing",
    "RequestIdMiddleware",
    "get_runtime",
    "install_error_handlers",
    "parse_json",
    "read_body",
    "require",
]
