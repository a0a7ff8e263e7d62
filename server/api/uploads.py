"""The documents in a request's body: JSON, a text, a file, or a multipart form with many files."""

import codecs
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anyio import to_thread
from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from adapters.types import Grader, MediaType
from server.api.schemas.base import Title
from server.api.schemas.documents import DocumentBody, QuestionBody
from server.core.errors import (
    AppError,
    DocumentNotText,
    InvalidRequest,
    PayloadTooLarge,
    UnknownField,
)
from server.core.settings import DocumentSettings
from server.http import parse_json, read_body
from server.services.documents import SentQuestion, Upload, checked

MOST_FILES = 100
"""In one request."""
MULTIPART = "multipart/form-data"
JSON = "application/json"
FILE_FIELDS = ("file", "files")

_LIMIT = "EVERLEARN_DOCUMENTS__MAX_BYTES"
_BATCH_LIMIT = "EVERLEARN_DOCUMENTS__MAX_BATCH_BYTES"
_JSON_OVERHEAD = 6  # an ASCII character may be written \u0041; the text itself is measured too
_PIECE = 64 * 1024

_TYPES: Mapping[str, MediaType] = {kind: kind for kind in MediaType} | {
    "application/xhtml+xml": MediaType.HTML,
    "text/x-markdown": MediaType.MARKDOWN,
}
_UNTOLD = ("", "application/octet-stream", "binary/octet-stream")
_ENDINGS: Mapping[str, MediaType] = {
    "txt": MediaType.TEXT,
    "text": MediaType.TEXT,
    "md": MediaType.MARKDOWN,
    "markdown": MediaType.MARKDOWN,
    "html": MediaType.HTML,
    "htm": MediaType.HTML,
    "xhtml": MediaType.HTML,
    "pdf": MediaType.PDF,
    "docx": MediaType.DOCX,
}
_PDF_MAGIC_WITHIN = 1024  # readers take some rubbish in front of it, and so do we
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Refused:
    """A file of a batch that cannot be taken, and why."""

    index: int
    """Its place among the files, from 0."""
    filename: str | None
    error: AppError


def is_batch(request: Request) -> bool:
    return _content_type(request)[0] == MULTIPART


async def read_upload(request: Request, settings: DocumentSettings, title: str | None) -> Upload:
    """The document that is the body.

    Args:
        title: from the query; one in the body goes first.

    Raises:
        PayloadTooLarge: longer than ``max_bytes``.
        InvalidRequest: of a type that is not taken, or malformed.
        DocumentNotText: not UTF-8, or not what its type says.
    """
    media_type, charset = _content_type(request)
    if media_type == JSON:
        raw = await read_body(request, settings.max_bytes * _JSON_OVERHEAD, _LIMIT)
        upload = _from_json(_decoded(raw))
        _check_size(upload.text, settings.max_bytes)
        return upload if upload.title else replace(upload, title=title)
    kind = _TYPES.get(media_type)
    if kind is None:
        raise InvalidRequest(
            f"The content type {media_type or '(none)'} is not taken here; send {JSON} with a "
            f'"text" field, {MULTIPART} with files, or one of {", ".join(MediaType)}.',
            "content-type",
        )
    raw = await read_body(request, settings.max_bytes, _LIMIT)
    return replace(_from_bytes(raw, kind, charset), title=title)


async def read_batch(request: Request, settings: DocumentSettings) -> list[Upload | Refused]:
    """The files of a form, in order: those that can be taken, and those that cannot.

    Raises:
        PayloadTooLarge: the form is longer than ``max_batch_bytes``.
        InvalidRequest: no form, no file, too many files, or a field for one file beside several.
        UnknownField: a field that is none of ours.
    """
    raw = await read_body(request, settings.max_batch_bytes, _BATCH_LIMIT)
    header = request.headers.get("content-type", "")
    form = await to_thread.run_sync(_read_form, raw, header)  # a parser in Python, and megabytes
    if not form.files:
        raise InvalidRequest("The form holds no file; send each as a field named file.", "file")
    title, questions = _for_one_file(form)
    parts = [
        _taken(index, file, settings.max_bytes, title, questions)
        for index, file in enumerate(form.files)
    ]
    return parts


@dataclass(frozen=True, slots=True)
class _FormFile:
    filename: str | None
    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class _Form:
    files: list[_FormFile]
    fields: dict[str, str]


def _read_form(raw: bytes, content_type: str) -> _Form:
    """Its parts; runs in a thread."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest("The form's content type names no boundary.", "content-type")
    form = _Form([], {})

    def on_field(field: Field) -> None:
        name = _name(field.field_name)
        if name in FILE_FIELDS:  # a text sent without a file name is a document too
            add_file(_FormFile(None, field.content_type or MediaType.TEXT, field.value or b""))
        else:
            form.fields[name] = _decoded(field.value or b"", name)

    def on_file(file: File) -> None:
        name = _name(file.field_name)
        if name not in FILE_FIELDS:
            raise UnknownField(f"{name} is no field for a file; send it as file.", name)
        with file.file_object as content:
            content.seek(0)
            sent = (file.file_name or b"").decode("utf-8", "replace")
            add_file(_FormFile(sent or None, file.content_type or "", content.read()))

    def add_file(file: _FormFile) -> None:
        if len(form.files) == MOST_FILES:
            raise InvalidRequest(
                f"The form holds more than {MOST_FILES} files; send them in several requests.",
                "file",
            )
        form.files.append(file)

    parser = FormParser(
        MULTIPART,
        on_field,
        on_file,
        boundary=boundary,
        config={"MAX_MEMORY_FILE_SIZE": len(raw) + 1, "MAX_FIELDS": MOST_FILES + 10},
    )
    try:
        body = io.BytesIO(raw)
        while piece := body.read(_PIECE):
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"The form cannot be read: {error}.") from error
    return form


def _for_one_file(form: _Form) -> tuple[str | None, Sequence[QuestionBody]]:
    """The fields beside the files: a title and questions, which only one file can have."""
    readers: dict[str, Callable[[str], Any]] = {
        "title": TypeAdapter(Title).validate_python,
        "questions": lambda text: TypeAdapter(list[QuestionBody]).validate_python(parse_json(text)),
    }
    values: dict[str, Any] = {}
    for name, text in form.fields.items():
        if name not in readers:
            raise UnknownField(
                f"{name} is not a field; known are file, {', '.join(readers)}.", name
            )
        if len(form.files) > 1:
            raise InvalidRequest(f"{name} is for a form with one file; send that file alone.", name)
        try:
            values[name] = readers[name](text)
        except ValidationError as error:
            raise InvalidRequest(f"{name}: {error.errors()[0]['msg']}.", name) from error
    return values.get("title"), values.get("questions", ())


def _taken(
    index: int,
    file: _FormFile,
    max_bytes: int,
    title: str | None,
    questions: Sequence[QuestionBody],
) -> Upload | Refused:
    try:
        if len(file.content) > max_bytes:
            raise PayloadTooLarge(max_bytes, _LIMIT)
        kind, charset = _kind_of(file)
        upload = _from_bytes(file.content, kind, charset)
    except AppError as error:
        return Refused(index, file.filename, error)
    asked = tuple(map(sent_question, questions))
    return replace(upload, filename=file.filename, title=title, questions=asked)


def sent_question(body: QuestionBody) -> SentQuestion:
    """A question as the services take it."""
    return SentQuestion(body.question, tuple(body.answers), Grader(body.grader))


def _kind_of(file: _FormFile) -> tuple[MediaType, str | None]:
    """What a file is: by its type, else by its name, else by what is in it."""
    media_type, charset = _parsed_type(file.content_type)
    ending = (file.filename or "").rpartition(".")[2].lower()
    if kind := _TYPES.get(media_type) or _ENDINGS.get(ending):
        return kind, charset
    if media_type in _UNTOLD and b"%PDF-" in file.content[:_PDF_MAGIC_WITHIN]:
        return MediaType.PDF, None
    if (media_type in _UNTOLD or media_type.startswith("text/")) and _is_text(file.content):
        return MediaType.TEXT, charset
    raise InvalidRequest(
        f"{file.filename or 'The file'} is of a type that is not taken ({media_type or 'untold'}). "
        "Taken are plain text, Markdown, HTML, PDF and DOCX; convert it to one of them.",
        "file",
    )


def _is_text(content: bytes) -> bool:
    try:
        checked(Upload(text=content.decode()))
    except (UnicodeDecodeError, AppError):
        return False
    return True


def _from_bytes(raw: bytes, kind: MediaType, charset: str | None) -> Upload:
    """A text decoded, a file as it is, when its first bytes agree with its type."""
    if kind in (MediaType.TEXT, MediaType.MARKDOWN):
        return checked(Upload(text=_decoded(raw), media_type=kind))
    if raw and kind is MediaType.PDF and b"%PDF-" not in raw[:_PDF_MAGIC_WITHIN]:
        raise DocumentNotText("The file is no PDF: it does not begin with %PDF-.", "file")
    if raw and kind is MediaType.DOCX and not raw.startswith(_ZIP_MAGIC):
        raise DocumentNotText(
            "The file is no DOCX: it is not a zip archive. Save an older .doc file as .docx.",
            "file",
        )
    charset = charset if kind is MediaType.HTML else None
    return checked(Upload(content=raw, media_type=kind, charset=charset))


def _from_json(text: str) -> Upload:
    value = parse_json(text)
    try:
        body = DocumentBody.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "body"
        if first["type"] == "extra_forbidden":
            known = ", ".join(DocumentBody.model_fields)
            raise UnknownField(
                f"{field} is not a field of a document; known are {known}.", field
            ) from error
        raise InvalidRequest(f"{field}: {first['msg']}.", field) from error
    questions = tuple(map(sent_question, body.questions))
    return Upload(text=body.text, title=body.title, questions=questions)


def _check_size(text: str, limit: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise DocumentNotText(
            f"The document holds half a character, {text[error.start]!r}, at character "
            f"{error.start}. Send it as UTF-8 text.",
            "text",
        ) from error
    if size > limit:
        raise PayloadTooLarge(limit, _LIMIT)


def _decoded(raw: bytes, field: str = "text") -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DocumentNotText(
            f"The document is not UTF-8: byte {error.start} is {raw[error.start]:#04x}. "
            "Send it as UTF-8 text.",
            field,
        ) from error


def _content_type(request: Request) -> tuple[str, str | None]:
    return _parsed_type(request.headers.get("content-type", ""))


def _parsed_type(header: str) -> tuple[str, str | None]:
    """A media type in lower case, and the name of its character set as Python knows it.

    Raises:
        InvalidRequest: a character set that nobody knows.
    """
    media_type, parameters = parse_options_header(header)
    named = parameters.get(b"charset", b"").decode("latin-1")
    try:
        charset = codecs.lookup(named).name if named else None
    except (LookupError, ValueError) as error:
        raise InvalidRequest(
            f"The character set {named[:50]!r} is not known; send UTF-8.", "content-type"
        ) from error
    return media_type.decode("latin-1").strip().lower(), charset


def _name(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")
