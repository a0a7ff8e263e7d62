"""What earlier runs of a line have learnt already, for whoever chooses its next one; only reads."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from server.db import (
    AdaptationRun,
    Adapter,
    RunEvent,
    RunInteraction,
    RunKind,
    RunStatus,
    Use,
)
from server.services.policy_timing import lost_its_version
from server.services.prompt_material import PROMPTS_TAKEN


def judgements_learnt(
    session: Session, adapter: Adapter, method: str, interaction_ids: Collection[str]
) -> dict[str, datetime]:
    """When a method took last what was said of each of these replies; those that it never took are missing.

    What was said of a reply later is new.
    """
    taken = (
        select(RunInteraction.interaction_id, func.max(RunEvent.created_at))
        .join(AdaptationRun, AdaptationRun.id == RunInteraction.run_id)
        .join(RunEvent, RunEvent.run_id == AdaptationRun.id)
        .where(
            _has_learnt(adapter, method),
            RunEvent.kind == PROMPTS_TAKEN,
            RunInteraction.use.in_((Use.OPINION, Use.BOTH)),
            RunInteraction.interaction_id.in_(interaction_ids),
        )
        .group_by(RunInteraction.interaction_id)
    )
    return {row[0]: row[1] for row in session.execute(taken)}


def _has_learnt(adapter: Adapter, method: str) -> ColumnElement[bool]:
    """The condition on a run that it is the line's and went to its end, whatever came of it.

    Not one that broke, which has learnt nothing, nor one whose version a deletion has retired.
    """
    return and_(
        AdaptationRun.adapter_id == adapter.id,
        AdaptationRun.kind == RunKind.LEARN,
        AdaptationRun.method == method,
        AdaptationRun.status == RunStatus.SUCCEEDED,
        ~lost_its_version(),
    )
