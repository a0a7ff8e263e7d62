"""Interactions: store what the gateway captured."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from server.db import Interaction


def record_all(session: Session, records: Sequence[Mapping[str, Any]]) -> int:
    """Insert captured records; those already stored are passed over.

    Returns how many were new. A shipper that died between commit and clean-up sends its segment
    again, so the id decides.
    """
    by_id = {record["id"]: record for record in records}
    stored = set(session.scalars(select(Interaction.id).where(Interaction.id.in_(by_id))))
    rows = [
        {**record, "created_at": datetime.fromisoformat(record["created_at"])}
        for key, record in by_id.items()
        if key not in stored
    ]
    if rows:
        session.execute(insert(Interaction), rows)
    return len(rows)
