"""The one door through which a learner reads interactions.

What comes out is redacted, may be learnt from, and belongs to the tenant of the line that learns:
one tenant's traffic never trains another's line, nor the one that all share.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import Session

from adapters.redaction import Redactor, redact, redact_json
from server.db import Adapter, Endpoint, Feedback, FeedbackKind, Interaction, Outcome
from server.services import feedback, interactions, messages
from server.services.interactions import Filters
from server.services.keys import Principal

JsonObject = dict[str, Any]
Place = tuple[datetime, str]
"""Time and id of the last row that was read."""

PAGE = 100
"""Rows read at once."""

_CONVERSATIONS = (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES)
"""Endpoints whose prompts are messages; raw completions and embeddings are no conversations."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """One piece of feedback, redacted."""

    kind: str
    choice: int
    value: JsonObject
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Experience:
    """An interaction made ready to learn from."""

    interaction_id: str
    created_at: datetime
    conversation_id: str | None
    endpoint: str
    version: str
    split: str
    task_tag: str | None
    end_user: str | None
    key_id: str
    messages: tuple[JsonObject, ...]
    """The prompt, in order."""
    sampling: JsonObject
    """What else was asked: temperature, tools, and so on."""
    reply: str
    choices: list[Any] | None
    finish_reason: str | None
    feedback: tuple[Opinion, ...]
    tokens: JsonObject | None
    """Token ids and log-probabilities as given; None where redaction changed a word, because the
    ids spell the words out."""
    was_redacted: bool
    """Whether anything was taken out."""


@dataclass(frozen=True, slots=True)
class Captured:
    """An interaction as it was captured, with its prompt and what was said of it; not redacted."""

    interaction: Interaction
    prompt: list[JsonObject]
    feedback: Sequence[Feedback]


def learnable(
    session: Session,
    adapter: Adapter,
    *,
    split: str = "train",
    since: datetime | None = None,
    redactor: Redactor = redact,
) -> Iterator[Experience]:
    """What a line may learn from, oldest first.

    Only whole replies to conversations with the line's own tenant, neither redacted by an admin
    nor kept out by the client or its key.

    Args:
        split: ``train``, or ``gate`` for exams; a conversation is in one of them for good.
        since: only what came at this moment or later.
    """
    statement = _taught(select(Interaction)).where(_is_of_line(adapter), Interaction.split == split)
    if since is not None:
        statement = statement.where(Interaction.created_at >= since)
    last: Place | None = None
    while True:
        page, last = _page(session, statement, last)
        for found in _captured(session, page):
            yield _experience(found, redactor)
        if last is None:
            return


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of what a line may learn from."""

    tag: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    is_judged: bool = False
    """Only replies that a thumb, a score or a correction was given on."""


MOST_COUNTED = 10_000

JUDGEMENTS = (FeedbackKind.THUMB, FeedbackKind.SCORE, FeedbackKind.CORRECTION)


def newest(
    session: Session,
    adapter: Adapter,
    window: Window,
    *,
    limit: int,
    redactor: Redactor = redact,
) -> list[Experience]:
    """The newest of what a line may learn from, of either split, newest first."""
    statement = _taught(select(Interaction)).where(_is_of_line(adapter), *_within(window))
    ordered = statement.order_by(Interaction.created_at.desc(), Interaction.id.desc())
    rows = session.scalars(ordered.limit(limit)).all()
    return [_experience(found, redactor) for found in _captured(session, rows)]


def again(
    session: Session,
    adapter: Adapter,
    interaction_ids: Sequence[str],
    *,
    redactor: Redactor = redact,
) -> list[Experience]:
    """Those of these interactions that are still there and may still be learnt from, by id."""
    rows: list[Interaction] = []
    for start in range(0, len(interaction_ids), PAGE):
        part = interaction_ids[start : start + PAGE]
        statement = _taught(select(Interaction)).where(
            _is_of_line(adapter), Interaction.id.in_(part)
        )
        rows.extend(session.scalars(statement))
    rows.sort(key=lambda row: row.id)
    return [_experience(found, redactor) for found in _captured(session, rows)]


def count_within(session: Session, adapter: Adapter, window: Window) -> tuple[int, datetime | None]:
    """How many interactions to train on lie there, and when the oldest of them came.

    It counts no further than ``MOST_COUNTED``, so that a tick costs the same whatever is stored.
    """
    inside = (
        _taught(select(Interaction.created_at))
        .where(_is_of_line(adapter), Interaction.split == "train", *_within(window))
        .order_by(Interaction.created_at, Interaction.id)
        .limit(MOST_COUNTED)
        .subquery()
    )
    found = select(func.count(), func.min(inside.c.created_at))
    count, oldest = session.execute(found).one()
    return count, oldest


def last_asked(session: Session, adapter: Adapter) -> datetime | None:
    """When the line was asked last, by whomever and with whatever end."""
    return session.scalar(
        select(func.max(Interaction.created_at)).where(Interaction.adapter == adapter.name)
    )


def _is_judged_between(since: datetime | None, until: datetime | None) -> ColumnElement[bool]:
    """The condition on an interaction that somebody judged it in this time."""
    judged = select(Feedback.interaction_id).where(
        Feedback.interaction_id.is_not(None), Feedback.kind.in_(JUDGEMENTS)
    )
    if since is not None:
        judged = judged.where(Feedback.created_at >= since)
    if until is not None:
        judged = judged.where(Feedback.created_at <= until)
    return Interaction.id.in_(judged)


def _is_of_line(adapter: Adapter) -> ColumnElement[bool]:
    owned = Interaction.owner.is_not_distinct_from(adapter.owner)
    return and_(owned, Interaction.adapter == adapter.name)


def _within(window: Window) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if window.tag is not None:
        conditions.append(Interaction.task_tag == window.tag)
    if window.is_judged:  # what counts is when somebody judged, however old the reply
        conditions.append(_is_judged_between(window.since, window.until))
    elif window.since is not None:
        conditions.append(Interaction.created_at >= window.since)
    if window.until is not None:
        conditions.append(Interaction.created_at <= window.until)
    return conditions


def export_page(
    session: Session,
    principal: Principal,
    filters: Filters,
    last: Place | None = None,
) -> tuple[list[Captured], Place | None]:
    """Some of what a principal may take out as training material, oldest first, and where to go on.

    It is raw still: only :func:`training_lines` may see it. The place is None at the end.
    """
    rows, last = _page(session, _taught(interactions.visible(principal, filters)), last)
    return _captured(session, rows), last


def training_lines(page: Sequence[Captured], redactor: Redactor = redact) -> str:
    """Redacted lines in OpenAI's fine-tuning format for chat; a second or so of CPU a thousand.

    A corrected reply is given as corrected; one that was judged down, and not corrected, is left
    out.
    """
    lines = (_training_line(_experience(found, redactor)) for found in page)
    return "".join(line for line in lines if line is not None)


def _taught(statement: Select[Any]) -> Select[Any]:
    return statement.where(
        Interaction.may_learn,
        Interaction.shadow_of.is_(None),
        Interaction.redacted_at.is_(None),
        Interaction.outcome == Outcome.COMPLETE,
        Interaction.endpoint.in_(_CONVERSATIONS),
    )


def _page(
    session: Session, statement: Select[Interaction], last: Place | None
) -> tuple[Sequence[Interaction], Place | None]:
    if last is not None:
        moment, row_id = last
        statement = statement.where(
            Interaction.created_at >= moment,
            or_(
                Interaction.created_at > moment,
                and_(Interaction.created_at == moment, Interaction.id > row_id),
            ),
        )
    ordered = statement.order_by(Interaction.created_at, Interaction.id).limit(PAGE)
    rows = session.scalars(ordered).all()
    return rows, (rows[-1].created_at, rows[-1].id) if len(rows) == PAGE else None


def _captured(session: Session, rows: Sequence[Interaction]) -> list[Captured]:
    prompts = messages.prompts_of(session, rows)
    opinions = feedback.feedback_of(session, [row.id for row in rows])
    return [Captured(row, prompts[row.id], opinions[row.id]) for row in rows if prompts[row.id]]


def _experience(found: Captured, redactor: Redactor) -> Experience:
    row = found.interaction
    asked = messages.split_prompt(row.endpoint, row.request)[0]
    raw = [found.prompt, asked, row.reply, row.choices]
    clean = redact_json(raw, redactor)
    return Experience(
        interaction_id=row.id,
        created_at=row.created_at,
        conversation_id=row.conversation_id,
        endpoint=row.endpoint,
        version=row.version,
        split=row.split,
        task_tag=row.task_tag and redactor(row.task_tag),
        end_user=row.end_user,
        key_id=row.key_id,
        messages=tuple(clean[0]),
        sampling=clean[1],
        reply=clean[2],
        choices=clean[3],
        finish_reason=row.finish_reason,
        feedback=tuple(
            Opinion(given.kind, given.choice, redact_json(given.value, redactor), given.created_at)
            for given in found.feedback
        ),
        tokens=row.tokens if clean == raw else None,
        was_redacted=clean != raw,
    )


def _training_line(found: Experience) -> str | None:
    reply = _ideal_reply(found)
    if reply is None:
        return None
    line: JsonObject = {"messages": [*found.messages, reply]}
    if isinstance(tools := found.sampling.get("tools"), list) and tools:
        line["tools"] = tools
    return json.dumps(line, ensure_ascii=False) + "\n"


def _ideal_reply(found: Experience) -> JsonObject | None:
    """The assistant's message to imitate; None where the reply is not worth it."""
    said = [opinion for opinion in found.feedback if opinion.choice == 0]
    corrections = [opinion.value.get("text") for opinion in said if _is_correction(opinion)]
    if corrections and corrections[-1]:
        return {"role": "assistant", "content": corrections[-1]}
    if any(map(_is_against, said)) or not found.reply:
        return None
    if found.finish_reason == "tool_calls":
        try:
            return {"role": "assistant", **json.loads(found.reply)}
        except (ValueError, TypeError):
            return {"role": "assistant", "content": found.reply}
    return {"role": "assistant", "content": found.reply}


def _is_correction(opinion: Opinion) -> bool:
    return opinion.kind == FeedbackKind.CORRECTION


def _is_against(opinion: Opinion) -> bool:
    score = opinion.value.get("score")
    return opinion.value.get("thumb") == "down" or (score is not None and score < 0)
