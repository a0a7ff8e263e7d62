"""Two adapters compared, tensor by tensor: how far is a second training from the first? Torch-free."""

import struct
import sys
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from typing import BinaryIO

from adapters.artifact import WEIGHTS, digest
from adapters.tensors import TensorEntry, read_header

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two adapters."""

    is_identical: bool
    """Config and weights are the same bytes."""
    digest: str
    """Of the second one."""
    tensors: int
    tensors_that_differ: tuple[str, ...]
    """By name; those that only one of them has are among them."""
    max_abs_difference: float
    """Over all values of the tensors that both have, in the same shape and type."""
    max_relative_difference: float
    """The same, as a share of the first one's largest value in that tensor."""


def compare(first: Path, second: Path) -> Comparison:
    """Compare the weights in two PEFT folders.

    Raises:
        TensorFileInvalid, OSError: one of them cannot be read.
    """
    with ExitStack() as open_files:
        files = [
            open_files.enter_context((folder / WEIGHTS).open("rb")) for folder in (first, second)
        ]
        sizes = [(folder / WEIGHTS).stat().st_size for folder in (first, second)]
        ours, theirs = (
            {entry.name: entry for entry in read_header(file, size)}
            for file, size in zip(files, sizes, strict=True)
        )
        differing = []
        most, most_relative = 0.0, 0.0
        for name in sorted(ours.keys() | theirs.keys()):
            pair = ours.get(name), theirs.get(name)
            if pair[0] is None or pair[1] is None or not _is_alike(pair[0], pair[1]):
                differing.append(name)
                continue
            difference, largest = _distance(files[0], pair[0], files[1], pair[1])
            if difference is not None:
                differing.append(name)
                most = max(most, difference)
                most_relative = max(most_relative, difference / largest if largest else 1.0)
    found = digest(second)
    return Comparison(
        is_identical=digest(first) == found,
        digest=found,
        tensors=len(ours.keys() | theirs.keys()),
        tensors_that_differ=tuple(differing),
        max_abs_difference=most,
        max_relative_difference=most_relative,
    )


def _is_alike(first: TensorEntry, second: TensorEntry) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape)


def _distance(
    first: BinaryIO, ours: TensorEntry, second: BinaryIO, theirs: TensorEntry
) -> tuple[float | None, float]:
    """Largest difference of two tensors of one shape, None when every byte is equal; and the largest
    value of the first.
    """
    difference: float | None = None
    largest = 0.0
    pieces = zip(_pieces(first, ours), _pieces(second, theirs), strict=True)
    for mine, other in pieces:
        values = _floats(mine, ours.dtype)
        largest = max(largest, max(map(abs, values), default=0.0))
        if mine != other:
            gap = max(map(abs, map(sub, values, _floats(other, ours.dtype))))
            difference = max(difference or 0.0, gap)
    return difference, largest


def _pieces(file: BinaryIO, entry: TensorEntry) -> Iterator[bytes]:
    for begin in range(entry.begin, entry.end, _PIECE_BYTES):
        file.seek(begin)
        yield file.read(min(_PIECE_BYTES, entry.end - begin))


def _floats(raw: bytes, dtype: str) -> "array[float] | tuple[float, ...]":
    """The values of a piece of an F32, F16 or BF16 tensor; the format is little-endian."""
    if dtype == "F16":
        return struct.unpack(f"<{len(raw) // 2}e", raw)
    if dtype == "BF16":  # the upper half of a float32
        raw = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2))
    values = array("f")
    values.frombytes(raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values
