"""Feedback: judgements on replies, kept once each, also those that come before their interaction."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.orm import Session

from server.core.clock import new_id, utc_now
from server.core.errors import Conflict, RowNotFound
from server.db import Feedback, FeedbackKind, Interaction
from server.services.keys import Principal
from server.services.messages import insert_missing
from server.services.paging import Page, page_of

PENDING_FOR = timedelta(hours=24)
"""How long feedback waits for its interaction, which may lie in a segment of a stopped gateway."""

_CLOCK_SKEW = timedelta(minutes=5)
_OUR_ID = re.compile(r"int_([0-9a-f]{32})(?![0-9a-f])")
_ENGINES_ID = re.compile(r"(?:resp|msg)_[0-9A-Za-z-]{16,80}")
"""Endpoints whose replies vLLM names by itself; a chat completion's id holds the interaction's."""

_WORDS = (FeedbackKind.CORRECTION, FeedbackKind.REFERENCE, FeedbackKind.COMMENT)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One thing that was said of one choice of a reply."""

    kind: FeedbackKind
    value: dict[str, Any]
    choice: int = 0


def give(
    session: Session,
    principal: Principal,
    target: str,
    judgements: Sequence[Judgement],
    *,
    idempotency_key: str | None = None,
) -> tuple[list[Feedback], bool]:
    """Keep judgements on one reply; True when at least one of them is new.

    The same again keeps nothing more: by its key; or, without one, where it is the last word said.
    Who comes back to an earlier opinion has changed his mind, and is heard.

    Args:
        target: the completion's id, or the interaction's.

    Raises:
        RowNotFound: no such reply, or another tenant's.
        Conflict: the idempotency key came with something else before.
    """
    interaction = _find(session, principal, target)
    if interaction is None and not _may_be_on_its_way(target):
        raise RowNotFound(
            "completion", target, "Send the `id` of a reply, or its x-everlearn-interaction."
        )
    earlier = [] if idempotency_key else _said_before(session, principal, target, interaction)
    found: list[Feedback | None] = []
    rows: list[dict[str, Any]] = []
    for judgement in judgements:
        last = _last_word(earlier, judgement)
        is_said = last is not None and (last.kind, last.value) == (judgement.kind, judgement.value)
        found.append(last if is_said else None)
        if not is_said:
            rows.append(_row(principal, target, interaction, judgement, idempotency_key, last))
    kept = _keep(session, rows)
    is_new = any(row.id == wanted["id"] for row, wanted in zip(kept, rows, strict=True))
    fresh = iter(kept)
    return [row or next(fresh) for row in found], is_new


def list_feedback(
    session: Session,
    principal: Principal,
    *,
    target: str | None = None,
    kind: FeedbackKind | None = None,
    after: str | None,
    limit: int,
) -> Page[Feedback]:
    """Newest first; a tenant sees its own.

    Args:
        target: only that on one reply, by the completion's id or the interaction's.
    """
    statement = select(Feedback)
    if principal.owner is not None:
        statement = statement.where(Feedback.owner == principal.owner)
    if kind is not None:
        statement = statement.where(Feedback.kind == kind)
    if target is not None:
        named = or_(Feedback.completion_id == target, Feedback.interaction_id == target)
        statement = statement.where(named)
    return page_of(session, statement, Feedback, after=after, limit=limit)


def feedback_of(session: Session, interaction_ids: Sequence[str]) -> dict[str, list[Feedback]]:
    """All feedback on these interactions, oldest first, by interaction."""
    found: dict[str, list[Feedback]] = {key: [] for key in interaction_ids}
    statement = (
        select(Feedback)
        .where(Feedback.interaction_id.in_(interaction_ids))
        .order_by(Feedback.created_at, Feedback.id)
    )
    for row in session.scalars(statement):
        found[row.interaction_id or ""].append(row)
    return found


def link(session: Session, interactions: Sequence[Mapping[str, Any]]) -> None:
    """Join feedback that came early to interactions that are stored now.

    What somebody gave on another tenant's reply is dropped here, as it would have been refused.

    Args:
        interactions: with at least ``id``, ``completion_id`` and ``owner``.
    """
    seen = [row for row in interactions if not row.get("shadow_of")]
    by_name = {row["id"]: row for row in seen}
    by_name |= {row["completion_id"]: row for row in seen if row["completion_id"]}
    if not by_name:
        return
    waiting = select(Feedback).where(
        Feedback.completion_id.in_(by_name), Feedback.interaction_id.is_(None)
    )
    for row in session.scalars(waiting).all():
        interaction = by_name[row.completion_id]
        if row.owner is None or row.owner == interaction["owner"]:
            row.interaction_id = interaction["id"]
            row.owner = interaction["owner"]
        else:
            session.delete(row)


def tend_waiting(session: Session, *, now: datetime, limit: int) -> int:
    """Join what came in the same moment as its interaction, drop what waited in vain.

    Returns how many rows were looked at, at most ``limit``.
    """
    rows = session.execute(
        select(Feedback.id, Interaction.id.label("found"), Interaction.completion_id)
        .add_columns(Interaction.owner)
        .join(
            Interaction,
            or_(
                Interaction.completion_id == Feedback.completion_id,
                Interaction.id == Feedback.completion_id,
            ),
        )
        .where(Feedback.interaction_id.is_(None), Interaction.shadow_of.is_(None))
        .limit(limit)
    ).all()
    link(
        session,
        [{"id": r.found, "completion_id": r.completion_id, "owner": r.owner} for r in rows],
    )
    session.flush()
    late = (
        select(Feedback.id)
        .where(Feedback.interaction_id.is_(None), Feedback.created_at < now - PENDING_FOR)
        .limit(limit)
    )
    dropped = list(session.scalars(late))
    session.execute(delete(Feedback).where(Feedback.id.in_(dropped)))
    return max(len(rows), len(dropped))


def blank(session: Session, interaction_id: str) -> None:
    """Take the words out of an interaction's feedback; scores, thumbs and preferences stay."""
    session.execute(
        update(Feedback)
        .where(Feedback.interaction_id == interaction_id, Feedback.kind.in_(_WORDS))
        .values(value={"text": ""})
    )


def _find(session: Session, principal: Principal, target: str) -> Interaction | None:
    """The interaction behind an id, whoever's it is.

    Raises:
        RowNotFound: it is another tenant's.
    """
    named = or_(Interaction.id == target, Interaction.completion_id == target)
    # Locked, so that it cannot be deleted before the feedback on it is stored.
    found = session.scalars(
        select(Interaction)
        .where(named, Interaction.shadow_of.is_(None))  # no user saw a copy's reply
        .order_by(Interaction.created_at.desc())
        .with_for_update(read=True, key_share=True)
    ).all()
    mine = [row for row in found if principal.owner is None or row.owner == principal.owner]
    if found and not mine:
        raise RowNotFound(
            "completion", target, "Send the `id` of a reply, or its x-everlearn-interaction."
        )
    return mine[0] if mine else None


def _may_be_on_its_way(target: str) -> bool:
    """Whether a reply of this name may have been sent and not yet stored.

    Our ids carry their time (UUIDv7: milliseconds in the first 48 bits), so most made-up or
    long-gone ones are told at once.
    """
    ours = _OUR_ID.search(target)
    if ours is None:
        return _ENGINES_ID.fullmatch(target) is not None
    age = utc_now().timestamp() - int(ours[1][:12], 16) / 1000
    return -_CLOCK_SKEW.total_seconds() <= age <= PENDING_FOR.total_seconds()


def _said_before(
    session: Session, principal: Principal, target: str, interaction: Interaction | None
) -> Sequence[Feedback]:
    """What was said of a reply by now, the latest first."""
    names = {target, _name_of(target), f"chatcmpl-{_name_of(target)}"}
    mine = and_(Feedback.completion_id.in_(names), Feedback.owner == principal.owner)
    of_it = mine
    if interaction is not None:
        of_it = or_(mine, Feedback.interaction_id == interaction.id)
    newest = (Feedback.created_at.desc(), Feedback.id.desc())
    return session.scalars(select(Feedback).where(of_it).order_by(*newest)).all()


def _last_word(earlier: Sequence[Feedback], judgement: Judgement) -> Feedback | None:
    """The latest of its kind on its choice; or a thumb that took back a score since, or the other
    way round."""
    liking = _liking(judgement.kind, judgement.value)
    for row in earlier:
        other = _liking(row.kind, row.value)
        is_taken_back = None not in (liking, other) and liking != other
        if row.choice == judgement.choice and (row.kind == judgement.kind or is_taken_back):
            return row
    return None


def _liking(kind: str, value: Mapping[str, Any]) -> bool | None:
    """Whether a thumb or score is for the reply; None: neither, as all other kinds are."""
    if kind == FeedbackKind.THUMB:
        return value.get("thumb") == "up"
    score = value.get("score") if kind == FeedbackKind.SCORE else None
    return score > 0 if score else None


def _keep(session: Session, rows: Sequence[dict[str, Any]]) -> list[Feedback]:
    """The rows as they are stored, those that came a moment before by another request among them.

    Raises:
        Conflict: the idempotency key came with something else before.
    """
    insert_missing(session, Feedback, rows)
    hashes = [row["idempotency_hash"] for row in rows]
    stored = {
        row.idempotency_hash: row
        for row in session.scalars(select(Feedback).where(Feedback.idempotency_hash.in_(hashes)))
    }
    for row in rows:
        if stored[row["idempotency_hash"]].value != row["value"]:
            raise Conflict("This Idempotency-Key came with other feedback before; use a new one.")
    return [stored[key] for key in hashes]


def _name_of(target: str) -> str:
    """The reply's name within either of its ids."""
    ours = _OUR_ID.search(target)
    return ours[0] if ours else target


def _row(
    principal: Principal,
    target: str,
    interaction: Interaction | None,
    judgement: Judgement,
    idempotency_key: str | None,
    after: Feedback | None,
) -> dict[str, Any]:
    """A judgement to be stored; `after` is the last word before it, so that each word counts once."""
    given = [judgement.kind, judgement.choice]
    name = _name_of(target)
    by_content = ["content", principal.owner, name, *given, judgement.value]
    by_content += [after.id] if after is not None else []
    by_key = ["key", principal.owner, idempotency_key, name, *given]
    identity = json.dumps(by_key if idempotency_key else by_content, sort_keys=True)
    return {
        "id": new_id("fbk"),
        "created_at": utc_now(),
        "completion_id": (interaction and interaction.completion_id) or target,
        "interaction_id": interaction and interaction.id,
        "owner": principal.owner if interaction is None else interaction.owner,
        "key_id": principal.id,
        "kind": judgement.kind,
        "choice": judgement.choice,
        "value": judgement.value,
        "idempotency_hash": "b2:" + hashlib.blake2b(identity.encode(), digest_size=32).hexdigest(),
    }
