"""The watch: for a while after a promotion, live signals may take it back by themselves.

The replies of the new champion are compared with those that the version before it gave before the
move, one with one, by the judge's test for harm; see :mod:`server.services.judge`.

Not covered: times, since before and after meet another load; harm that begins after as many replies
as there were before the move, 500 at most.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from server.core.errors import AppError
from server.core.settings import RolloutSettings
from server.db import Adapter, AdapterVersion, AliasEvent, Arm, Interaction, VersionStatus
from server.engine.routing import CHAMPION
from server.services import evidence, judge, promotion, registry, signals, trials
from server.services.judge import Comparison

WATCH = "watch"
"""The actor of what the watch does."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A promotion that shows harm."""

    adapter_id: str
    event_id: str
    """The promotion."""
    to_number: int | None
    """What served before it; None is the base model."""
    reason: str


def alarms(session: Session, defaults: RolloutSettings, now: datetime) -> list[Alarm]:
    """Every line whose last move is a promotion of late that shows harm. Reads only."""
    found = (
        _alarm(session, adapter, trials.config_of(adapter, defaults), now)
        for adapter in registry.list_adapters(session)
    )
    return [alarm for alarm in found if alarm is not None]


def take_back(session: Session, alarm: Alarm) -> AliasEvent | None:
    """Roll the promotion back, in the caller's transaction; None where it is not to be had.

    Raises:
        AliasMoved: somebody moved the champion at this very moment.
    """
    adapter = session.get_one(Adapter, alarm.adapter_id)
    last = _last_move(session, adapter)
    if last is None or last.id != alarm.event_id:  # somebody has moved it since
        return None
    to = "base" if alarm.to_number is None else alarm.to_number
    try:
        move = promotion.plan_rollback(session, adapter, to)
    except AppError:  # retired since
        return None
    return promotion.apply_move(session, adapter, move, actor=WATCH, reason=alarm.reason)


def _alarm(
    session: Session, adapter: Adapter, config: RolloutSettings, now: datetime
) -> Alarm | None:
    event = _last_move(session, adapter)
    if (
        event is None
        or event.kind != promotion.PROMOTE
        or now - event.created_at > timedelta(seconds=config.watch_s)
    ):
        return None
    before = session.get(AdapterVersion, event.from_version_id) if event.from_version_id else None
    if before is not None and before.status != VersionStatus.SERVABLE:
        return None  # nowhere to go back to
    why = _harm(session, adapter, event, before, config)
    if why is None:
        return None
    return Alarm(adapter.id, event.id, before.number if before else None, why)


def _harm(
    session: Session,
    adapter: Adapter,
    event: AliasEvent,
    before: AdapterVersion | None,
    config: RolloutSettings,
) -> str | None:
    serving = session.get(AdapterVersion, event.to_version_id) if event.to_version_id else None
    name = registry.version_name(adapter.name, serving.number if serving else None)
    statement = (
        signals.interactions_of(adapter.name)
        .where(
            Interaction.created_at >= event.created_at,
            Interaction.version == name,
            or_(Interaction.arm.is_(None), Interaction.arm == Arm.CHAMPION),
        )
        .limit(evidence.BASELINE)
    )
    since = signals.read(session, statement)
    if not since:
        return None
    old_name = registry.version_name(adapter.name, before.number if before else None)
    old = evidence.baseline(session, adapter, old_name, event.created_at)
    names = evidence.TIMELESS_SIGNALS
    comparisons = {
        signal: Comparison(evidence.margin_of(config, signal), config.alpha) for signal in names
    }
    pairs = evidence.paired_in_turn(since, old, names)
    for signal, found in pairs.items():
        for pair in found:
            comparisons[signal].take(pair)
            if why := judge.harmful({**comparisons}, config.alpha):
                return f"{why}, of {name} against {old_name} before it"
    return None


def _last_move(session: Session, adapter: Adapter) -> AliasEvent | None:
    return session.scalars(
        select(AliasEvent)
        .where(AliasEvent.adapter_id == adapter.id, AliasEvent.alias == CHAMPION)
        .order_by(AliasEvent.id.desc())
        .limit(1)
    ).one_or_none()
