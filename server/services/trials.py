"""Trials: a version of a line beside its champion, on live traffic or in a person's hands.

A trial is started by a run whose exam went well, or by an admin. While it runs in ``shadow`` or
``canary``, the alias ``challenger`` points at its version, which keeps that version loaded. The
judge looks at it every few seconds (:func:`look`) and what follows is done in one transaction
(:func:`settle`): the champion moves, the trial waits for a person, or it is over.

Not covered: feedback that comes later than :data:`SETTLE_S` after its reply on a line so busy that
evidence is folded up (see :data:`STRETCH`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from server.core.clock import new_id, utc_now
from server.core.errors import (
    AlreadyChampion,
    InvalidRequest,
    NoTrialWaits,
    TrialOpen,
    VersionNotServable,
)
from server.core.settings import RolloutSettings
from server.db import (
    Adapter,
    AdapterVersion,
    Alias,
    Arm,
    Interaction,
    Trial,
    TrialMode,
    TrialState,
    VersionStatus,
)
from server.engine.routing import CHALLENGER, why_not
from server.services import judge, promotion, registry, signals
from server.services.judge import Comparison, Pair, Rules, Verdict
from server.services.messages import insert_missing
from server.services.signals import FAILED, FEEDBACK, MALFORMED, SIGNALS, SLOW, Pace, Reply

JUDGE = "judge"
"""The actor of what the judge does."""

LOOK_EVERY = timedelta(seconds=5)
BASELINE = 500
"""Replies of before a trial or a promotion that the champion is known by."""
STRETCH = 1000
"""Replies that one look reads. When there are more, the evidence of these is folded up and kept, and
the next look goes on behind them, so that a look costs the same however long a trial runs."""
SETTLE_S = 60
"""Only what is older is folded up: by then a reply has come to its end and into the database."""

_MOST_STRETCHES = 5
"""Stretches of one look, so that a judge who is behind catches up."""
_OPEN = (TrialState.RUNNING, TrialState.WAITING)
_LIVE = (TrialMode.SHADOW, TrialMode.CANARY)

# The copies of a shadow trial run after the users' requests and behind them, so their times say
# nothing of the version; and no user sees them, so nobody judges them.
_SHADOW_SIGNALS = (FAILED, MALFORMED)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at a trial has found, for :func:`settle`."""

    verdict: Verdict
    reason: str
    evidence: dict[str, Any]
    is_judged: bool = True
    """False where no evidence decides, but that the trial has lost its ground or its time."""


def config_of(adapter: Adapter, defaults: RolloutSettings) -> RolloutSettings:
    """How a line's versions come to serve: its own values, and the settings' for the rest."""
    return defaults.model_copy(update=_known(adapter.rollout or {}))


def set_rollout(
    session: Session, adapter: Adapter, values: Mapping[str, Any] | None, defaults: RolloutSettings
) -> None:
    """Give a line its own values of the settings ``rollout``; None takes them all back.

    Raises:
        InvalidRequest: an unknown name or a value out of range; names the field.
    """
    if values is None:
        adapter.rollout = None
        return
    try:
        whole = RolloutSettings.model_validate({**defaults.model_dump(), **values})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(["rollout", *map(str, first["loc"])])
        raise InvalidRequest(f"{name}: {first['msg']}.", name) from error
    adapter.rollout = {name: getattr(whole, name) for name in values}


def open_trial_of(session: Session, adapter: Adapter) -> Trial | None:
    """The trial that runs or waits; there is one at most."""
    return session.scalars(
        select(Trial).where(Trial.adapter_id == adapter.id, Trial.state.in_(_OPEN))
    ).one_or_none()


def assert_none_open(session: Session, adapter: Adapter) -> None:
    """For those who have work to do before they start one.

    Raises:
        TrialOpen: the line has a trial already.
    """
    if (trial := open_trial_of(session, adapter)) is not None:
        raise _trial_open(session, adapter, trial)


def trials_of(session: Session, adapter: Adapter, *, limit: int = 50) -> Sequence[Trial]:
    """Newest first."""
    return session.scalars(
        select(Trial)
        .where(Trial.adapter_id == adapter.id)
        .order_by(Trial.created_at.desc(), Trial.id.desc())
        .limit(limit)
    ).all()


def challenger_of(
    session: Session, adapter: Adapter, wanted: str | int, *, force: bool = False
) -> AdapterVersion:
    """The version that an admin wants to try.

    Args:
        force: take one that failed its exam, too.

    Raises:
        InvalidRequest, RowNotFound: no such version, or the base model, which is no challenger.
        VersionNotServable: it is retired, its exam is open, or it failed it and is not forced.
        AlreadyChampion: it serves already.
    """
    version = registry.get_version(session, adapter, wanted)
    if version is None:
        raise InvalidRequest(
            f"{adapter.name}@base needs no trial; promote it: "
            f"`everlearn promote {adapter.name} --to base`.",
            "version",
        )
    may_try = {VersionStatus.SERVABLE, VersionStatus.UNPROVEN}
    if force:
        may_try.add(VersionStatus.REJECTED)
    if version.status not in may_try:
        raise VersionNotServable(
            adapter.name, version.number, why_not(version.status, version.retire_reason)
        )
    champion = promotion.champion(session, adapter)
    if champion is not None and champion.id == version.id:
        raise AlreadyChampion(registry.version_name(adapter.name, version.number))
    return version


def start(
    session: Session,
    adapter: Adapter,
    version: AdapterVersion,
    *,
    mode: str,
    share: float,
    actor: str,
    reason: str,
    config: RolloutSettings,
) -> Trial:
    """Put a version beside the champion; ``config`` holds for this trial to its end.

    Args:
        mode: a :class:`server.db.TrialMode`; ``hold`` waits for a person from the start.
        share: percent of the requests, above 0.

    Raises:
        InvalidRequest: a mode or a share that there is not; names the field.
        TrialOpen: the line has a trial already.
    """
    if mode not in tuple(TrialMode):
        raise InvalidRequest(f"mode must be shadow or canary, not {mode!r}.", "mode")
    if not 0 < share <= 100:
        raise InvalidRequest(
            f"share is percent of the requests, above 0 and at most 100, not {share:g}.", "share"
        )
    is_live = mode in _LIVE
    champion = promotion.champion(session, adapter)
    row = {
        "id": new_id("tri"),
        "created_at": utc_now(),
        "adapter_id": adapter.id,
        "version_id": version.id,
        "champion_version_id": champion.id if champion else None,
        "mode": mode,
        "state": TrialState.RUNNING if is_live else TrialState.WAITING,
        "share": share,
        "salt": new_id("salt"),
        "started_by": actor,
        "reason": reason,
        "evidence": {"config": config.model_dump()},
    }
    insert_missing(session, Trial, [row])
    trial = open_trial_of(session, adapter)
    if trial is None or trial.id != row["id"]:
        raise _trial_open(session, adapter, trial)
    if is_live:
        session.add(
            Alias(id=new_id("ali"), adapter_id=adapter.id, name=CHALLENGER, version_id=version.id)
        )
    session.flush()
    registry.touch(session, adapter.id)
    return trial


def roll_out(
    session: Session,
    adapter: Adapter,
    version: AdapterVersion,
    *,
    config: RolloutSettings,
    actor: str,
    reason: str,
) -> None:
    """What follows a passed exam: the champion moves, or the version's trial begins.

    A trial of an older version ends: what is on trial is the newest that passed.
    """
    if (older := open_trial_of(session, adapter)) is not None:
        abort(session, older, actor=actor, reason=f"superseded by v{version.number}")
    if config.mode == "direct" and not config.needs_approval:
        move = promotion.plan_promotion(session, adapter, version.number)
        promotion.apply_move(session, adapter, move, actor=actor, reason=reason)
        return
    mode = TrialMode.HOLD if config.mode == "direct" else TrialMode(config.mode)
    start(
        session,
        adapter,
        version,
        mode=mode,
        share=config.share,
        actor=actor,
        reason=reason,
        config=config,
    )


def abort(session: Session, trial: Trial, *, actor: str, reason: str) -> bool:
    """End a trial without a promotion; the version keeps its status. False when it was over."""
    return _close(session, trial, TrialState.ABORTED, actor=actor, reason=reason)


def approve(session: Session, trial: Trial, *, actor: str, reason: str) -> None:
    """A person's yes: the champion moves to the version that waits.

    Raises:
        NoTrialWaits: it runs still, or is over.
        VersionNotServable, AliasMoved: see :mod:`server.services.promotion`.
    """
    adapter = session.get_one(Adapter, trial.adapter_id)
    promotion.lock_champion(session, adapter)  # before the trial, as whoever retires does
    session.refresh(trial, with_for_update=True)
    if trial.state != TrialState.WAITING:
        raise NoTrialWaits(adapter.name, _what_there_is(session, adapter, trial))
    _promote(session, adapter, trial, actor=actor, reason=reason)


def waiting_trial_of(session: Session, adapter: Adapter) -> Trial:
    """The trial that waits for a person.

    Raises:
        NoTrialWaits: there is none.
    """
    trial = open_trial_of(session, adapter)
    if trial is None or trial.state != TrialState.WAITING:
        raise NoTrialWaits(adapter.name, _what_there_is(session, adapter, trial))
    return trial


def due(session: Session, now: datetime) -> Sequence[Trial]:
    """Open trials that have not been looked at for a while."""
    return session.scalars(
        select(Trial)
        .where(
            Trial.state.in_(_OPEN),
            or_(Trial.judged_at.is_(None), Trial.judged_at <= now - LOOK_EVERY),
        )
        .order_by(Trial.created_at)
    ).all()


def look(session: Session, trial: Trial, now: datetime) -> Finding:
    """What the replies so far say of a trial. Reads only."""
    adapter = session.get_one(Adapter, trial.adapter_id)
    if (lost := _lost_ground(session, adapter, trial)) is not None:
        return Finding(Verdict.ABORT, lost, dict(trial.evidence), is_judged=False)
    if trial.state == TrialState.WAITING:
        return Finding(Verdict.CONTINUE, "waits for a person", dict(trial.evidence))
    config = _config(trial)
    evidence = _Evidence(session, adapter, trial, config)
    replies, comparisons = evidence.read(now)
    rules = Rules(config.alpha, config.min_requests, frozenset(comparisons) - {FEEDBACK})
    verdict, reason = judge.decide(comparisons, replies=replies, rules=rules)
    found = evidence.report(replies, comparisons) | {"verdict": verdict, "reason": reason}
    if verdict is Verdict.CONTINUE and now - trial.created_at > timedelta(hours=config.max_hours):
        late = f"no verdict within {config.max_hours:g} hours ({reason})"
        return Finding(Verdict.ABORT, late, found, is_judged=False)
    return Finding(verdict, reason, found)


def settle(session: Session, trial: Trial, finding: Finding, now: datetime) -> TrialState:
    """Do what a finding asks for, in the caller's transaction; the state the trial is in then.

    Raises:
        AliasMoved: somebody moved the champion meanwhile; look again.
    """
    adapter = session.get_one(Adapter, trial.adapter_id)
    promotion.lock_champion(session, adapter)  # before the trial, as whoever retires does
    session.refresh(trial, with_for_update=True)
    if trial.state not in _OPEN:
        return TrialState(trial.state)
    trial.evidence = finding.evidence
    trial.judged_at = now
    session.flush()
    if finding.verdict is Verdict.CONTINUE:
        return TrialState(trial.state)
    needs_approval = _config(trial).needs_approval
    if finding.verdict is Verdict.PROMOTE:
        _admit(session, trial)
        if needs_approval:
            return _wait(session, trial, finding.reason)
        _promote(session, adapter, trial, actor=JUDGE, reason=finding.reason)
        return TrialState.PROMOTED
    if finding.is_judged:
        _close(session, trial, TrialState.ABORTED, actor=JUDGE, reason=finding.reason)
        version = registry.by_id(session, trial.version_id)
        if version.status != VersionStatus.RETIRED:
            registry.set_status(session, version, VersionStatus.REJECTED)
        return TrialState.ABORTED
    if _is_champion(session, adapter, trial):
        _close(session, trial, TrialState.PROMOTED, actor=JUDGE, reason=finding.reason)
        return TrialState.PROMOTED
    if needs_approval and _lost_ground(session, adapter, trial) is None:
        return _wait(session, trial, finding.reason)
    abort(session, trial, actor=JUDGE, reason=finding.reason)
    return TrialState.ABORTED


class _Evidence:
    """Reads the replies of a trial, stretch by stretch, into comparisons."""

    def __init__(
        self, session: Session, adapter: Adapter, trial: Trial, config: RolloutSettings
    ) -> None:
        self._session, self._adapter, self._trial, self._config = session, adapter, trial, config
        self._names = SIGNALS if trial.mode == TrialMode.CANARY else _SHADOW_SIGNALS
        self._kept: dict[str, Any] = dict(trial.evidence.get("kept") or {})
        pace = trial.evidence.get("pace")
        self._pace: Pace | None = Pace(*pace) if pace else None
        self._slow_after: str = trial.evidence.get("slow_after") or ""
        self._challenger = _version_name(session, adapter, trial.version_id)
        self._champion = _version_name(session, adapter, trial.champion_version_id)
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
            self._learn_what_is_slow(rows)
            found = self._beside_baseline(challengers)
        else:
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

    def _beside_baseline(self, challengers: Sequence[Reply]) -> dict[str, list[Pair]]:
        return paired_in_turn(challengers, self._before(), self._names, self._pace)

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
    """The last :data:`BASELINE` replies of a version as champion before a moment, oldest first."""
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
    return signals.read(session, statement)[::-1]


def paired_in_turn(
    challengers: Sequence[Reply],
    champions: Sequence[Reply],
    names: Sequence[str],
    pace: Pace | None,
) -> dict[str, list[Pair]]:
    """Each reply with one of before, signal by signal; those that say nothing of it are left out."""

    def values(replies: Sequence[Reply], name: str) -> list[float]:
        said = (reply.value(name, pace) for reply in replies)
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


def _config(trial: Trial) -> RolloutSettings:
    return RolloutSettings.model_validate(_known(trial.evidence["config"]))


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a later or an earlier version of this server called a setting."""
    return {name: value for name, value in values.items() if name in RolloutSettings.model_fields}


def _lost_ground(session: Session, adapter: Adapter, trial: Trial) -> str | None:
    """Why there is nothing left to compare, in words."""
    version = registry.by_id(session, trial.version_id)
    if version.status == VersionStatus.RETIRED:
        return f"v{version.number} was retired"
    if _is_champion(session, adapter, trial):
        return f"v{version.number} was promoted meanwhile"
    champion = promotion.champion(session, adapter)
    if (champion.id if champion else None) != trial.champion_version_id:
        now = registry.version_name(adapter.name, champion.number if champion else None)
        return f"the champion moved to {now} meanwhile"
    return None


def _is_champion(session: Session, adapter: Adapter, trial: Trial) -> bool:
    champion = promotion.champion(session, adapter)
    return champion is not None and champion.id == trial.version_id


def _admit(session: Session, trial: Trial) -> None:
    """Who passes a trial may serve, also one that never sat an exam."""
    version = registry.by_id(session, trial.version_id)
    if version.status in (VersionStatus.UNPROVEN, VersionStatus.REJECTED):
        registry.set_status(session, version, VersionStatus.SERVABLE)
        session.flush()


def _promote(session: Session, adapter: Adapter, trial: Trial, *, actor: str, reason: str) -> None:
    _admit(session, trial)
    version = registry.by_id(session, trial.version_id)
    move = promotion.plan_promotion(session, adapter, version.number)
    if _close(session, trial, TrialState.PROMOTED, actor=actor, reason=reason):
        promotion.apply_move(session, adapter, move, actor=actor, reason=reason)


def _wait(session: Session, trial: Trial, reason: str) -> TrialState:
    """Live traffic ends; the version stays loaded until a person has decided."""
    trial.state = TrialState.WAITING
    trial.outcome = reason
    session.flush()
    registry.touch(session, trial.adapter_id)
    return TrialState.WAITING


def _close(session: Session, trial: Trial, state: TrialState, *, actor: str, reason: str) -> bool:
    """End a trial unless somebody else has; whoever ends it takes the alias away."""
    closed = session.execute(
        update(Trial)
        .where(Trial.id == trial.id, Trial.state.in_(_OPEN))
        .values(state=state, ended_at=utc_now(), ended_by=actor, outcome=reason)
        .execution_options(synchronize_session=False)
        .returning(Trial.id)
    ).one_or_none()
    session.expire(trial)
    if closed is None:
        return False
    session.execute(
        delete(Alias).where(Alias.adapter_id == trial.adapter_id, Alias.name == CHALLENGER)
    )
    registry.touch(session, trial.adapter_id)
    return True


def _version_name(session: Session, adapter: Adapter, version_id: str | None) -> str:
    number = registry.by_id(session, version_id).number if version_id else None
    return registry.version_name(adapter.name, number)


def _trial_open(session: Session, adapter: Adapter, trial: Trial | None) -> TrialOpen:
    name = "another version" if trial is None else _version_name(session, adapter, trial.version_id)
    return TrialOpen(adapter.name, name, "just started" if trial is None else trial.mode)


def _what_there_is(session: Session, adapter: Adapter, trial: Trial | None) -> str:
    if trial is None:
        return "none is open"
    return f"{_version_name(session, adapter, trial.version_id)} is {trial.state}"
