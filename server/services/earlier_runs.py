"""What earlier runs of a line have learnt already, for whoever chooses its next one; only reads."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, func, select
from sqlalchemy.orm import Session

from adapters.redaction import Redactor
from adapters.spec import MethodConfig
from adapters.types import JSON
from server.db import (
    AdaptationRun,
    Adapter,
    AliasEvent,
    RunEvent,
    RunInteraction,
    RunKind,
    RunStatus,
    Use,
    VersionStatus,
)
from server.engine.routing import CHAMPION
from server.services import prompt_material, registry, runs
from server.services.auto import Tried
from server.services.policy_timing import lost_its_version
from server.services.prompt_material import PROMPTS_TAKEN
from server.services.prompt_selection import Candidate

_IN_VAIN = (runs.NO_UPDATE, "reject", "inconclusive")
"""Verdicts of runs of which nothing came."""
_FOUND = ("answer", "unit-tests")
"""Types of verifiers that `auto` takes by itself, for what the prompts have."""


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


def tried_in_vain(
    session: Session,
    adapter: Adapter,
    config: MethodConfig,
    prompts: Sequence[Candidate],
    redactor: Redactor,
) -> Tried | None:
    """The last run of a method with this config, where nothing came of it and the same version serves.

    None where it came to something, or where there is none to go by. It reads what that run took,
    so it costs as much as to gather it.

    Args:
        prompts: what another run would be taught now.
    """
    last = session.scalar(
        select(AdaptationRun)
        .where(_has_learnt(adapter, config.type))
        .order_by(AdaptationRun.id.desc())
        .limit(1)
    )
    if last is None or (outcome := _in_vain(session, last)) is None:
        return None
    if _has_moved(session, last) or _settled(last.config) != _settled(
        config.model_dump(mode="json")
    ):
        return None
    had = prompt_material.keys_of(session, last, redactor=redactor)
    again = sum(each.key in had for each in prompts)
    return Tried(last.id, outcome, again=again, new=len(prompts) - again)


def _in_vain(session: Session, run: AdaptationRun) -> str | None:
    """How a run ended of which nothing came; None: something did, or may yet."""
    if run.verdict in _IN_VAIN:
        return run.verdict
    version = registry.version_of_run(session, run.id)
    is_rejected = version is not None and version.status == VersionStatus.REJECTED
    return "reject" if is_rejected else None  # by its trial


def _has_moved(session: Session, run: AdaptationRun) -> bool:
    """Whether another version serves, or has served, since a run began."""
    moved = exists().where(
        AliasEvent.adapter_id == run.adapter_id,
        AliasEvent.alias == CHAMPION,
        AliasEvent.created_at >= (run.started_at or run.created_at),
    )
    return bool(session.scalar(select(moved)))


def _settled(config: dict[str, JSON]) -> dict[str, JSON]:
    """A config without what `auto` finds out each time: the kind of answers, and who checks them."""
    named = {name: value for name, value in config.items() if name != "answer"}
    verifier = named.get("verifier")
    if isinstance(verifier, dict) and verifier.get("type") in _FOUND:
        del named["verifier"]
    return named


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
