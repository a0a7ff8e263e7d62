"""Interactions: store what the gateway captured, list it, blank it, delete it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, exists, literal_column, or_, select
from sqlalchemy import Text as SqlText
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.core.errors import RowNotFound
from server.db import Arm, Endpoint, Feedback, Interaction, Message, Outcome
from server.services import feedback, messages, privacy, questions
from server.services.keys import Principal
from server.services.paging import Page, page_of

_FROM_RECORD = (
    "id",
    "completion_id",
    "key_id",
    "owner",
    "requested_model",
    "adapter",
    "version",
    "engine_name",
    "is_stream",
    "reply",
    "choices",
    "tokens",
    "finish_reason",
    "outcome",
    "status",
    "error",
    "prompt_tokens",
    "completion_tokens",
    "first_byte_ms",
    "duration_ms",
    "arm",
    "shadow_of",
)
_GATE_SHARE = 10
"""One conversation in so many is kept from training and asked in exams."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which interactions are asked for; None takes all."""

    adapter: str | None = None
    version: str | None = None
    outcome: str | None = None
    endpoint: str | None = None
    task: str | None = None
    key: str | None = None
    conversation: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    has_feedback: bool | None = None
    arm: str | None = None
    """Copies of a shadow trial are listed only where they are asked for."""
    text: str | None = None
    """In the reply or the last message of the prompt, upper and lower case alike."""


def record_all(session: Session, records: Sequence[Mapping[str, Any]]) -> int:
    """Insert captured records; those already stored are passed over.

    A record has the columns of ``Interaction``; its ``request`` is whole, and the prompt in it
    becomes messages here. Returns how many were new. A shipper that died between commit and
    clean-up sends its segment again, so the id decides.
    """
    messages.lock_for_storing(session)
    by_id = {record["id"]: record for record in records}
    known = set(session.scalars(select(Interaction.id).where(Interaction.id.in_(by_id))))
    rows: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for key in sorted(by_id.keys() - known - _orphans(session, by_id)):
        row, chain = _rows_of(by_id[key])
        rows.append(row)
        said += chain
    messages.store(session, said)
    messages.insert_missing(session, Interaction, rows)
    feedback.link(session, rows)
    return len(rows)


def list_interactions(
    session: Session, principal: Principal, filters: Filters, *, after: str | None, limit: int
) -> Page[Interaction]:
    """Newest first; a tenant sees its own.

    Raises:
        InvalidRequest: ``after`` is no cursor.
    """
    return page_of(session, visible(principal, filters), Interaction, after=after, limit=limit)


def visible(principal: Principal, filters: Filters) -> Select[Interaction]:
    """What a principal may see of what is asked for, in no order."""
    return _filtered(_visible(principal), filters)


def get_interaction(session: Session, principal: Principal, interaction_id: str) -> Interaction:
    """One interaction.

    Raises:
        RowNotFound: it is not there, or another tenant's.
    """
    found = session.scalar(_visible(principal).where(Interaction.id == interaction_id))
    if found is None:
        raise RowNotFound("interaction", interaction_id, "List them: GET /api/v1/interactions.")
    return found


def redact_interaction(session: Session, principal: Principal, interaction_id: str) -> Interaction:
    """Blank prompt, reply and the words of its feedback; tokens, times and outcome stay.

    So it goes with the copies that a shadow trial made of it.

    Other turns of the conversation hold the same words and are redacted by themselves. Doing it
    twice changes nothing.

    Raises:
        RowNotFound: see :func:`get_interaction`.
    """
    messages.lock_for_deleting(session)
    interaction = get_interaction(session, principal, interaction_id)
    for row in [interaction, *_copies_of(session, interaction)]:
        _blank(session, row)
    return interaction


def _blank(session: Session, interaction: Interaction) -> None:
    last_message = interaction.last_message_id
    interaction.request = privacy.accounting_of(interaction.request)
    interaction.reply = ""
    interaction.choices = interaction.tokens = interaction.error = None
    interaction.last_message_id = interaction.end_user = None
    interaction.may_learn = False
    interaction.redacted_at = interaction.redacted_at or utc_now()
    feedback.blank(session, interaction.id)
    session.flush()
    questions.forget_heard(session, [interaction.id])
    _delete_unreached(session, [(last_message, interaction.conversation_id)])


def delete_interaction(session: Session, principal: Principal, interaction_id: str) -> Interaction:
    """Delete it with its feedback, its shadow copies, and the messages that nothing else reaches.

    Raises:
        RowNotFound: see :func:`get_interaction`.
    """
    messages.lock_for_deleting(session)
    interaction = get_interaction(session, principal, interaction_id)
    delete_rows(session, [interaction, *_copies_of(session, interaction)])
    return interaction


def delete_rows(session: Session, rows: Sequence[Interaction]) -> None:
    """Delete these interactions; the caller holds :func:`messages.lock_for_deleting`."""
    ids = [row.id for row in rows]
    ends = [(row.last_message_id, row.conversation_id) for row in rows]
    for row in rows:
        session.expunge(row)
    session.execute(delete(Feedback).where(Feedback.interaction_id.in_(ids)))
    session.execute(delete(Interaction).where(Interaction.id.in_(ids)))
    # Only now: whoever makes a question of one of them right now holds its row until it is stored.
    questions.forget_heard(session, ids)
    _delete_unreached(session, ends)


def _orphans(session: Session, by_id: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Copies whose original was deleted or blanked before they came: they hold its words."""
    originals = {key: of for key, record in by_id.items() if (of := record.get("shadow_of"))}
    if not originals:
        return set()
    kept = set(
        session.scalars(
            select(Interaction.id).where(
                Interaction.id.in_(originals.values()), Interaction.redacted_at.is_(None)
            )
        )
    )
    return {key for key, of in originals.items() if of not in kept and of not in by_id}


def _copies_of(session: Session, interaction: Interaction) -> Sequence[Interaction]:
    """What a shadow trial said to the same prompt."""
    return session.scalars(select(Interaction).where(Interaction.shadow_of == interaction.id)).all()


def _delete_unreached(session: Session, ends: Sequence[tuple[str | None, str | None]]) -> None:
    messages.delete_unreached(
        session,
        [last_message for last_message, _ in ends if last_message],
        [conversation for _, conversation in ends if conversation],
    )


def _rows_of(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The columns of an interaction, and the rows of its messages."""
    record = privacy.storable(record)
    if not privacy.may_keep_content(record):
        record = privacy.without_content(record)
    endpoint = record.get("endpoint") or Endpoint.CHAT
    created_at = datetime.fromisoformat(record["created_at"])
    request, prompt = messages.split_prompt(endpoint, record["request"])
    chain = messages.chain(record.get("owner"), prompt, created_at)
    conversation = messages.conversation_of(chain)
    row = {
        **{name: record.get(name) for name in _FROM_RECORD},
        "endpoint": endpoint,
        "created_at": created_at,
        "request": _without_user(request),
        "conversation_id": conversation,
        "last_message_id": chain[-1]["id"] if chain else None,
        "may_learn": record.get("may_learn") is not False,
        "split": _split(conversation or record["id"]),
        "task_tag": _task(request),
        "end_user": _end_user(record.get("owner"), request),
        "redacted_at": None,
    }
    return row, chain


def _split(conversation: str) -> str:
    """Drawn by hash, so that it is the same for every turn and on every server."""
    drawn = hashlib.blake2b(conversation.encode(), digest_size=8).digest()
    return "gate" if int.from_bytes(drawn) % _GATE_SHARE == 0 else "train"


def _metadata(request: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = request.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _task(request: Mapping[str, Any]) -> str | None:
    task = _metadata(request).get("task")
    return task[:100] if isinstance(task, str) and task else None


def _end_user(owner: str | None, request: Mapping[str, Any]) -> str | None:
    """A hash without a key over tenant and name: it tells users apart, and hides no guessable name."""
    names = (
        request.get("safety_identifier"),
        request.get("user"),
        _metadata(request).get("user_id"),
    )
    name = next((name for name in names if isinstance(name, str) and name), None)
    if name is None:
        return None
    return "usr_" + hashlib.blake2b(f"{owner}\n{name}".encode(), digest_size=16).hexdigest()


def _without_user(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request without the names that stand hashed in a column of their own."""
    kept = {name: request[name] for name in request if name not in ("user", "safety_identifier")}
    if "user_id" in _metadata(request):
        kept["metadata"] = {
            name: value for name, value in _metadata(request).items() if name != "user_id"
        }
    return kept


def _visible(principal: Principal) -> Select[Interaction]:
    statement = select(Interaction)
    if principal.owner is not None:
        statement = statement.where(Interaction.owner == principal.owner)
    return statement


def _filtered(statement: Select[Interaction], filters: Filters) -> Select[Interaction]:
    for column, wanted in (
        (Interaction.adapter, filters.adapter),
        (Interaction.version, filters.version),
        (Interaction.outcome, filters.outcome),
        (Interaction.endpoint, filters.endpoint),
        (Interaction.task_tag, filters.task),
        (Interaction.key_id, filters.key),
        (Interaction.conversation_id, filters.conversation),
        (Interaction.arm, filters.arm),
    ):
        if wanted is not None:
            statement = statement.where(column == wanted)
    for column, wanted, usual in (
        (Interaction.outcome, filters.outcome, Outcome.COMPLETE),
        (Interaction.endpoint, filters.endpoint, Endpoint.CHAT),
    ):
        if wanted not in (None, usual):
            # Only where its very condition stands is a partial index seen to fit.
            statement = statement.where(column != literal_column(f"'{usual}'"))
    is_copy = Interaction.shadow_of.is_not(None)
    statement = statement.where(is_copy if filters.arm == Arm.SHADOW else ~is_copy)
    if filters.since is not None:
        statement = statement.where(Interaction.created_at >= filters.since)
    if filters.until is not None:
        statement = statement.where(Interaction.created_at < filters.until)
    if filters.has_feedback is not None:
        judged = exists().where(Feedback.interaction_id == Interaction.id)
        statement = statement.where(judged if filters.has_feedback else ~judged)
    if filters.text is not None:
        statement = statement.where(_says(filters.text))
    return statement


def _says(text: str) -> Any:
    """Messages are JSON, so what is looked for in them is written likewise.

    The message is a scalar looked up row by row: for an EXISTS, PostgreSQL would rather search all
    messages there are, however few rows are left to judge.
    """
    in_json = privacy.inside_json(text)
    last = select(Message.content.cast(SqlText)).where(Message.id == Interaction.last_message_id)
    in_prompt = last.scalar_subquery().icontains(in_json, autoescape=True)
    return or_(Interaction.reply.icontains(text, autoescape=True), in_prompt)
