"""Moving an alias: promotion and rollback are the same act, forward or back.

An order has two halves, because weights are loaded between them: planning finds the target and
whatever forbids it; applying moves the alias in one transaction, unless somebody else moved it
meanwhile. What a version may do is looked at in both, because it may be retired between them.
"""

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from server.core.clock import new_id
from server.core.errors import (
    AliasMoved,
    AlreadyChampion,
    NothingToRollBack,
    VersionNotServable,
)
from server.db import (
    AdaptationRun,
    Adapter,
    AdapterVersion,
    Alias,
    AliasEvent,
    RunStatus,
    VersionStatus,
)
from server.engine.routing import CHAMPION, why_not
from server.services import registry
from server.services.history import PROMOTE, ROLLBACK, path_back

__all__ = ["PROMOTE", "ROLLBACK"]

_FORCEABLE = (VersionStatus.CANDIDATE, VersionStatus.REJECTED, VersionStatus.UNPROVEN)
_OPEN_RUN = (RunStatus.QUEUED, RunStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class Move:
    """A planned move of the champion; ``to_id`` and ``to_number`` are None for the base model."""

    kind: str
    to_id: str | None
    to_number: int | None
    revision: int
    """The alias's count that the order was made for; a move since then wins over it."""
    overruled: str | None = None
    """The status that an admin overrules by force; None where none has to be."""
    skipped: tuple[int, ...] = ()
    """Versions that served before and cannot serve again, which a rollback stepped over."""


def plan_promotion(
    session: Session,
    adapter: Adapter,
    wanted: str | int,
    *,
    expected_revision: int | None = None,
    force: bool = False,
) -> Move:
    """A move to a version that passed its exam, or to the base.

    Args:
        expected_revision: the alias's count that the caller has seen; the present one when left
            out.
        force: take a version that was rejected or never examined, too.

    Raises:
        InvalidRequest, RowNotFound: no such version.
        AliasMoved: the alias has been moved since ``expected_revision``.
        VersionNotServable: it did not pass the gate, or has not yet.
        AlreadyChampion: it serves already.
    """
    to = registry.get_version(session, adapter, wanted)
    return _plan(session, adapter, PROMOTE, to, expected_revision, force=force)


def plan_rollback(
    session: Session,
    adapter: Adapter,
    wanted: str | int | None = None,
    *,
    expected_revision: int | None = None,
) -> Move:
    """A move back to what served before, or to the version named.

    Raises:
        NothingToRollBack: the base model serves and nothing came before it.
        AliasMoved: the alias has been moved since ``expected_revision``.
    """
    if wanted is not None:
        to = registry.get_version(session, adapter, wanted)
        return _plan(session, adapter, ROLLBACK, to, expected_revision)
    _check_revision(session, adapter, expected_revision)
    to, skipped = _step_back(session, adapter)
    return _plan(session, adapter, ROLLBACK, to, expected_revision, skipped=skipped)


def apply_move(
    session: Session,
    adapter: Adapter,
    move: Move,
    *,
    actor: str,
    reason: str,
    is_forced: bool = False,
) -> AliasEvent:
    """Move the alias and write the event, in the caller's transaction.

    Args:
        is_forced: an admin lets a version serve that has not passed the gate; it is servable
            from then on.

    Raises:
        AliasMoved: the alias is not where it was when the move was planned.
        VersionNotServable: the version may not serve any more.
    """
    alias = _champion_alias(session, adapter)
    before = alias.version_id
    moved = session.execute(
        update(Alias)
        .where(Alias.id == alias.id, Alias.revision == move.revision)
        .values(version_id=move.to_id, revision=Alias.revision + 1)
        .execution_options(synchronize_session=False)
        .returning(Alias.revision)
    ).one_or_none()
    session.expire(alias)
    if moved is None:
        raise alias_moved(session, adapter)
    if move.to_id is not None:
        version = session.get_one(AdapterVersion, move.to_id, populate_existing=True)
        _check_may_serve(session, adapter, version, force=is_forced)
        version.status = VersionStatus.SERVABLE
    event = AliasEvent(
        id=new_id("evt"),
        adapter_id=adapter.id,
        alias=CHAMPION,
        kind=move.kind,
        from_version_id=before,
        to_version_id=move.to_id,
        actor=actor,
        reason=reason,
        is_forced=is_forced,
        revision=moved[0],
    )
    session.add(event)
    registry.touch(session, adapter.id)
    session.flush()
    return event


def assert_unmoved(session: Session, adapter: Adapter, revision: int) -> None:
    """Return if the champion is where it was at this count; it stays there in this transaction.

    Raises:
        AliasMoved: somebody has moved it.
    """
    lock_champion(session, adapter)
    session.expire(_champion_alias(session, adapter))
    if champion_revision(session, adapter) != revision:
        raise alias_moved(session, adapter)


def alias_moved(session: Session, adapter: Adapter) -> AliasMoved:
    """The error for an order that came too late: says what won, who moved it, and its count."""
    alias = _champion_alias(session, adapter)
    session.refresh(alias)
    version = session.get(AdapterVersion, alias.version_id) if alias.version_id else None
    serving = registry.version_name(adapter.name, version.number if version else None)
    last = session.scalar(
        select(AliasEvent)
        .where(AliasEvent.adapter_id == adapter.id, AliasEvent.alias == CHAMPION)
        .order_by(AliasEvent.id.desc())
        .limit(1)
    )
    by = f", moved there by {last.actor}" if last else ""
    return AliasMoved(
        adapter.name, CHAMPION, f"{serving} serves now{by} (revision {alias.revision})"
    )


def champion(session: Session, adapter: Adapter) -> AdapterVersion | None:
    """The version that serves by default; None is the base model."""
    return registry.aliases_of(session, adapter)[CHAMPION]


def champion_revision(session: Session, adapter: Adapter) -> int:
    """Counts the champion's moves; a :class:`Move` made for an older count is refused."""
    return _champion_alias(session, adapter).revision


def previous_champion(session: Session, adapter: Adapter) -> AdapterVersion | None:
    """What served before the champion and still may; None is the base model.

    A second rollback goes one step further back, instead of forth again.

    Raises:
        NothingToRollBack: the base model serves already.
    """
    return _step_back(session, adapter)[0]


def _step_back(session: Session, adapter: Adapter) -> tuple[AdapterVersion | None, tuple[int, ...]]:
    """Where a rollback goes, and the numbers of what it steps over on the way."""
    serving = champion(session, adapter)
    if serving is None:
        raise NothingToRollBack(adapter.name)
    skipped: list[int] = []
    for version_id in path_back(session, adapter.id):
        if version_id is None:  # the base served, and always may
            break
        if version_id == serving.id:
            continue
        version = session.get_one(AdapterVersion, version_id)
        if version.status == VersionStatus.SERVABLE:
            return version, tuple(skipped)
        if version.number not in skipped:
            skipped.append(version.number)
    return None, tuple(skipped)


def _plan(
    session: Session,
    adapter: Adapter,
    kind: str,
    to: AdapterVersion | None,
    expected_revision: int | None,
    *,
    force: bool = False,
    skipped: tuple[int, ...] = (),
) -> Move:
    alias = _check_revision(session, adapter, expected_revision)
    overruled = None
    if to is not None:
        _check_may_serve(session, adapter, to, force=force)
        overruled = to.status if to.status != VersionStatus.SERVABLE else None
    to_id = to.id if to else None
    if to_id == alias.version_id:
        raise AlreadyChampion(registry.version_name(adapter.name, to.number if to else None))
    return Move(
        kind=kind,
        to_id=to_id,
        to_number=to.number if to else None,
        revision=alias.revision,
        overruled=overruled,
        skipped=skipped,
    )


def _check_revision(session: Session, adapter: Adapter, expected: int | None) -> Alias:
    alias = _champion_alias(session, adapter)
    if expected is not None and expected != alias.revision:
        raise alias_moved(session, adapter)
    return alias


def _check_may_serve(
    session: Session, adapter: Adapter, version: AdapterVersion, *, force: bool
) -> None:
    """Raise when a version may not serve; force overrules the gate, and nothing else."""
    if version.status == VersionStatus.SERVABLE:
        return
    if version.files_removed_at is not None:
        raise VersionNotServable(adapter.name, version.number, "its files are removed.")
    if not force or version.status not in _FORCEABLE:
        why = why_not(version.status, version.retire_reason)
        raise VersionNotServable(adapter.name, version.number, why)
    if (run := open_run(session, version)) is not None:
        why = f"its run {run.id} is still open; cancel that first: `everlearn runs {run.id} --cancel`."
        raise VersionNotServable(adapter.name, version.number, why)


def open_run(session: Session, version: AdapterVersion) -> AdaptationRun | None:
    """The run that still works on a candidate."""
    run = session.get(AdaptationRun, version.run_id) if version.run_id else None
    is_open = version.status == VersionStatus.CANDIDATE and run and run.status in _OPEN_RUN
    return run if is_open else None


def lock_champion(session: Session, adapter: Adapter) -> None:
    """Nobody moves the champion before this transaction ends."""
    statement = select(Alias.id).where(Alias.adapter_id == adapter.id, Alias.name == CHAMPION)
    session.execute(statement.with_for_update())


def _champion_alias(session: Session, adapter: Adapter) -> Alias:
    return session.scalars(
        select(Alias).where(Alias.adapter_id == adapter.id, Alias.name == CHAMPION)
    ).one()
