"""/api/v1/documents/{document_id}/questions and /api/v1/exams: what is asked, and who grades it."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from adapters.types import ItemKind
from server.api.deps import Admin, Ingest, Read, ReadOrIngest, RequestId, RuntimeDep
from server.api.schemas.base import Text
from server.api.schemas.deletions import DeletedView
from server.api.schemas.documents import (
    JudgeListing,
    JudgeView,
    QuestionBody,
    QuestionListing,
    QuestionPage,
    QuestionView,
)
from server.api.uploads import sent_question
from server.core.errors import InvalidRequest, UnknownField
from server.core.security import Scope
from server.db import ExamQuestion
from server.http import parse_json
from server.services import calibrations, questions
from server.services.documents import SentQuestion

router = APIRouter(tags=["exams"])

MOST_AT_ONCE = 500
"""In one request."""

_JSON = "application/json"
_LINES = ("application/jsonl", "application/x-ndjson")
_SCHEMA = QuestionBody.model_json_schema()
_ONE = TypeAdapter(QuestionBody)


@router.post(
    "/documents/{document_id}/questions",
    status_code=201,
    responses={200: {"model": QuestionListing}, 400: {}, 404: {}, 413: {}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                _JSON: {"schema": {"anyOf": [_SCHEMA, {"type": "array", "items": _SCHEMA}]}},
                _LINES[0]: {"schema": {"type": "string"}},
            },
        }
    },
)
async def create_questions(
    document_id: Text, request: Request, response: Response, runtime: RuntimeDep, actor: Ingest
) -> QuestionListing:
    """Add questions on a document: one, a list, or JSON lines. All of them or none are taken.

    They are only ever asked, never taught. The same again answers 200 and changes nothing.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    sent = _read(await request.body(), media_type)

    def add(session: Session) -> QuestionListing:
        rows, new = questions.add(session, actor, document_id, sent)
        return QuestionListing(data=[_view(row) for row in rows], new=new)

    listing = await runtime.database.run(add)
    response.status_code = 201 if listing.new else 200
    return listing


@router.get("/documents/{document_id}/questions", responses={400: {}, 404: {}})
async def list_questions(
    document_id: Text,
    runtime: RuntimeDep,
    actor: ReadOrIngest,
    kind: ItemKind | None = None,
    after: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> QuestionPage:
    """The questions on a document with their answers, newest first.

    Those that users of the model have asked are shown to keys with the scope read only.
    """

    def read(session: Session) -> QuestionPage:
        page = questions.list_questions(
            session,
            document_id,
            tenant=actor.owner,
            kind=kind,
            without_traffic=not actor.may(Scope.READ),
            after=after,
            limit=limit,
        )
        return QuestionPage(data=[_view(row) for row in page.rows], next=page.next)

    return await runtime.database.read(read)


@router.delete("/documents/{document_id}/questions/{question_id}", responses={404: {}})
async def delete_question(
    document_id: Text, question_id: Text, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> DeletedView:
    """Take one question out of all exams from now on."""

    def remove(session: Session) -> DeletedView:
        row = questions.remove(session, actor, document_id, question_id, request_id=request_id)
        return DeletedView(id=row.id)

    return await runtime.database.run(remove)


@router.get("/exams/judge")
async def list_judges(runtime: RuntimeDep, _: Read) -> JudgeListing:
    """How far the base model may be believed as a judge of replies, newest calibration first."""

    def read(session: Session) -> JudgeListing:
        rows = calibrations.list_all(session)
        return JudgeListing(
            data=[JudgeView.model_validate(row, from_attributes=True) for row in rows]
        )

    return await runtime.database.read(read)


def _read(raw: bytes, media_type: str) -> list[SentQuestion]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8: byte {error.start}.") from error
    if media_type in _LINES:
        rows = [parse_json(line) for line in text.split("\n") if line.strip()]
    elif media_type == _JSON:
        value = parse_json(text)
        rows = value if isinstance(value, list) else [value]
    else:
        raise InvalidRequest(
            f"The content type {media_type or '(none)'} is not taken here; send {_JSON} (one "
            f"question or a list) or {_LINES[0]} (one on each line).",
            "content-type",
        )
    if not 1 <= len(rows) <= MOST_AT_ONCE:
        raise InvalidRequest(
            f"{len(rows)} questions were sent; send between 1 and {MOST_AT_ONCE} at once.",
            "questions",
        )
    return [_sent(row, number) for number, row in enumerate(rows)]


def _sent(row: Any, number: int) -> SentQuestion:
    try:
        body = _ONE.validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        # What is said of the whole is said of the answers: they do not fit the grader.
        whole = "answers" if first["type"] == "value_error" else "question"
        field = ".".join(map(str, first["loc"])) or whole
        where = f"question {number + 1}, {field}"
        if first["type"] == "extra_forbidden":
            known = ", ".join(QuestionBody.model_fields)
            raise UnknownField(f"{where}: not a field; known are {known}.", field) from error
        raise InvalidRequest(f"{where}: {first['msg']}.", field) from error
    return sent_question(body)


def _view(row: ExamQuestion) -> QuestionView:
    return QuestionView(
        id=row.id,
        document_id=row.document_id,
        kind=row.kind,
        split=row.split,
        question=row.prompt,
        answers=row.answers,
        grader=row.grader,
        interaction_id=row.interaction_id,
        created_at=row.created_at,
    )
