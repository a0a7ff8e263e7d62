"""/api/v1/documents: send a text, see what became of it."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from server.api.deps import Admin, Ingest, ReadOrIngest, RequestId, RuntimeDep
from server.api.schemas import (
    ChunkView,
    DocumentBody,
    DocumentView,
    Listing,
    Page,
    Text,
    Title,
)
from server.api.views import document_view
from server.core.errors import DocumentNotText, InvalidRequest, PayloadTooLarge, UnknownField
from server.db import DocumentState
from server.http import parse_json, read_body
from server.services import audit, documents

router = APIRouter(prefix="/documents", tags=["documents"])

_TEXT_TYPES = ("text/plain", "text/markdown")
_LIMIT_SETTING = "EVERLEARN_DOCUMENTS__MAX_BYTES"
_JSON_OVERHEAD = 6  # an ASCII character may be written \u0041; the text itself is measured too


@router.post(
    "",
    status_code=201,
    responses={200: {"model": DocumentView}, 400: {}, 413: {}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": DocumentBody.model_json_schema()},
                "text/plain": {"schema": {"type": "string"}},
                "text/markdown": {"schema": {"type": "string"}},
            },
        }
    },
)
async def create_document(
    request: Request,
    response: Response,
    runtime: RuntimeDep,
    actor: Ingest,
    title: Annotated[Title | None, Query()] = None,
) -> DocumentView:
    """Send a document. The same text again answers 200 with the same id."""
    limit = runtime.settings.documents.max_bytes
    body = _parsed(request, await read_body(request, limit * _JSON_OVERHEAD, _LIMIT_SETTING))
    if _size_bytes(body.text) > limit:
        raise PayloadTooLarge(limit, _LIMIT_SETTING)

    def accept(session: Session) -> tuple[DocumentView, bool]:
        document, is_new = documents.accept_document(
            session,
            body.text,
            title=body.title or title,
            questions=[(item.question, tuple(item.answers)) for item in body.questions],
            owner=actor.owner,
            created_by=actor.id,
            queue=runtime.queue,
        )
        session.flush()
        return document_view(session, document), is_new

    view, is_new = await runtime.database.run(accept)
    response.status_code = 201 if is_new else 200
    return view


@router.get("", responses={400: {}})
async def list_documents(
    runtime: RuntimeDep,
    actor: ReadOrIngest,
    state: DocumentState | None = None,
    after: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page:
    """Newest first, without the deleted; ``after`` takes the ``next`` of the page before."""

    def read(session: Session) -> Page:
        page = documents.list_documents(
            session, tenant=actor.owner, state=state, after=after, limit=limit
        )
        return Page(data=[document_view(session, row) for row in page.rows], next=page.next)

    return await runtime.database.read(read)


@router.get("/{document_id}", responses={404: {}})
async def get_document(document_id: Text, runtime: RuntimeDep, actor: ReadOrIngest) -> DocumentView:
    """One document with its state and the versions that saw it."""

    def read(session: Session) -> DocumentView:
        document = documents.get_document(session, document_id, tenant=actor.owner)
        return document_view(session, document)

    return await runtime.database.read(read)


@router.get("/{document_id}/chunks", responses={404: {}})
async def list_chunks(document_id: Text, runtime: RuntimeDep, actor: ReadOrIngest) -> Listing:
    """Its pieces, in order; joined they are the text."""

    def read(session: Session) -> list[ChunkView]:
        documents.get_document(session, document_id, tenant=actor.owner)
        texts = documents.chunks_of(session, document_id)
        return [ChunkView(position=position, text=text) for position, text in enumerate(texts)]

    return Listing(data=await runtime.database.read(read))


@router.delete("/{document_id}", responses={404: {}})
async def delete_document(
    document_id: Text, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> DocumentView:
    """Forget what it says. The answer names every version that was trained on it."""

    def forget(session: Session) -> DocumentView:
        row = documents.delete_document(session, document_id, tenant=actor.owner)
        view = document_view(session, row)
        detail = {"versions": view.versions}
        audit.record(session, actor, "document.delete", row.id, detail, request_id, owner=row.owner)
        return view

    return await runtime.database.run(forget)


def _parsed(request: Request, raw: bytes) -> DocumentBody:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise DocumentNotText(
            f"The document is not UTF-8: byte {error.start} is {raw[error.start]:#04x}. "
            "Send it as UTF-8 text.",
            "text",
        ) from error
    if media_type in _TEXT_TYPES:
        return DocumentBody(text=text)
    if media_type != "application/json":
        raise InvalidRequest(
            f"The content type {media_type or '(none)'} is not taken here; send application/json "
            f'with a "text" field, or {" or ".join(_TEXT_TYPES)}.',
            "content-type",
        )
    return _from_json(text)


def _size_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise DocumentNotText(
            f"The document holds half a character, {text[error.start]!r}, at character "
            f"{error.start}. Send it as UTF-8 text.",
            "text",
        ) from error


def _from_json(text: str) -> DocumentBody:
    value = parse_json(text)
    try:
        return DocumentBody.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "body"
        if first["type"] == "extra_forbidden":
            known = ", ".join(DocumentBody.model_fields)
            raise UnknownField(
                f"{field} is not a field of a document; known are {known}.", field
            ) from error
        raise InvalidRequest(f"{field}: {first['msg']}.", field) from error
