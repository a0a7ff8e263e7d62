"""/api/v1/documents: send texts and files, see what became of them."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from adapters.types import MediaType
from server.api import uploads
from server.api.deletions import go_on
from server.api.deps import Admin, Ingest, ReadOrIngest, RequestId, RuntimeDep
from server.api.schemas.base import Listing, Page, Text, Title
from server.api.schemas.deletions import DeletedDocumentView
from server.api.schemas.documents import (
    BatchBody,
    BatchView,
    ChunkView,
    DocumentBody,
    DocumentView,
    RefusedView,
)
from server.api.uploads import Refused
from server.api.views import document_view
from server.core.errors import AppError, InvalidRequest
from server.db import DocumentState
from server.services import deletions, documents, inspections
from server.services.documents import Upload

router = APIRouter(prefix="/documents", tags=["documents"])

_TEXT = {"schema": {"type": "string"}}
_FILE = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "",
    status_code=201,
    responses={200: {"model": DocumentView | BatchView}, 400: {}, 413: {}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                uploads.JSON: {"schema": DocumentBody.model_json_schema()},
                uploads.MULTIPART: {"schema": BatchBody.model_json_schema()},
                MediaType.TEXT: _TEXT,
                MediaType.MARKDOWN: _TEXT,
                MediaType.HTML: _FILE,
                MediaType.PDF: _FILE,
                MediaType.DOCX: _FILE,
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
) -> DocumentView | BatchView:
    """Send a document, or up to 100 files in a form. The same again answers 200 with the same id.

    Of a batch, what can be taken is taken, and the rest is named under ``errors``.
    """
    settings = runtime.settings.documents
    is_batch = uploads.is_batch(request)
    if is_batch:
        parts = await uploads.read_batch(request, settings)
    else:
        parts = [await uploads.read_upload(request, settings, title)]
    taken = [part for part in parts if isinstance(part, Upload)]
    refused = [part for part in parts if isinstance(part, Refused)]
    if not taken:
        raise _none_taken(refused)

    def accept(session: Session) -> tuple[list[DocumentView], int]:
        stored = [
            documents.accept(
                session, upload, owner=actor.owner, created_by=actor.id, queue=runtime.queue
            )
            for upload in taken
        ]
        session.flush()
        views = [document_view(session, document) for document, _ in stored]
        return views, sum(is_new for _, is_new in stored)

    views, new = await runtime.database.run(accept)
    response.status_code = 201 if new else 200
    if not is_batch:
        return views[0]
    return BatchView(data=views, new=new, errors=[_refused_view(one) for one in refused])


def _none_taken(refused: Sequence[Refused]) -> AppError:
    """The one file's own error; of several, the first one's, with a word of the others."""
    first = refused[0].error
    if len(refused) == 1:
        return first
    return InvalidRequest(
        f"None of the {len(refused)} files can be taken; the first: {first.message}", first.param
    )


def _refused_view(refused: Refused) -> RefusedView:
    return RefusedView(
        index=refused.index, filename=refused.filename, error=refused.error.envelope()["error"]
    )


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


@router.post("/{document_id}/release", responses={404: {}, 409: {}})
async def release_document(
    document_id: Text, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> DocumentView:
    """Let a quarantined document be learnt, whole, in spite of its findings."""

    def release(session: Session) -> DocumentView:
        row = inspections.release(session, actor, document_id, request_id=request_id)
        return document_view(session, row)

    return await runtime.database.run(release)


@router.delete("/{document_id}", responses={404: {}})
async def delete_document(
    document_id: Text,
    runtime: RuntimeDep,
    actor: Admin,
    request_id: RequestId,
    rebuild: bool = False,
) -> DeletedDocumentView:
    """Forget what it says. The answer names every version that was trained on it.

    With ``rebuild``, a run without it is queued for each of their lines, and they are retired when
    its version serves.
    """

    def forget(session: Session) -> tuple[DocumentView, str]:
        row, deletion = deletions.forget_document(
            session, actor, document_id, rebuild=rebuild, request_id=request_id
        )
        return document_view(session, row), deletion.id

    view, deletion_id = await runtime.database.run(forget)
    deletion = await go_on(runtime, deletion_id)
    return DeletedDocumentView(**view.model_dump(), deletion=deletion)
