"""What live replies say of a version, read stretch by stretch into comparisons for the judge."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from server.core.settings import RolloutSettings
from server.db import (
    Adapter,
    Arm,
    Interaction,
    Trial,
    TrialMode,
)
from server.services import judge, registry, signals
from server.services.judge import Comparison, Pair
from server.services.signals import FAILED, FEEDBACK, MALFORMED, SIGNALS, SLOW, Pace, Reply

BASELINE = 500
"""Replies of before a trial or a promotion that the champion is known by."""
STRETCH = 1000
"""Replies that one look reads. When there are more, the evidence of these is folded up and kept, and
the next look goes on behind them, so that a look costs the same however long a trial runs."""
SETTLE_S = 60
"""Only what is older is folded up: by then a reply has come to its end and into the database."""

_MOST_STRETCHES = 5
"""Stretches of one look, so that a judge who is behind catches up."""

# The copies of a shadow trial run after the users' requests and behind them, so their times say
# nothing of the version; and no user sees them, so nobody judges them.
_SHADOW_SIGNALS = (FAILED, MALFORMED)

TIMELESS_SIGNALS = (FAILED, MALFORMED, FEEDBACK)
"""What can be told where times cannot be compared: replies of before and after a moment met another
load. And any adapter costs the engine time that the bare base does not need, up to twice as much,
whatever it has learnt."""


class Evidence:
    """Reads the replies of a trial, stretch by stretch, into comparisons."""

    def __init__(
        self, session: Session, adapter: Adapter, trial: Trial, config: RolloutSettings
    ) -> None:
        self._session, self._adapter, self._trial, self._config = session, adapter, trial, config
        self._names = self._signals()
        self._kept: dict[str, Any] = dict(trial.evidence.get("kept") or {})
        pace = trial.evidence.get("pace")
        self._pace: Pace | None = Pace(*pace) if pace else None
        self._slow_after: str = trial.evidence.get("slow_after") or ""
        self._challenger = registry.name_by_id(session, adapter, trial.version_id)
        self._champion = registry.name_by_id(session, adapter, trial.champion_version_id)
        self._baseline: list[Reply] | None = None

    def read(self, now: datetime) -> tuple[int, dict[str, Comparison]]:
        """Replies of the challenger so far, and the evidence on each signal."""
        for _ in range(_MOST_STRETCHES):
            rows = self._stretch()
            replies, comparisons = self._compare(rows)
            settled = now - timedelta(seconds=SETTLE_S)
            if len(rows) < STRETCH or rows[-1].created_at > settled or self._takes_all:
                break
            self._kept = {
                "after": [rows[-1].created_at.isoformat(), rows[-1].id],
                "replies": replies,
                "signals": {name: found.to_json() for name, found in comparisons.items()},
            }
        return replies, comparisons

    def report(self, replies: int, comparisons: Mapping[str, Comparison]) -> dict[str, Any]:
        return {
            "config": self._trial.evidence["config"],
            "replies": replies,
            "pace": self._pace and astuple(self._pace),
            "slow_after": self._slow_after,
            "signals": {name: found.report() for name, found in comparisons.items()},
            "kept": self._kept,
        }

    def _signals(self) -> Sequence[str]:
        if self._trial.mode == TrialMode.SHADOW:
            return _SHADOW_SIGNALS
        if self._takes_all or self._trial.champion_version_id is None:
            return TIMELESS_SIGNALS
        return SIGNALS

    @property
    def _takes_all(self) -> bool:
        """A canary of all requests leaves none to the champion to be compared with meanwhile."""
        return self._trial.mode == TrialMode.CANARY and self._trial.share >= 100

    def _stretch(self) -> list[Reply]:
        """Canary: both arms' replies in time order. Shadow: the copies'."""
        statement = signals.interactions_of(self._adapter.name).limit(STRETCH)
        if self._kept:
            moment, last = datetime.fromisoformat(self._kept["after"][0]), self._kept["after"][1]
            statement = statement.where(
                Interaction.created_at >= moment,
                or_(Interaction.created_at > moment, Interaction.id > last),
            )
        else:
            statement = statement.where(Interaction.created_at >= self._trial.created_at)
        if self._trial.mode == TrialMode.SHADOW:
            statement = statement.where(
                Interaction.shadow_of.is_not(None), Interaction.version == self._challenger
            )
        else:
            challenger = (Interaction.arm == Arm.CHALLENGER) & (
                Interaction.version == self._challenger
            )
            champion = (Interaction.arm == Arm.CHAMPION) & (Interaction.version == self._champion)
            statement = statement.where(or_(challenger, champion))
        return signals.read(self._session, statement)

    def _compare(self, rows: Sequence[Reply]) -> tuple[int, dict[str, Comparison]]:
        kept = self._kept.get("signals", {})
        comparisons = {
            name: Comparison.from_json(kept[name])
            if name in kept
            else Comparison(margin_of(self._config, name), self._config.alpha)
            for name in self._names
        }
        challengers = [row for row in rows if row.arm != Arm.CHAMPION]
        if self._trial.mode == TrialMode.SHADOW:
            found = self._beside_originals(challengers)
        elif self._takes_all:
            found = paired_in_turn(challengers, self._before(), self._names)
        else:
            if SLOW in self._names:
                self._learn_what_is_slow(rows)
            found = self._beside_each_other(rows)
        for name, pairs in found.items():
            for pair in pairs:
                comparisons[name].take(pair)
        replies = sum(row.failed is not None for row in challengers)
        return int(self._kept.get("replies", 0)) + replies, comparisons

    def _beside_each_other(self, rows: Sequence[Reply]) -> dict[str, list[Pair]]:
        return {
            name: judge.in_time(
                [
                    (row.arm == Arm.CHALLENGER, value)
                    for row in rows
                    if (value := self._value(row, name)) is not None
                ]
            )
            for name in self._names
        }

    def _beside_originals(self, copies: Sequence[Reply]) -> dict[str, list[Pair]]:
        ids = [copy.shadow_of for copy in copies]
        statement = select(Interaction).where(Interaction.id.in_(ids))
        originals = {row.id: row for row in signals.read(self._session, statement)}
        found: dict[str, list[Pair]] = {name: [] for name in self._names}
        for copy in copies:
            original = originals.get(copy.shadow_of or "")
            if original is None:
                continue
            for name in self._names:
                ours, theirs = self._value(copy, name), self._value(original, name)
                if ours is not None and theirs is not None:
                    found[name].append(Pair(ours, theirs))
        return found

    def _value(self, row: Reply, name: str) -> float | None:
        if name == SLOW and row.id <= self._slow_after:
            return None  # the pace was made from these
        return row.value(name, self._pace)

    def _learn_what_is_slow(self, rows: Sequence[Reply]) -> None:
        """From the champion's replies of before; where they are few, from its first ones since."""
        if self._pace is not None:
            return
        before = [row for row in self._before() if row.took is not None]
        if len(before) >= self._config.min_requests:
            self._pace = signals.pace_of(before)
            return
        since = [row for row in rows if row.arm == Arm.CHAMPION and row.took is not None]
        if len(since) >= self._config.min_requests:
            first = since[: self._config.min_requests]
            self._pace = signals.pace_of(first)
            self._slow_after = first[-1].id

    def _before(self) -> list[Reply]:
        if self._baseline is None:
            self._baseline = baseline(
                self._session, self._adapter, self._champion, self._trial.created_at
            )
        return self._baseline


def baseline(
    session: Session, adapter: Adapter, version_name: str, before: datetime
) -> list[Reply]:
    """The last :data:`BASELINE` replies of a version as champion before a moment, newest first.

    What is asked changes with the hours: the first new replies are held against the last old ones.
    """
    statement = (
        signals.interactions_of(adapter.name)
        .where(
            Interaction.created_at < before,
            Interaction.version == version_name,
            or_(Interaction.arm.is_(None), Interaction.arm == Arm.CHAMPION),
        )
        .order_by(None)
        .order_by(Interaction.created_at.desc(), Interaction.id.desc())
        .limit(BASELINE)
    )
    return signals.read(session, statement)


def paired_in_turn(
    challengers: Sequence[Reply], champions: Sequence[Reply], names: Sequence[str]
) -> dict[str, list[Pair]]:
    """Each reply with one of before, signal by signal; those that say nothing of it are left out."""

    def values(replies: Sequence[Reply], name: str) -> list[float]:
        said = (reply.value(name, None) for reply in replies)
        return [value for value in said if value is not None]

    return {
        name: judge.in_turn(values(challengers, name), values(champions, name)) for name in names
    }


def margin_of(config: RolloutSettings, signal: str) -> float:
    """The rise of a signal that is still accepted."""
    return {
        FAILED: config.error_margin,
        SLOW: config.latency_margin,
        MALFORMED: config.format_margin,
        FEEDBACK: config.feedback_margin,
    }[signal]
