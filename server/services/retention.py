"""How long captured rows are kept: what is older goes, a bounded batch in each transaction."""

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.db import Interaction
from server.services import feedback, interactions, messages

BATCH = 500
"""Rows in one transaction, so that nobody waits for long."""


def delete_old(session: Session, *, keep_for: timedelta) -> int:
    """Delete the oldest interactions beyond the time given, with their messages and feedback.

    Returns how many; fewer than ``BATCH`` means that none is left.
    """
    messages.lock_for_deleting(session)
    old = (
        select(Interaction)
        .where(Interaction.created_at < utc_now() - keep_for)
        .order_by(Interaction.created_at, Interaction.id)
        .limit(BATCH)
    )
    rows = session.scalars(old).all()
    interactions.delete_rows(session, rows)
    return len(rows)


def tend_feedback(session: Session) -> int:
    """Join feedback to interactions that came later, and drop what waited in vain."""
    return feedback.tend_waiting(session, now=utc_now(), limit=BATCH)
