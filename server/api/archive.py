"""Files as one zip archive, made while it is sent: nothing is compressed, and little is in memory."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_PIECE_BYTES = 1024 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest that the format knows: the same files, the same archive


def stream_zip(folder: str, files: Mapping[str, Path | bytes]) -> Iterator[bytes]:
    """The pieces of an archive of ``files`` in one ``folder``.

    Raises:
        OSError: a file cannot be read; the archive is then cut off.
    """
    out = _Pipe()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(f"{folder}/{name}", _EPOCH)
            entry.external_attr = 0o644 << 16
            if isinstance(content, bytes):
                archive.writestr(entry, content)
                yield out.take()
                continue
            entry.file_size = content.stat().st_size
            with content.open("rb") as source, archive.open(entry, "w") as target:
                while piece := source.read(_PIECE_BYTES):
                    target.write(piece)
                    yield out.take()
    yield out.take()


class _Pipe(io.RawIOBase):
    """What is written, to be taken away; it cannot be sought in, and zipfile copes with that."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._waiting += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken
