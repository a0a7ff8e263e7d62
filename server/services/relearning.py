"""One line on its way to a version that has not seen what was deleted.

What follows from a deletion, step by step; :mod:`server.services.deletions` says when.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.errors import NothingToRollBack
from server.core.queue import Queue
from server.core.settings import LearningSettings
from server.db import (
    AdaptationPolicy,
    AdaptationRun,
    Adapter,
    AdapterVersion,
    AliasEvent,
    Deletion,
    DeletionKind,
    DeletionState,
    LineRole,
    RunKind,
    RunStatus,
    Trial,
    TrialState,
    VersionStatus,
)
from server.engine.routing import CHAMPION
from server.services import (
    audit,
    policies,
    policy_timing,
    promotion,
    registry,
    retirement,
    runs,
    taint,
)
from server.services.keys import Principal
from server.services.promotion import Move


@dataclass(frozen=True, slots=True)
class Orders:
    """What it takes to queue a run."""

    queue: Queue
    learning: LearningSettings


def is_broken_off(run: AdaptationRun, deletion: Deletion) -> bool:
    """Whether a run that learns is being stopped, or was, because of the deletion."""
    if run.kind != RunKind.LEARN:
        return False
    if run.finished_at is None:
        return True
    return run.status != RunStatus.SUCCEEDED and run.finished_at >= deletion.created_at


class LineWithout:
    """One line on its way to a version that has not seen what was deleted."""

    def __init__(
        self,
        session: Session,
        deletion: Deletion,
        adapter: Adapter,
        *,
        tainted: Sequence[AdapterVersion],
        is_broken_off: bool,
        orders: Orders,
    ) -> None:
        self._session, self._deletion, self._adapter = session, deletion, adapter
        self._tainted = tainted
        self._is_broken_off = is_broken_off
        """Whether a run of the line had taken it and was stopped."""
        self._orders = orders

    def advance(self) -> str | None:
        """Why it is stuck; the empty word when there is nothing more to do; None when it moves."""
        serving = promotion.champion(self._session, self._adapter)
        if serving is None or serving not in self._tainted:
            return self._leave_behind(serving)
        if self._deletion.state != DeletionState.REBUILDING:
            return self._deletion.reason
        return self._make_anew()

    def _leave_behind(self, serving: AdapterVersion | None) -> str | None:
        """What serves has not seen it: retire what has, and learn on where a run was broken off."""
        live = [one for one in self._tainted if one.status != VersionStatus.RETIRED]
        closed = [one for one in live if one.status != VersionStatus.CANDIDATE]
        if closed:
            self._note_how_it_came(serving)
            self._retire(closed)
        if len(closed) < len(live):
            return None  # a run is still being cancelled
        is_rebuilding = self._deletion.state == DeletionState.REBUILDING
        if is_rebuilding and self._is_broken_off and self._adapter.role == LineRole.SERVE:
            return self._learn_on()
        return ""

    def _learn_on(self) -> str | None:
        """What is left of the material of a run that was stopped is learnt by another."""
        if self._recorded() is not None:
            return ""
        run = runs.open_run_of(self._session, self._adapter)
        if run is not None and not self._counts(run):
            return None
        if run is None and not runs.has_material(self._session, self._adapter):
            return ""
        self._queue()
        return ""

    def _make_anew(self) -> str | None:
        if self._adapter.role == LineRole.EDITOR:
            # The base writes self-edits as well; the next editor is due when edits have come.
            self._go_back_to_base()
            return None
        run = runs.open_run_of(self._session, self._adapter)
        if run is not None:
            if self._counts(run) and run.id not in self._deletion.run_ids:
                self._count(run, is_new=False)
            return None
        last = self._recorded()
        if last is None or taint.deletion_seen_by(self._session, last.id) is not None:
            if runs.has_material(self._session, self._adapter):
                self._queue()
            else:
                self._go_back_to_base()
            return None
        if self._is_on_trial(last):
            return None
        version = registry.version_of_run(self._session, last.id)
        made = registry.version_name(self._adapter.name, version.number) if version else "nothing"
        verdict = f", verdict {last.verdict}" if last.verdict else ""
        return (
            f"{self._adapter.name}: run {last.id} {last.status}{verdict} and made {made}; a version "
            "that has seen it serves still. Promote another with force, roll back to the base, or "
            "order the rebuild again."
        )

    def _counts(self, run: AdaptationRun) -> bool:
        """Whether an open run does without what was deleted, and makes a version to serve."""
        has_seen = taint.deletion_seen_by(self._session, run.id) is not None
        is_learning = run.kind == RunKind.LEARN and run.method != runs.HEAL  # that builds on it
        return is_learning and not has_seen and run.cancel_requested_at is None

    def _recorded(self) -> AdaptationRun | None:
        """The last run of this line that was queued for the deletion."""
        return self._session.scalar(
            select(AdaptationRun)
            .where(
                AdaptationRun.id.in_(self._deletion.run_ids),
                AdaptationRun.adapter_id == self._adapter.id,
            )
            .order_by(AdaptationRun.id.desc())
            .limit(1)
            .execution_options(populate_existing=True)
        )

    def _queue(self) -> None:
        policy = self._session.scalar(
            select(AdaptationPolicy)
            .where(
                AdaptationPolicy.adapter_id == self._adapter.id,
                AdaptationPolicy.is_enabled,
                AdaptationPolicy.trigger == policy_timing.NEW_DOCUMENTS,
            )
            .order_by(AdaptationPolicy.id)
            .limit(1)
        )
        config = policies.resolved_config(policy, self._orders.learning)
        run, is_new = runs.queue_run(
            self._session,
            self._adapter,
            method=config.type,
            config=config.model_dump(mode="json"),
            requested_by=f"deletion:{self._deletion.id}",
            queue=self._orders.queue,
        )
        self._count(run, is_new=is_new)

    def _count(self, run: AdaptationRun, *, is_new: bool) -> None:
        self._deletion.run_ids = [*self._deletion.run_ids, run.id]
        detail = {"adapter": self._adapter.name, "queued": is_new}
        record(self._session, audit.SERVER, "run.start", run.id, self._deletion, detail)

    def _go_back_to_base(self) -> None:
        """Nothing is left to learn, so the base serves again."""
        try:
            move = promotion.plan_rollback(self._session, self._adapter, "base")
        except NothingToRollBack:
            return
        reason = f"Nothing is left to learn after {_what(self._deletion)} was deleted."
        self._move(move, reason)
        self._retire([one for one in self._tainted if one.status != VersionStatus.CANDIDATE])

    def _move(self, move: Move, reason: str) -> None:
        event = promotion.apply_move(
            self._session, self._adapter, move, actor=_actor(self._deletion), reason=reason
        )
        self._record_move(event)

    def _note_how_it_came(self, serving: AdapterVersion | None) -> None:
        """Put the move that replaced the last tainted champion into the chain, once."""
        event = self._session.scalar(
            select(AliasEvent)
            .where(
                AliasEvent.adapter_id == self._adapter.id,
                AliasEvent.alias == CHAMPION,
                AliasEvent.created_at >= self._deletion.created_at,
                AliasEvent.to_version_id.is_not_distinct_from(serving.id if serving else None),
            )
            .order_by(AliasEvent.id.desc())
            .limit(1)
        )
        if event is not None:
            self._record_move(event)

    def _record_move(self, event: AliasEvent) -> None:
        name = self._adapter.name
        detail = {
            "from": registry.name_by_id(self._session, self._adapter, event.from_version_id),
            "to": registry.name_by_id(self._session, self._adapter, event.to_version_id),
            "by": event.actor,
            "event": event.id,
        }
        action = f"adapter.{event.kind}"
        record(self._session, audit.SERVER, action, name, self._deletion, detail)

    def _retire(self, versions: Iterable[AdapterVersion]) -> None:
        # Whoever asks for the version reads this, so it names nothing of what was deleted.
        reason = f"It was trained on something that was deleted since ({self._deletion.id})."
        for version in versions:
            if retirement.retire(
                self._session,
                self._adapter,
                version,
                actor=_actor(self._deletion),
                reason=reason,
            ):
                name = registry.version_name(self._adapter.name, version.number)
                record(self._session, audit.SERVER, "version.retire", name, self._deletion)

    def _is_on_trial(self, run: AdaptationRun) -> bool:
        version = registry.version_of_run(self._session, run.id)
        if version is None:
            return False
        trial = select(Trial.id).where(
            Trial.version_id == version.id,
            Trial.state.in_((TrialState.RUNNING, TrialState.WAITING)),
        )
        return self._session.scalar(trial) is not None


def record(
    session: Session,
    principal: Principal,
    action: str,
    target: str,
    deletion: Deletion,
    detail: Mapping[str, object] | None = None,
    request_id: str | None = None,
) -> None:
    """An audit event that names the deletion, so that the chain can be read as one."""
    audit.record(
        session,
        principal,
        action,
        target,
        {**(detail or {}), "deletion": deletion.id},
        request_id,
        owner=deletion.owner,
    )


def _actor(deletion: Deletion) -> str:
    return f"deletion:{deletion.id}"


def _what(deletion: Deletion) -> str:
    if deletion.kind == DeletionKind.TENANT:
        return f"the data of tenant {deletion.target}"
    return f"{deletion.kind} {deletion.target}"
