"""Forgetting: a tombstone at once, and then, step by step, every version that has seen it.

A deletion is a row that says what was deleted and how far forgetting it has come. The act itself
(:func:`forget_document` and its like) is one transaction; what follows from it is done by
:func:`advance`, as far as it goes at that moment, as often as it is called, and by the worker,
which removes files. Nothing is remembered but the row, so a restart loses nothing.

Steps of one transaction each: whoever deletes a document holds its lock, and whoever ends a run
holds the run's and then wants its documents'.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from server.core.clock import new_id, utc_now
from server.core.errors import NothingToRollBack, RowNotFound, RunNotCancellable
from server.core.queue import Queue
from server.core.settings import LearningSettings
from server.db import (
    AdaptationPolicy,
    AdaptationRun,
    Adapter,
    AdapterVersion,
    AliasEvent,
    ApiKey,
    Deletion,
    DeletionKind,
    DeletionState,
    Document,
    Feedback,
    Gateway,
    Interaction,
    RunKind,
    RunStatus,
    Trial,
    TrialState,
    VersionStatus,
)
from server.engine.routing import CHAMPION
from server.services import (
    audit,
    documents,
    interactions,
    messages,
    policies,
    promotion,
    registry,
    retirement,
    runs,
    taint,
)
from server.services.keys import Principal
from server.services.paging import Page, page_of
from server.services.promotion import Move
from server.services.tenants import only, owner_for, sees

DOCUMENTS_AT_ONCE = 100
INTERACTIONS_AT_ONCE = 500
"""Rows of a tenant in one transaction, so that nobody waits for long."""

AT_ONCE = 50
"""Deletions of a state that one tick looks at."""

LATE_ARRIVALS = timedelta(seconds=10)
"""A tenant's deletion is open for at least this long: what its gateways had not shipped yet."""

GATEWAY_ALIVE_FOR = timedelta(seconds=60)
"""A gateway that has not been seen for longer is gone."""

GATEWAY_LOOKS_WITHIN = timedelta(seconds=2)
"""A gateway seen this long after a version was retired has read the routes without it."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What it takes to queue a run."""

    queue: Queue
    learning: LearningSettings


def forget_document(
    session: Session,
    principal: Principal,
    document_id: str,
    *,
    rebuild: bool = False,
    request_id: str | None = None,
) -> tuple[Document, Deletion]:
    """Take a document from all that is learnt from now on; doing it twice is one deletion.

    Raises:
        RowNotFound: no such document, or another tenant's.
    """
    document = documents.get_document(session, document_id, tenant=principal.owner)
    session.refresh(document, with_for_update=True)
    was_deleted = document.deleted_at is not None
    documents.delete_document(session, document_id, tenant=principal.owner)
    session.flush()
    known = _latest(session, DeletionKind.DOCUMENT, document_id) if was_deleted else None
    if known is not None:
        if rebuild:
            order_rebuild(session, principal, known, request_id=request_id)
        return document, known
    deletion = _open(
        session, principal, DeletionKind.DOCUMENT, document_id, document.owner, rebuild=rebuild
    )
    _record_opening(session, principal, deletion, request_id)
    return document, deletion


def forget_interaction(
    session: Session,
    principal: Principal,
    interaction_id: str,
    *,
    rebuild: bool = False,
    request_id: str | None = None,
) -> Deletion:
    """Delete an interaction with its feedback, its copies, and the messages nothing else reaches.

    Raises:
        RowNotFound: no such interaction, or another tenant's.
    """
    row = interactions.delete_interaction(session, principal, interaction_id)
    deletion = _open(
        session, principal, DeletionKind.INTERACTION, row.id, row.owner, rebuild=rebuild
    )
    _record_opening(session, principal, deletion, request_id)
    return deletion


def forget_tenant(
    session: Session,
    principal: Principal,
    owner: str,
    *,
    rebuild: bool = False,
    request_id: str | None = None,
) -> Deletion:
    """Open the deletion of all that a tenant has sent; :func:`erase_batch` does it bit by bit.

    Keys and lines stay.

    Raises:
        ForeignTenant: an admin of one tenant names another.
        RowNotFound: nothing here is this tenant's.
    """
    owner_for(principal.owner, owner)
    if not _is_known(session, owner):
        raise RowNotFound("tenant", owner, "Tenants are the owners of keys: GET /api/v1/keys.")
    deletion = _open(session, principal, DeletionKind.TENANT, owner, owner, rebuild=rebuild)
    _record_opening(session, principal, deletion, request_id)
    return deletion


def erase_batch(session: Session, deletion: Deletion) -> int:
    """Delete some of a tenant's rows from before its deletion; 0 when none is left."""
    owner, until = deletion.target, deletion.created_at
    live = (
        select(Document.id)
        .where(
            Document.owner == owner,
            Document.deleted_at.is_(None),
            Document.created_at <= until,
        )
        .order_by(Document.id)
        .limit(DOCUMENTS_AT_ONCE)
    )
    document_ids = session.scalars(live).all()
    for document_id in document_ids:
        documents.delete_document(session, document_id, tenant=None)
    if document_ids:
        return len(document_ids)
    messages.lock_for_deleting(session)
    kept = (
        select(Interaction)
        .where(Interaction.owner == owner, Interaction.created_at <= until)
        .order_by(Interaction.created_at, Interaction.id)
        .limit(INTERACTIONS_AT_ONCE)
    )
    rows = session.scalars(kept).all()
    interactions.delete_rows(session, rows)
    waiting = delete(Feedback).where(
        Feedback.owner == owner, Feedback.interaction_id.is_(None), Feedback.created_at <= until
    )
    session.execute(waiting)
    return len(rows)


def erase_late(session: Session, deletion_id: str) -> int:
    """:func:`erase_batch` where the deletion is a tenant's; 0 when there is nothing to do."""
    deletion = session.get_one(Deletion, deletion_id)
    return erase_batch(session, deletion) if deletion.kind == DeletionKind.TENANT else 0


def order_rebuild(
    session: Session, principal: Principal, deletion: Deletion, *, request_id: str | None = None
) -> None:
    """Ask for versions without what was deleted; changes nothing where that is under way or done."""
    session.refresh(deletion, with_for_update=True)
    if deletion.state != DeletionState.OPEN:
        return
    deletion.is_rebuild = True
    deletion.state = DeletionState.REBUILDING
    deletion.run_ids = []
    deletion.reason = ""
    _record(session, principal, "deletion.rebuild", deletion.id, deletion, request_id=request_id)


def get_deletion(session: Session, deletion_id: str, *, tenant: str | None = None) -> Deletion:
    """A deletion that ``tenant`` may see.

    Raises:
        RowNotFound: no such deletion, or another tenant's.
    """
    deletion = session.get(Deletion, deletion_id)
    if deletion is None or not sees(tenant, deletion.owner):
        raise RowNotFound("deletion", deletion_id, "List them: `everlearn deletions`.")
    return deletion


def list_deletions(
    session: Session,
    *,
    tenant: str | None = None,
    state: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Page[Deletion]:
    """Those that ``tenant`` may see, newest first.

    Raises:
        InvalidRequest: ``after`` is no cursor.
    """
    statement: Select[Deletion] = select(Deletion).where(only(Deletion.owner, tenant))
    if state is not None:
        statement = statement.where(Deletion.state == state)
    return page_of(session, statement, Deletion, after=after, limit=limit)


def unfinished(session: Session) -> list[str]:
    """Ids of deletions that may move on: those that are rebuilt, and some of those that wait.

    Of the latter there may be any number, for as long as nobody asks for a rebuild; so they are
    drawn by chance, and each of them has its turn.
    """
    rebuilding = (
        select(Deletion.id)
        .where(Deletion.state == DeletionState.REBUILDING)
        .order_by(Deletion.id)
        .limit(AT_ONCE)
    )
    waiting = (
        select(Deletion.id)
        .where(Deletion.state == DeletionState.OPEN)
        .order_by(func.random())
        .limit(AT_ONCE)
    )
    return [*session.scalars(rebuilding), *session.scalars(waiting)]


def advance(session: Session, deletion_id: str, orders: Orders) -> Deletion:
    """Do what is due: stop runs that have taken it, queue runs without it, retire what saw it.

    Doing it again changes nothing. Where a rebuild was asked for and what serves has not seen it,
    every version that has is retired; one that serves never is.
    """
    deletion = session.get_one(Deletion, deletion_id, with_for_update=True)
    if deletion.state == DeletionState.DONE:
        return deletion
    seen_by = taint.runs_that_saw(session, deletion)
    _stop(session, deletion, seen_by)
    deletion.version_ids = [version.id for version in taint.versions_that_saw(session, deletion)]
    if deletion.is_rebuild:
        _rebuild(session, deletion, seen_by, orders)
    if not seen_by and deletion.kind != DeletionKind.TENANT:
        _finish(session, deletion)
    return deletion


def runs_with_lessons(session: Session, deletion: Deletion) -> list[str]:
    """Runs whose files quote what was deleted, and that nobody works at any more."""
    seen_by = taint.runs_that_saw(session, deletion)
    return [run.id for run in seen_by if run.status not in runs.OPEN]


def settle(
    session: Session,
    deletion_id: str,
    *,
    without_lessons: Collection[str],
    now: datetime | None = None,
) -> bool:
    """Close a deletion when nothing is left of it; True when that is so.

    Args:
        without_lessons: ids of runs whose files are gone.
    """
    deletion = session.get_one(Deletion, deletion_id, with_for_update=True)
    if deletion.state == DeletionState.DONE:
        return True
    is_tenant = deletion.kind == DeletionKind.TENANT
    if is_tenant and (now or utc_now()) < deletion.created_at + LATE_ARRIVALS:
        return False
    if any(run.id not in without_lessons for run in taint.runs_that_saw(session, deletion)):
        return False
    versions = taint.versions_that_saw(session, deletion)
    if any(version.files_removed_at is None for version in versions):
        return False
    _finish(session, deletion)
    return True


def removable_versions(
    session: Session, *, after_s: float, now: datetime | None = None
) -> Sequence[AdapterVersion]:
    """Versions that were retired this long ago and still have files."""
    return session.scalars(
        select(AdapterVersion)
        .where(
            AdapterVersion.status == VersionStatus.RETIRED,
            AdapterVersion.files_removed_at.is_(None),
            AdapterVersion.retired_at <= (now or utc_now()) - timedelta(seconds=after_s),
        )
        .order_by(AdapterVersion.retired_at, AdapterVersion.id)
    ).all()


def is_let_go(
    session: Session, engine_name: str, retired_at: datetime, *, now: datetime | None = None
) -> bool:
    """Whether every gateway that lives routes without a retired version and has finished with it."""
    alive = session.scalars(
        select(Gateway).where(Gateway.seen_at >= (now or utc_now()) - GATEWAY_ALIVE_FOR)
    )
    return all(
        gateway.seen_at > retired_at + GATEWAY_LOOKS_WITHIN
        and not gateway.in_flight.get(engine_name)
        for gateway in alive
    )


def note_removal(session: Session, version_id: str) -> None:
    """Write down that a retired version's files are gone."""
    version = session.get_one(AdapterVersion, version_id, with_for_update=True)
    if version.files_removed_at is not None:
        return
    version.files_removed_at = utc_now()
    adapter = session.get_one(Adapter, version.adapter_id)
    deletion = taint.deletion_seen_by(session, version.run_id) if version.run_id else None
    name = registry.version_name(adapter.name, version.number)
    detail = {} if deletion is None else {"deletion": deletion.id}
    audit.record(session, audit.SERVER, "version.files_removed", name, detail, owner=adapter.owner)


def version_names(session: Session, deletion: Deletion) -> list[str]:
    """Public names of the versions that saw what was deleted."""
    versions = [session.get_one(AdapterVersion, one) for one in deletion.version_ids]
    return [
        registry.version_name(session.get_one(Adapter, one.adapter_id).name, one.number)
        for one in versions
    ]


def _open(
    session: Session,
    principal: Principal,
    kind: DeletionKind,
    target: str,
    owner: str | None,
    *,
    rebuild: bool,
) -> Deletion:
    deletion = Deletion(
        id=new_id("del"),
        created_at=utc_now(),  # after the tombstone: every run that has it was begun before
        kind=kind,
        target=target,
        owner=owner,
        state=DeletionState.REBUILDING if rebuild else DeletionState.OPEN,
        version_ids=[],
        run_ids=[],
        is_rebuild=rebuild,
        actor=principal.label,
    )
    session.add(deletion)
    session.flush()
    deletion.version_ids = [version.id for version in taint.versions_that_saw(session, deletion)]
    return deletion


def _record_opening(
    session: Session, principal: Principal, deletion: Deletion, request_id: str | None
) -> None:
    detail = {"versions": version_names(session, deletion), "rebuild": deletion.is_rebuild}
    for action, target in (
        (f"{deletion.kind}.delete", deletion.target),
        ("deletion.open", deletion.id),
    ):
        _record(session, principal, action, target, deletion, detail, request_id)


def _latest(session: Session, kind: DeletionKind, target: str) -> Deletion | None:
    return session.scalar(
        select(Deletion)
        .where(Deletion.kind == kind, Deletion.target == target)
        .order_by(Deletion.id.desc())
        .limit(1)
    )


def _is_known(session: Session, owner: str) -> bool:
    return any(
        session.scalar(select(table.id).where(table.owner == owner).limit(1)) is not None
        for table in (ApiKey, Document, Adapter, Interaction)
    )


def _stop(session: Session, deletion: Deletion, seen_by: Iterable[AdaptationRun]) -> None:
    """Cancel the open runs among those that have taken it: no version is to come of them."""
    for run in seen_by:
        if run.status not in runs.OPEN or run.cancel_requested_at is not None:
            continue
        try:
            runs.request_cancel(
                session,
                run.id,
                reason=f"What it had learnt was deleted meanwhile ({deletion.id}).",
            )
        except RunNotCancellable:  # it ended by itself just now
            continue
        _record(session, audit.SERVER, "run.cancel", run.id, deletion)


def _rebuild(
    session: Session, deletion: Deletion, seen_by: Sequence[AdaptationRun], orders: Orders
) -> None:
    """Line by line, always in the same order; the whole is stuck only when nothing moves."""
    tainted = taint.versions_that_saw(session, deletion)
    by_line = {key: list(rows) for key, rows in groupby(tainted, lambda row: row.adapter_id)}
    broken_off = {run.adapter_id for run in seen_by if _is_broken_off(run, deletion)}
    stuck: list[str] = []
    is_moving = False
    for adapter_id in sorted(by_line.keys() | broken_off):
        adapter = session.get_one(Adapter, adapter_id)
        line = _Line(
            session,
            deletion,
            adapter,
            tainted=by_line.get(adapter_id, []),
            is_broken_off=adapter_id in broken_off,
            orders=orders,
        )
        outcome = line.advance()
        is_moving |= outcome is None
        if outcome:
            stuck.append(outcome)
    if deletion.state == DeletionState.REBUILDING and stuck and not is_moving:
        deletion.state = DeletionState.OPEN
        deletion.reason = " ".join(stuck)
        _record(
            session, audit.SERVER, "deletion.stuck", deletion.id, deletion, {"why": deletion.reason}
        )


def _is_broken_off(run: AdaptationRun, deletion: Deletion) -> bool:
    """Whether a run that learns is being stopped, or was, because of the deletion."""
    if run.kind != RunKind.LEARN:
        return False
    if run.finished_at is None:
        return True
    return run.status != RunStatus.SUCCEEDED and run.finished_at >= deletion.created_at


class _Line:
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
        if self._deletion.state == DeletionState.REBUILDING and self._is_broken_off:
            return self._learn_on()
        return ""

    def _learn_on(self) -> str | None:
        """What is left of the material of a run that was stopped is learnt by another."""
        if self._recorded() is not None:
            return ""
        run = runs.open_run_of(self._session, self._adapter)
        if run is not None and not self._counts(run):
            return None
        if run is None and not documents.has_material(self._session, owner=self._adapter.owner):
            return ""
        self._queue()
        return ""

    def _make_anew(self) -> str | None:
        run = runs.open_run_of(self._session, self._adapter)
        if run is not None:
            if self._counts(run) and run.id not in self._deletion.run_ids:
                self._count(run, is_new=False)
            return None
        last = self._recorded()
        if last is None or taint.deletion_seen_by(self._session, last.id) is not None:
            if documents.has_material(self._session, owner=self._adapter.owner):
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
        return run.kind == RunKind.LEARN and not has_seen and run.cancel_requested_at is None

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
            .where(AdaptationPolicy.adapter_id == self._adapter.id, AdaptationPolicy.is_enabled)
            .order_by(AdaptationPolicy.id)
            .limit(1)
        )
        config = policies.resolved_config(policy, self._orders.learning.seal)
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
        _record(self._session, audit.SERVER, "run.start", run.id, self._deletion, detail)

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
            "from": _name(self._session, name, event.from_version_id),
            "to": _name(self._session, name, event.to_version_id),
            "by": event.actor,
            "event": event.id,
        }
        action = f"adapter.{event.kind}"
        _record(self._session, audit.SERVER, action, name, self._deletion, detail)

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
                _record(self._session, audit.SERVER, "version.retire", name, self._deletion)

    def _is_on_trial(self, run: AdaptationRun) -> bool:
        version = registry.version_of_run(self._session, run.id)
        if version is None:
            return False
        trial = select(Trial.id).where(
            Trial.version_id == version.id,
            Trial.state.in_((TrialState.RUNNING, TrialState.WAITING)),
        )
        return self._session.scalar(trial) is not None


def _finish(session: Session, deletion: Deletion) -> None:
    deletion.state = DeletionState.DONE
    deletion.finished_at = utc_now()
    deletion.reason = ""
    _record(session, audit.SERVER, "deletion.done", deletion.id, deletion)


def _record(
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


def _name(session: Session, adapter: str, version_id: str | None) -> str:
    version = session.get(AdapterVersion, version_id) if version_id else None
    return registry.version_name(adapter, version.number if version else None)


def _what(deletion: Deletion) -> str:
    if deletion.kind == DeletionKind.TENANT:
        return f"the data of tenant {deletion.target}"
    return f"{deletion.kind} {deletion.target}"


def _actor(deletion: Deletion) -> str:
    return f"deletion:{deletion.id}"
