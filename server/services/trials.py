"""Trials: a version of a line beside its champion, on live traffic or in a person's hands.

A trial is started by a run whose exam went well, or by an admin. While it runs in ``shadow`` or
``canary``, the alias ``challenger`` points at its version, which keeps that version loaded. The
judge looks at it every few seconds (:func:`look`) and what follows is done in one transaction
(:func:`settle`): the champion moves, the trial waits for a person, or it is over.

Not covered: feedback that comes later than ``SETTLE_S`` after its reply on a line so busy that
evidence is folded up (see :mod:`server.services.evidence`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    LineRole,
    Trial,
    TrialMode,
    TrialState,
    VersionStatus,
)
from server.engine.routing import CHALLENGER, why_not
from server.services import judge, promotion, registry
from server.services.evidence import Evidence
from server.services.judge import Rules, Verdict
from server.services.messages import insert_missing
from server.services.signals import FEEDBACK

JUDGE = "judge"
"""The actor of what the judge does."""

LOOK_EVERY = timedelta(seconds=5)
_OPEN = (TrialState.RUNNING, TrialState.WAITING)
_LIVE = (TrialMode.SHADOW, TrialMode.CANARY)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at a trial has found, for :func:`settle`."""

    verdict: Verdict
    reason: str
    evidence: dict[str, Any]
    is_judged: bool = True
    """False where no evidence decides, but that the trial has lost its ground or its time."""


def config_of(adapter: Adapter, defaults: RolloutSettings) -> RolloutSettings:
    """How a line's versions come to serve: its own values, and the settings' for the rest.

    An editor's never meet live traffic, so they serve as soon as they have passed.
    """
    if adapter.role == LineRole.EDITOR:
        return RolloutSettings()
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
        InvalidRequest: a mode or a share that there is not, or an editor, which meets no traffic;
            names the field.
        TrialOpen: the line has a trial already.
    """
    if mode not in tuple(TrialMode):
        raise InvalidRequest(f"mode must be shadow or canary, not {mode!r}.", "mode")
    if not 0 < share <= 100:
        raise InvalidRequest(
            f"share is percent of the requests, above 0 and at most 100, not {share:g}.", "share"
        )
    is_live = mode in _LIVE
    if is_live and adapter.role == LineRole.EDITOR:
        raise InvalidRequest(
            f"{adapter.name} writes self-edits and meets no traffic, so no trial of it would end; "
            "promote the version instead.",
            "mode",
        )
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
    evidence = Evidence(session, adapter, trial, config)
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


def _trial_open(session: Session, adapter: Adapter, trial: Trial | None) -> TrialOpen:
    name = (
        "another version"
        if trial is None
        else registry.name_by_id(session, adapter, trial.version_id)
    )
    return TrialOpen(adapter.name, name, "just started" if trial is None else trial.mode)


def _what_there_is(session: Session, adapter: Adapter, trial: Trial | None) -> str:
    if trial is None:
        return "none is open"
    return f"{registry.name_by_id(session, adapter, trial.version_id)} is {trial.state}"
