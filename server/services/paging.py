"""Pages of rows, newest first, by a cursor that survives new and deleted rows."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from server.core.errors import InvalidRequest
from server.db.base import Row

AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True, slots=True)
class Page(Generic[AnyRow]):
    """Some rows; ``next`` is the cursor of those after them, None at the end."""

    rows: Sequence[AnyRow]
    next: str | None


def page_of(
    session: Session,
    statement: Select[AnyRow],
    table: type[AnyRow],
    *,
    after: str | None,
    limit: int,
) -> Page[AnyRow]:
    """One page of a statement without an order of its own.

    Raises:
        InvalidRequest: ``after`` is no cursor that a page gave.
    """
    if after is not None:
        moment, row_id = _decode(after)
        statement = statement.where(
            table.created_at <= moment,
            or_(table.created_at < moment, and_(table.created_at == moment, table.id < row_id)),
        )
    statement = statement.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)
    rows: Sequence[Any] = session.scalars(statement).all()
    has_more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, _encode(rows[-1]) if has_more else None)


def _encode(row: Row) -> str:
    text = f"{row.created_at.isoformat()} {row.id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        moment_text, _, row_id = text.partition(" ")
        moment = datetime.fromisoformat(moment_text)
        is_good = bool(row_id) and "\x00" not in row_id and moment.astimezone(UTC) == moment
    except (binascii.Error, ValueError, OverflowError) as error:
        raise InvalidRequest("after must be the `next` of an earlier page.", "after") from error
    if not is_good or moment.tzinfo is None:
        raise InvalidRequest("after must be the `next` of an earlier page.", "after")
    return moment, row_id
