"""Plain values between two processes that do not trust each other: lines of JSON, and nothing runs.

Whatever else a value may be crosses as the number under which its own process keeps it.
"""

import json
import os
import select
import time
from collections.abc import Callable
from typing import Any, TypeAlias

MOST_BYTES = 1024 * 1024
"""Of one message."""

Data: TypeAlias = Any
"""What `json` reads and writes."""


class Broken(RuntimeError):
    """The other side sent no message that could be read."""


class Ended(RuntimeError):
    """The other side is gone."""


class TooLate(RuntimeError):
    """The other side did not answer in time."""


class Line:
    """Messages over two pipes."""

    def __init__(self, reader: int, writer: int, *, deadline: float | None = None) -> None:
        self._reader = reader
        self._writer = writer
        self._deadline = deadline
        self._rest = b""

    def send(self, message: Data) -> None:
        """Write one message.

        Raises:
            Broken: it is too long.
            Ended, TooLate: nobody reads it.
        """
        rest = json.dumps(message).encode() + b"\n"
        if len(rest) > MOST_BYTES:
            raise Broken("a message is too long")
        while rest:
            self._await((), (self._writer,))
            try:
                rest = rest[os.write(self._writer, rest[: select.PIPE_BUF]) :]
            except OSError:
                raise Ended from None

    def receive(self) -> Data:
        """The next message.

        Raises:
            Broken: it is none, or too long.
            Ended, TooLate: none comes.
        """
        while b"\n" not in self._rest:
            if len(self._rest) > MOST_BYTES:
                raise Broken("a message is too long")
            self._await((self._reader,), ())
            more = os.read(self._reader, 65536)
            if not more:
                raise Ended
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Broken("a message is no JSON") from error

    def _await(self, reading: tuple[int, ...], writing: tuple[int, ...]) -> None:
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TooLate
        if not any(select.select(reading, writing, (), left)):
            raise TooLate


def encode(value: object, keep: Callable[[object], int]) -> Data:
    """A value as JSON: exactly Python's own plain types, all else by the number that `keep` gives."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (bytes, bytearray):
        return {kind.__name__: value.hex()}  # type: ignore[attr-defined]
    if kind is complex:
        return {"complex": [value.real, value.imag]}  # type: ignore[attr-defined]
    if kind in (list, tuple, set, frozenset):
        return {kind.__name__: [encode(one, keep) for one in value]}  # type: ignore[attr-defined]
    if kind is dict:
        pairs = value.items()  # type: ignore[attr-defined]
        return {"dict": [[encode(key, keep), encode(one, keep)] for key, one in pairs]}
    return {"object": keep(value)}


def decode(data: Data, find: Callable[[int], object]) -> object:
    """The value that `encode` wrote; `find` makes what stands for a kept one.

    Raises:
        Broken: nothing encodes to it.
    """
    try:
        return _decode(data, find)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Broken("a message holds no value") from error


def _decode(data: Data, find: Callable[[int], object]) -> object:
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("no value")
    held: Any
    ((kind, held),) = data.items()
    match kind:
        case "list":
            return [_decode(one, find) for one in held]
        case "tuple":
            return tuple(_decode(one, find) for one in held)
        case "set":
            return {_decode(one, find) for one in held}
        case "frozenset":
            return frozenset(_decode(one, find) for one in held)
        case "dict":
            return {_decode(key, find): _decode(one, find) for key, one in held}
        case "bytes":
            return bytes.fromhex(held)
        case "bytearray":
            return bytearray.fromhex(held)
        case "complex":
            real, imaginary = held
            return complex(real, imaginary)
        case "object":
            if type(held) is not int:
                raise ValueError("a number is wanted")
            return find(held)
    raise ValueError("no kind of value")
