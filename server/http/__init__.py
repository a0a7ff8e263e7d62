"""What both HTTP surfaces share: keys, errors as responses, request ids. Knows no route."""

from server.http.auth import KeyRing, get_key_ring, get_runtime, require
from server.http.body import BodyLimitMiddleware, parse_json, read_body
from server.http.context import REQUEST_ID, RequestIdMiddleware, take_request_id
from server.http.errors import error_response, install_error_handlers, unexpected_response
from server.http.limits import Limiter, admitted, get_limiter
from server.http.shared import open_valkey

__all__ = [
    "REQUEST_ID",
    "BodyLimitMiddleware",
    "KeyRing",
    "Limiter",
    "RequestIdMiddleware",
    "admitted",
    "error_response",
    "get_key_ring",
    "get_limiter",
    "get_runtime",
    "install_error_handlers",
    "open_valkey",
    "parse_json",
    "read_body",
    "require",
    "take_request_id",
    "unexpected_response",
]
