"""/api/v1/prompts: prompts for the model to learn from its own replies; send, see, forget them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from server.api.deletions import go_on
from server.api.deps import Admin, Ingest, ReadOrIngest, RequestId, RuntimeDep
from server.api.schemas.base import Page, Text
from server.api.schemas.deletions import DeletedPromptView
from server.api.schemas.prompts import PromptsBody, PromptView, SentPrompt, SentPrompts
from server.api.views import prompt_view
from server.services import deletions, prompts
from server.services.prompts import PromptUpload

router = APIRouter(prefix="/prompts", tags=["prompts"])


@router.post("", status_code=201, responses={200: {"model": SentPrompts}, 400: {}, 413: {}})
async def create_prompts(
    body: PromptsBody, response: Response, runtime: RuntimeDep, actor: Ingest
) -> SentPrompts:
    """Send a batch, all of it or nothing. What is here already is not stored twice; 200 when all is.

    Some are held out, by hash, and only ever asked in exams.
    """
    found = prompts.checked([PromptUpload(**each.model_dump()) for each in body.prompts])

    def accept(session: Session) -> list[SentPrompt]:
        stored = prompts.accept(session, found, owner=actor.owner, created_by=actor.id)
        return [SentPrompt(id=row.id, is_new=is_new, split=row.split) for row, is_new in stored]

    sent = await runtime.database.run(accept)
    created = sum(each.is_new for each in sent)
    response.status_code = 201 if created else 200
    return SentPrompts(data=sent, created=created)


@router.get("", responses={400: {}})
async def list_prompts(
    runtime: RuntimeDep,
    actor: ReadOrIngest,
    tag: Text | None = None,
    split: Literal["train", "gate"] | None = None,
    after: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page:
    """Newest first, without the deleted; ``after`` takes the ``next`` of the page before."""

    def read(session: Session) -> Page:
        page = prompts.list_prompts(
            session, tenant=actor.owner, tag=tag, split=split, after=after, limit=limit
        )
        return Page(data=[prompt_view(session, row) for row in page.rows], next=page.next)

    return await runtime.database.read(read)


@router.get("/{prompt_id}", responses={404: {}})
async def get_prompt(prompt_id: Text, runtime: RuntimeDep, actor: ReadOrIngest) -> PromptView:
    """One prompt, with the versions whose runs took it."""

    def read(session: Session) -> PromptView:
        return prompt_view(session, prompts.get_prompt(session, prompt_id, tenant=actor.owner))

    return await runtime.database.read(read)


@router.delete("/{prompt_id}", responses={404: {}})
async def delete_prompt(
    prompt_id: Text,
    runtime: RuntimeDep,
    actor: Admin,
    request_id: RequestId,
    rebuild: bool = False,
) -> DeletedPromptView:
    """Forget its words. The answer names every version whose run took it.

    With ``rebuild``, what serves is made again without it, and those versions are retired.
    """

    def forget(session: Session) -> tuple[PromptView, str]:
        row, deletion = deletions.forget_prompt(
            session, actor, prompt_id, rebuild=rebuild, request_id=request_id
        )
        return prompt_view(session, row), deletion.id

    view, deletion_id = await runtime.database.run(forget)
    deletion = await go_on(runtime, deletion_id)
    return DeletedPromptView(**view.model_dump(), deletion=deletion)
