"""The messages of prompts: each stored once, under a hash of its owner, its parent and itself."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, exists, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from server.db import Base, Endpoint, Interaction, Message

JsonObject = dict[str, Any]

IDS_AT_ONCE = 1000
"""Below the number of variables that a statement may have."""

_PREFACES = frozenset({"system", "developer"})
_LOCK = 0x0E1_3E55A6E5
"""Of PostgreSQL's advisory locks: deleting waits for storing, and storing for deleting."""

_FIELDS: Mapping[str, tuple[str, ...]] = {
    Endpoint.CHAT: ("messages",),
    Endpoint.MESSAGES: ("system", "messages"),
    Endpoint.RESPONSES: ("instructions", "input"),
    Endpoint.COMPLETIONS: ("prompt",),
    Endpoint.EMBEDDINGS: ("input",),
}
"""Where each endpoint's request keeps its prompt, in reading order."""


def split_prompt(endpoint: str, request: Mapping[str, Any]) -> tuple[JsonObject, list[JsonObject]]:
    """A request without its prompt, and the prompt as messages.

    Instructions beside the messages become a system message, a bare text a user's. What is not
    made of messages stays in the request, and there are none.
    """
    fields = _FIELDS.get(endpoint, ())
    messages: list[JsonObject] = []
    for field in fields:
        value = request.get(field)
        if field in ("system", "instructions"):
            messages += [{"role": "system", "content": value}] if value else []
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            messages += value
        elif field != "messages" and value:
            messages.append({"role": "user", "content": value})
        else:
            return dict(request), []
    return {name: value for name, value in request.items() if name not in fields}, messages


def chain(
    owner: str | None, messages: Iterable[JsonObject], created_at: datetime
) -> list[JsonObject]:
    """The rows of a conversation, each naming the one before it."""
    rows: list[JsonObject] = []
    parent: str | None = None
    for message in messages:
        canonical = json.dumps([owner, parent, message], sort_keys=True, separators=(",", ":"))
        digest = hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
        rows.append(
            {
                "id": f"msg_{digest}",
                "parent_id": parent,
                "owner": owner,
                "role": _role(message)[:30],
                "content": message,
                "created_at": created_at,
            }
        )
        parent = rows[-1]["id"]
    return rows


def conversation_of(rows: Sequence[JsonObject]) -> str | None:
    """Which conversation a chain belongs to: its first message beyond the instructions.

    So users under one system prompt have conversations of their own. A prompt of nothing but
    instructions is its last message's.
    """
    if not rows:
        return None
    said: Iterable[str] = (row["id"] for row in rows if row["role"] not in _PREFACES)
    return next(iter(said), rows[-1]["id"])


def is_preface(message: JsonObject) -> bool:
    """Whether a message instructs, before anybody says anything."""
    return _role(message) in _PREFACES


def prompt_messages(session: Session, interaction: Interaction) -> list[JsonObject]:
    """The messages of an interaction's prompt, in order."""
    return prompts_of(session, [interaction])[interaction.id]


def prompts_of(
    session: Session, interactions: Sequence[Interaction]
) -> dict[str, list[JsonObject]]:
    """The prompt of each interaction by its id; rows of before have it inside the request."""
    leaves = [row.last_message_id for row in interactions if row.last_message_id]
    chains = _chains(session, leaves)
    return {
        row.id: chains.get(row.last_message_id, [])
        if row.last_message_id
        else split_prompt(row.endpoint, row.request)[1]
        for row in interactions
    }


def insert_missing(session: Session, table: type[Base], rows: Sequence[JsonObject]) -> None:
    """Insert rows of one shape; those that are there already, by any unique column, stay."""
    if rows:
        is_sqlite = session.get_bind().dialect.name == "sqlite"
        # Into the table, not the class: for a batch, the mapping of rows to objects costs more
        # than the database.
        statement = (sqlite.insert if is_sqlite else postgresql.insert)(
            table.metadata.tables[table.__tablename__]
        )
        session.execute(statement.on_conflict_do_nothing(), rows)


def store(session: Session, rows: Iterable[JsonObject]) -> None:
    """Insert those messages that are new.

    In the order of their ids, so that two transactions never wait for each other in a ring.
    """
    by_id = {row["id"]: row for row in rows}
    known: set[str] = set()
    ids = sorted(by_id)
    for part in _parts(ids):
        known |= set(session.scalars(select(Message.id).where(Message.id.in_(part))))
    insert_missing(session, Message, [by_id[key] for key in ids if key not in known])


def lock_for_storing(session: Session) -> None:
    """Until the transaction ends, no message that is found here is deleted as unreached.

    SQLite has one writer at a time and needs no lock.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock_shared(_LOCK)))


def lock_for_deleting(session: Session) -> None:
    """Wait for those who store; call it before the interactions are deleted."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def delete_unreached(
    session: Session, last_messages: Iterable[str], conversations: Iterable[str]
) -> int:
    """Delete the messages that no prompt reaches any more, from the last one upwards.

    Args:
        last_messages: where the prompts ended whose interactions are gone.
        conversations: theirs; every prompt that shares a message is of one of them, or is that
            message alone, so only those are looked at.

    Returns how many were deleted.
    """
    around = set(conversations)
    candidates = set(last_messages)
    deleted = 0
    while candidates:
        parents: set[str] = set()
        for part in _parts(sorted(candidates)):
            free = set(part) - _continued(session, part) - _reached(session, part, around)
            rows = session.execute(
                select(Message.id, Message.parent_id).where(Message.id.in_(free))
            ).all()
            session.execute(delete(Message).where(Message.id.in_(free)))
            deleted += len(rows)
            parents |= {row.parent_id for row in rows if row.parent_id}
        candidates = parents
    return deleted


def _chains(session: Session, leaves: Sequence[str]) -> dict[str, list[JsonObject]]:
    found: dict[str, list[JsonObject]] = {}
    for part in _parts(sorted(set(leaves))):
        up = (
            select(
                Message.id.label("leaf"),
                Message.content,
                Message.parent_id,
                literal(0).label("height"),
            )
            .where(Message.id.in_(part))
            .cte("up", recursive=True)
        )
        parent = aliased(Message)
        up = up.union_all(
            select(up.c.leaf, parent.content, parent.parent_id, up.c.height + 1).join(
                parent, parent.id == up.c.parent_id
            )
        )
        statement = select(up.c.leaf, up.c.content).order_by(up.c.leaf, up.c.height.desc())
        for leaf, content in session.execute(statement):
            found.setdefault(leaf, []).append(content)
    return found


def _continued(session: Session, ids: Sequence[str]) -> set[str]:
    """Those with a message after them; one is enough, for a system prompt may have a million."""
    child = aliased(Message)
    has_child = exists().where(child.parent_id == Message.id)
    return set(session.scalars(select(Message.id).where(Message.id.in_(ids), has_child)))


def _reached(session: Session, ids: Sequence[str], conversations: set[str]) -> set[str]:
    reached: set[str] = set()
    for part in _parts(sorted(conversations | set(ids))):
        ends = session.scalars(
            select(Interaction.last_message_id)
            .where(Interaction.conversation_id.in_(part), Interaction.last_message_id.in_(ids))
            .distinct()
        )
        reached |= {end for end in ends if end}
    return reached


def _role(message: JsonObject) -> str:
    """The Responses API has items without a role: tool calls and their results."""
    role = message.get("role") or message.get("type")
    return role if isinstance(role, str) else "unknown"


def _parts(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + IDS_AT_ONCE] for start in range(0, len(ids), IDS_AT_ONCE))
