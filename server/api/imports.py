"""A foreign adapter in a request's body: a form with two files, written to disk as it comes."""

import os
import shutil
from pathlib import Path

from anyio import to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from adapters.artifact import CONFIG, WEIGHTS
from server.core.errors import (
    AppError,
    ImportRefused,
    InvalidRequest,
    PayloadTooLarge,
    UnknownField,
)

MULTIPART = "multipart/form-data"
FILES = {"config": CONFIG, "weights": WEIGHTS}
"""Field of the form to the name that its file must have."""
TEXTS = {"source": 500, "reason": 2000}
"""Field of the form to its greatest length."""

_LIMIT = "EVERLEARN_SWAP__IMPORT_MAX_BYTES"
_FORM_OVERHEAD = 64 * 1024
_IN_MEMORY_BYTES = 64 * 1024
_PIECE_BYTES = 1024 * 1024
_DRAINED_BYTES = 64 * 1024 * 1024  # most clients look at a refusal only when they have sent all
_MOST_FIELDS = 10


async def receive(request: Request, folder: Path, *, max_bytes: int) -> dict[str, str]:
    """Write the two files of a form to ``folder`` under PEFT's names; the form's texts.

    Raises:
        PayloadTooLarge: the form is longer than ``max_bytes``.
        ImportRefused: a file is missing, or is not one of PEFT's two.
        InvalidRequest: it is no form, or a text is too long or no text.
    """
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if media_type.decode("latin-1").strip().lower() != MULTIPART or not boundary:
        raise InvalidRequest(
            f"An adapter comes as {MULTIPART} with the files config ({CONFIG}) and weights "
            f"({WEIGHTS}).",
            "content-type",
        )
    claimed = request.headers.get("content-length", "")
    limit = max_bytes + _FORM_OVERHEAD
    if claimed.isdecimal() and int(claimed[:20]) > limit + _DRAINED_BYTES:
        raise PayloadTooLarge(max_bytes, _LIMIT)
    form = _Form(folder, boundary)
    refusal = await _feed(request, form, limit, PayloadTooLarge(max_bytes, _LIMIT))
    if refusal is not None:
        raise refusal
    return await to_thread.run_sync(form.end)


async def _feed(
    request: Request, form: "_Form", limit: int, too_large: PayloadTooLarge
) -> AppError | None:
    """Read the body to its end, also behind the first thing that is wrong with it."""
    refusal: AppError | None = None
    size = 0
    waiting = bytearray()
    async for part in request.stream():
        size += len(part)
        if size > limit:
            refusal = refusal or too_large
            if size > limit + _DRAINED_BYTES:
                break
        if refusal is not None:
            continue
        waiting += part
        if len(waiting) >= _PIECE_BYTES:
            refusal = await to_thread.run_sync(form.write, bytes(waiting))
            waiting.clear()
    return refusal or await to_thread.run_sync(form.write, bytes(waiting))


class _Form:
    """Parses piece by piece; what has been parsed is on disk."""

    def __init__(self, folder: Path, boundary: bytes) -> None:
        self._folder = folder
        self._taken: set[str] = set()
        self._texts: dict[str, str] = {}
        try:
            self._parser = FormParser(
                MULTIPART,
                self._on_field,
                self._on_file,
                boundary=boundary,
                config={
                    "UPLOAD_DIR": str(folder),
                    "UPLOAD_DELETE_TMP": False,  # it is given its name instead
                    "MAX_MEMORY_FILE_SIZE": _IN_MEMORY_BYTES,
                    "MAX_FIELDS": _MOST_FIELDS,
                    "MAX_FIELD_SIZE": _IN_MEMORY_BYTES,
                },
            )
        except FormParserError as error:
            raise InvalidRequest(f"The form cannot be read: {error}.", "content-type") from error

    def write(self, piece: bytes) -> AppError | None:
        """What is wrong with it, if anything."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            return InvalidRequest(f"The form cannot be read: {error}.")
        except AppError as error:
            return error
        return None

    def end(self) -> dict[str, str]:
        """The texts, when both files have come whole."""
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise InvalidRequest(f"The form cannot be read: {error}.") from error
        for field, name in FILES.items():
            if field not in self._taken:
                raise ImportRefused(f"{name} is missing", f"send it as the form's file {field}")
        return self._texts

    def _on_field(self, field: Field) -> None:
        name = (field.field_name or b"").decode("utf-8", "replace")
        if name in FILES:
            remedy = f"send it as a file named {FILES[name]}"
            raise ImportRefused(f"the field {name} came without a file name", remedy)
        if name not in TEXTS:
            known = ", ".join([*FILES, *TEXTS])
            raise UnknownField(f"{name[:100]} is not a field; known are {known}.", name[:100])
        try:
            text = (field.value or b"").decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{name} is not UTF-8; send it as UTF-8 text.", name) from error
        if len(text) > TEXTS[name] or "\x00" in text:
            raise InvalidRequest(
                f"{name} has more than {TEXTS[name]} characters, or a NUL among them.", name
            )
        self._texts[name] = text

    def _on_file(self, file: File) -> None:
        with file.file_object as content:
            field = (file.field_name or b"").decode("utf-8", "replace")
            sent = (file.file_name or b"").decode("utf-8", "replace")
            if field not in FILES:
                raise ImportRefused(
                    f"the file {sent[:100]!r} came as {field[:100]!r}, which is not one of the two",
                    f"send {CONFIG} as config and {WEIGHTS} as weights, and nothing else",
                )
            if sent != FILES[field]:
                raise ImportRefused(
                    f"the file {sent[:100]!r} came as {field}, which must be {FILES[field]}",
                    "send safetensors weights and PEFT's config under their own plain names",
                )
            if field in self._taken:
                raise ImportRefused(f"{sent} came twice", "send each file once")
            self._taken.add(field)
            target = self._folder / FILES[field]
            if file.actual_file_name is None:
                content.seek(0)
                with target.open("wb") as out:
                    shutil.copyfileobj(content, out)
            else:
                content.flush()
                os.replace(os.fsdecode(file.actual_file_name), target)
