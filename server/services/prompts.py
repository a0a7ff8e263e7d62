"""Prompts sent for learning: check, accept once, hold some out, list, forget."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from adapters.redaction import Redactor, redact, redact_json
from adapters.spec import PromptExamSpec
from adapters.types import ChatMessage
from adapters.types import Prompt as PlainPrompt
from server.core.clock import utc_now
from server.core.errors import PromptInvalid, RowNotFound
from server.db import AdapterVersion, EvaluationResult, Prompt, RunPrompt
from server.services.messages import insert_missing
from server.services.paging import Page, page_of
from server.services.tenants import only, sees

TRAIN, GATE = "train", "gate"

MOST_PROMPTS = 1000
"""Of one batch."""
MOST_MESSAGES = 100
MOST_CHARS = 50_000
"""Of one prompt, or of its tests."""
MOST_ANSWERS = 20
MOST_ANSWER_CHARS = 2000

ROLES = ("system", "user", "assistant")
_MEANT = {"developer": "system"}
_DRAWS = 2**64


@dataclass(frozen=True, slots=True)
class PromptUpload:
    """A prompt as it arrives: a text, or messages."""

    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    answers: Sequence[str] = ()
    tests: str | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class CheckedPrompt:
    """A prompt that can be learnt from."""

    messages: tuple[ChatMessage, ...]
    answers: tuple[str, ...]
    tests: str | None
    tag: str | None

    @property
    def content(self) -> str:
        """What makes it this prompt and no other."""
        parts = [list(self.messages), list(self.answers), self.tests, self.tag]
        return json.dumps(parts, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def checked(uploads: Sequence[PromptUpload]) -> list[CheckedPrompt]:
    """The prompts of a batch in the form in which they are kept.

    Raises:
        PromptInvalid: what is wrong with the first bad one, of which field, and what helps.
    """
    if not uploads:
        raise PromptInvalid("prompts is empty. Send at least one prompt.", "prompts")
    if len(uploads) > MOST_PROMPTS:
        raise PromptInvalid(
            f"The batch holds {len(uploads)} prompts, and {MOST_PROMPTS} are taken at once. "
            "Send it in parts.",
            "prompts",
        )
    return [_checked(upload, f"prompts.{number}") for number, upload in enumerate(uploads)]


def accept(
    session: Session, found: Sequence[CheckedPrompt], *, owner: str | None, created_by: str
) -> list[tuple[Prompt, bool]]:
    """Store prompts, but for those that the owner has sent already; True where one is new.

    Id and split follow from owner and content. One that was deleted begins anew.
    """
    ids = [_prompt_id(owner, one) for one in found]
    known = _by_id(session, ids)
    fresh = {
        prompt_id: _row(prompt_id, one, owner, created_by)
        for prompt_id, one in zip(ids, found, strict=True)
        if prompt_id not in known
    }
    # Another request may bring the same at the same moment.
    insert_missing(session, Prompt, [fresh[key] for key in sorted(fresh)])
    stored = _by_id(session, ids)
    answer: list[tuple[Prompt, bool]] = []
    told: set[str] = set()
    for prompt_id, one in zip(ids, found, strict=True):
        row = stored[prompt_id]
        is_new = prompt_id in fresh and prompt_id not in told
        if row.deleted_at is not None:
            _begin_anew(row, one, created_by)
            is_new = True
        told.add(prompt_id)
        answer.append((row, is_new))
    return answer


def get_prompt(session: Session, prompt_id: str, *, tenant: str | None = None) -> Prompt:
    """A prompt that ``tenant`` may see; None is the operator, who sees all.

    Raises:
        RowNotFound: no such prompt, or another tenant's.
    """
    row = session.get(Prompt, prompt_id)
    if row is None or not sees(tenant, row.owner):
        raise RowNotFound("prompt", prompt_id, "List them: `everlearn prompts list`.")
    return row


def list_prompts(
    session: Session,
    *,
    tenant: str | None = None,
    tag: str | None = None,
    split: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Page[Prompt]:
    """Those that ``tenant`` may see and that are not deleted, newest first.

    Raises:
        InvalidRequest: ``after`` is no cursor.
    """
    statement = select(Prompt).where(only(Prompt.owner, tenant), Prompt.deleted_at.is_(None))
    if tag is not None:
        statement = statement.where(Prompt.tag == tag)
    if split is not None:
        statement = statement.where(Prompt.split == split)
    return page_of(session, statement, Prompt, after=after, limit=limit)


def delete_prompt(session: Session, prompt_id: str, *, tenant: str | None) -> Prompt:
    """Forget what a prompt says; its row stays, to name the versions that saw it.

    Its words go, and what exams quoted of them. Doing it twice changes nothing.

    Raises:
        RowNotFound: no such prompt, or another tenant's.
    """
    row = get_prompt(session, prompt_id, tenant=tenant)
    session.refresh(row, with_for_update=True)  # a run that takes it now is waited for
    session.execute(delete(EvaluationResult).where(EvaluationResult.document_id == prompt_id))
    row.messages = []
    row.answers = []
    row.tests = None
    row.tag = None
    row.deleted_at = row.deleted_at or utc_now()
    return row


def versions_that_saw(session: Session, prompt_id: str) -> Sequence[AdapterVersion]:
    """The lineage of a prompt forward: every version whose run took it."""
    return session.scalars(
        select(AdapterVersion)
        .join(RunPrompt, RunPrompt.run_id == AdapterVersion.run_id)
        .where(RunPrompt.prompt_id == prompt_id)
        .order_by(AdapterVersion.adapter_id, AdapterVersion.number)
    ).all()


def redacted(row: Prompt, redactor: Redactor = redact) -> PlainPrompt:
    """The prompt as `adapters` knows it, without what must not be learnt.

    It is of no user: it was meant to be learnt, so that a thousand of one key are no flood.
    """
    messages, answers, tests, tag = redact_json(
        [row.messages, row.answers, row.tests, row.tag], redactor
    )
    return PlainPrompt(
        id=row.id,
        messages=tuple(dict(message) for message in messages),
        tag=tag,
        answers=tuple(answers),
        tests=tests,
    )


def plain_messages(sent: Sequence[Mapping[str, Any]]) -> tuple[ChatMessage, ...] | str:
    """A conversation that a chat template takes, or why it is none: a short closed phrase."""
    found: list[ChatMessage] = []
    for message in sent:
        role = _MEANT.get(str(message.get("role")), message.get("role"))
        content = _text_of(message.get("content"))
        if role not in ROLES or content is None or message.get("tool_calls"):
            return "not plain text"
        found.append({"role": str(role), "content": content})
    if not found or found[-1]["role"] != "user":
        return "does not end with a user's turn"
    if not found[-1]["content"].strip():
        return "empty"
    return tuple(found)


def turn_key(messages: Sequence[ChatMessage]) -> str:
    """By which two prompts ask the same: the last turn but for white space and case."""
    return " ".join(messages[-1]["content"].split()).casefold()


def is_drawn(key: str, share: float) -> bool:
    """Whether a last turn is held out, by its hash: a larger share holds out all of a smaller."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"held out").digest()
    return int.from_bytes(digest) < share * _DRAWS


def _text_of(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [
        part.get("text")
        for part in content
        if isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text")
    ]
    texts = [text for text in parts if isinstance(text, str)]
    return "".join(texts) if texts and len(texts) == len(content) else None


def _checked(upload: PromptUpload, field: str) -> CheckedPrompt:
    if (upload.prompt is None) == (upload.messages is None):
        raise PromptInvalid(f"{field} needs either prompt or messages. Send one of them.", field)
    place = f"{field}.messages"
    sent: Sequence[Mapping[str, Any]] = upload.messages or ()
    if upload.prompt is not None:
        place, sent = f"{field}.prompt", [{"role": "user", "content": upload.prompt}]
    if len(sent) > MOST_MESSAGES:
        raise PromptInvalid(
            f"{place} holds {len(sent)} messages, and {MOST_MESSAGES} are taken. Shorten it.", place
        )
    messages = plain_messages(sent)
    if isinstance(messages, str):
        raise PromptInvalid(
            f"{place}: {messages}. Send messages of role system, user or assistant whose content is "
            "text; the last one is the user's and is what is to be answered.",
            place,
        )
    _check_text("".join(message["content"] for message in messages), place)
    answers = tuple(dict.fromkeys(answer.strip() for answer in upload.answers))
    _check_answers(answers, f"{field}.answers")
    tests = upload.tests if upload.tests and upload.tests.strip() else None
    if tests:
        _check_text(tests, f"{field}.tests")
    return CheckedPrompt(messages, answers, tests, upload.tag)


def _check_answers(answers: Sequence[str], field: str) -> None:
    if len(answers) > MOST_ANSWERS:
        raise PromptInvalid(
            f"{field} holds {len(answers)} answers, and {MOST_ANSWERS} are taken. Send fewer.",
            field,
        )
    for number, answer in enumerate(answers):
        place = f"{field}.{number}"
        if not answer:
            raise PromptInvalid(f"{place} is empty. Leave it out, or say what it is.", place)
        if len(answer) > MOST_ANSWER_CHARS:
            raise PromptInvalid(
                f"{place} has {len(answer)} characters, and {MOST_ANSWER_CHARS} are taken. "
                "Shorten it.",
                place,
            )


def _check_text(text: str, field: str) -> None:
    if len(text) > MOST_CHARS:
        raise PromptInvalid(
            f"{field} has {len(text)} characters, and {MOST_CHARS} are taken. Shorten it.", field
        )
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise PromptInvalid(f"{field} holds NUL or half a character. Send UTF-8 text.", field)


def _prompt_id(owner: str | None, found: CheckedPrompt) -> str:
    digest = hashlib.blake2b(f"{owner or ''}\0{found.content}".encode(), digest_size=16)
    return f"pmt_{digest.hexdigest()}"


def _split(messages: Sequence[ChatMessage]) -> str:
    return GATE if is_drawn(turn_key(messages), PromptExamSpec().share) else TRAIN


def _row(
    prompt_id: str, found: CheckedPrompt, owner: str | None, created_by: str
) -> dict[str, Any]:
    return {
        "id": prompt_id,
        "created_at": utc_now(),
        "owner": owner,
        "messages": list(found.messages),
        "answers": list(found.answers),
        "tests": found.tests,
        "tag": found.tag,
        "split": _split(found.messages),
        "created_by": created_by,
        "deleted_at": None,
    }


def _begin_anew(row: Prompt, found: CheckedPrompt, created_by: str) -> None:
    row.messages = list(found.messages)
    row.answers = list(found.answers)
    row.tests = found.tests
    row.tag = found.tag
    row.created_by = created_by
    row.created_at = utc_now()
    row.deleted_at = None


def _by_id(session: Session, ids: Sequence[str]) -> dict[str, Prompt]:
    rows = session.scalars(
        select(Prompt).where(Prompt.id.in_(sorted(set(ids)))).order_by(Prompt.id)
    )
    return {row.id: row for row in rows}
