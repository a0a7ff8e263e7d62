"""Reads a safetensors file by hand: its header, and whether its values are finite and non-zero.

Torch-free and numpy-free, because the service checks artifacts before the engine may see them.
Trusts nothing in the file: sizes, offsets and names are checked before they are used.
"""

import json
import math
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from reprlib import Repr
from typing import BinaryIO

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How `torch.save` files begin: a zip archive, or a bare pickle."""
_MAX_DIMENSIONS = 16
_REPR = Repr()
_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80}
_SIGN = 0x8000


class TensorFileInvalid(ValueError):
    """Not a sound safetensors file; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the header; `begin` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(
    file: BinaryIO, size: int, *, max_header_bytes: int = MAX_HEADER_BYTES
) -> list[TensorEntry]:
    """The tensors of a safetensors file of `size` bytes, in the order of their data.

    Raises:
        TensorFileInvalid: the header is damaged or too long, or the data does not fill the file.
    """
    file.seek(0)
    prefix = file.read(8)
    if prefix.startswith(b"version "):
        raise TensorFileInvalid("it is a Git LFS pointer, not the weights; run `git lfs pull`")
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= size - 8:
        if prefix.startswith(_PICKLES):
            raise TensorFileInvalid("it is a pickle, which can run code, not safetensors")
        raise TensorFileInvalid("its header is cut off or is not a safetensors header")
    if length > max_header_bytes:
        raise TensorFileInvalid(
            f"its header claims {length} bytes, {max_header_bytes} at most are read"
        )
    header = _parse(file.read(length))
    entries = [_entry(name, value, 8 + length) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    position = 8 + length
    for entry in entries:
        if entry.begin != position:
            raise TensorFileInvalid(f"the data of {entry.name!r} overlaps or leaves a hole")
        position = entry.end
    if position != size:
        raise TensorFileInvalid(f"its header describes {position} bytes, the file has {size}")
    return entries


def scan_values(data: bytes, dtype: str) -> tuple[bool, bool]:
    """(every value is finite, some value is not zero) of one F32, F16 or BF16 tensor."""
    values = array("f" if dtype == "F32" else "H")
    values.frombytes(data)
    if sys.byteorder == "big":  # the format is little-endian
        values.byteswap()
    if dtype == "F32":
        # The sum runs in float64, which finite float32 values cannot overflow: it is finite
        # exactly when all of them are, and it is the fastest loop CPython has for this.
        return math.isfinite(sum(values)), any(values)
    exponent = _EXPONENT[dtype]
    patterns = set(values)  # at most 65,536, so only the set is walked in Python
    finite = all(pattern & exponent != exponent for pattern in patterns)
    return finite, not patterns <= {0, _SIGN}


def _parse(raw: bytes) -> dict[str, object]:
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise TensorFileInvalid(f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise TensorFileInvalid("its header is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name stands twice")
    return result


def _entry(name: str, value: object, data_start: int) -> TensorEntry:
    fields = value if isinstance(value, dict) else {}
    dtype, shape = fields.get("dtype"), fields.get("shape")
    offsets = fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise TensorFileInvalid(f"tensor {name!r} has the unknown type {_REPR.repr(dtype)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(_sizes(shape)):
        raise TensorFileInvalid(f"tensor {name!r} has the shape {_REPR.repr(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_sizes(offsets)):
        raise TensorFileInvalid(f"tensor {name!r} has the offsets {_REPR.repr(offsets)}")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        raise TensorFileInvalid(f"tensor {name!r}: shape {shape} does not fit {end - begin} bytes")
    return TensorEntry(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _sizes(values: list[object]) -> Iterator[bool]:
    return (type(value) is int and value >= 0 for value in values)
