"""What served before: the moves of a champion, read as a pile on which promotions lie."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db import AliasEvent
from server.engine.routing import CHAMPION

PROMOTE = "promote"
ROLLBACK = "rollback"

REMEMBERED_MOVES = 200
"""How far back a rollback without a name looks; behind that there is only the base."""


def path_back(session: Session, adapter_id: str) -> list[str | None]:
    """Ids of what served before the champion, the latest first; None is the base, and the last.

    Promotions pile up and rollbacks take off, so that a second rollback goes one step further
    back instead of forth again.
    """
    newest = session.execute(
        select(AliasEvent.kind, AliasEvent.from_version_id, AliasEvent.to_version_id)
        .where(AliasEvent.adapter_id == adapter_id, AliasEvent.alias == CHAMPION)
        .order_by(AliasEvent.id.desc())
        .limit(REMEMBERED_MOVES)
    ).all()
    pile: list[str | None] = [None]
    if newest and newest[-1].from_version_id is not None:
        pile.append(newest[-1].from_version_id)
    for kind, _, to_id in reversed(newest):
        if kind == ROLLBACK and to_id in pile:
            while pile[-1] != to_id:
                pile.pop()
        else:
            pile.append(to_id)
    return pile[-2::-1]
