"""Moving an alias: promotion and rollback are the same act, forward or back.

An order has two halves, because weights are loaded between them: planning finds the target and
whatever forbids it; applying moves the alias in one transaction, unless somebody else moved it
meanwhile.
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
from server.db import Adapter, AdapterVersion, Alias, AliasEvent, VersionStatus
from server.engine.routing import CHAMPION, WHY_NOT
from server.services import registry
from server.services.registry import ROLLBACK

PROMOTE = "promote"


@dataclass(frozen=True, slots=True)
class Move:
    """A planned move of the champion; ``to_id`` and ``to_number`` are None for the base model."""

    kind: str
    to_id: str | None
    to_number: int | None
    revision: int


def plan_promotion(session: Session, adapter: Adapter, wanted: str | int) -> Move:
    """A move to a version that passed its exam, or to the base.

    Raises:
        InvalidRequest, RowNotFound: no such version.
        VersionNotServable: it did not pass the gate, or has not yet.
        AlreadyChampion: it serves already.
    """
    return _plan(session, adapter, PROMOTE, registry.get_version(session, adapter, wanted))


def plan_rollback(session: Session, adapter: Adapter, wanted: str | int | None = None) -> Move:
    """A move back to what served before, or to the version named.

    Raises:
        NothingToRollBack: the base model serves and nothing came before it.
    """
    to = (
        previous_champion(session, adapter)
        if wanted is None
        else registry.get_version(session, adapter, wanted)
    )
    return _plan(session, adapter, ROLLBACK, to)


def apply_move(
    session: Session, adapter: Adapter, move: Move, *, actor: str, reason: str
) -> AliasEvent:
    """Move the alias and write the event, in the caller's transaction.

    Raises:
        AliasMoved: the alias is not where it was when the move was planned.
    """
    alias = _champion_alias(session, adapter)
    moved = session.execute(
        update(Alias)
        .where(Alias.id == alias.id, Alias.revision == move.revision)
        .values(version_id=move.to_id, revision=Alias.revision + 1)
        .execution_options(synchronize_session=False)
        .returning(Alias.id)
    ).one_or_none()
    if moved is None:
        raise AliasMoved(adapter.name, CHAMPION)
    event = AliasEvent(
        id=new_id("evt"),
        adapter_id=adapter.id,
        alias=CHAMPION,
        kind=move.kind,
        from_version_id=alias.version_id,
        to_version_id=move.to_id,
        actor=actor,
        reason=reason,
    )
    session.add(event)
    registry.touch(session, adapter.id)
    session.flush()
    session.expire(alias)
    return event


def champion(session: Session, adapter: Adapter) -> AdapterVersion | None:
    """The version that serves by default; None is the base model."""
    return registry.aliases_of(session, adapter)[CHAMPION]


def champion_revision(session: Session, adapter: Adapter) -> int:
    """Counts the champion's moves; a :class:`Move` made for an older count is refused."""
    return _champion_alias(session, adapter).revision


def previous_champion(session: Session, adapter: Adapter) -> AdapterVersion | None:
    """What served before the champion; None is the base model.

    A second rollback goes one step further back, instead of forth again.

    Raises:
        NothingToRollBack: the base model serves already.
    """
    if champion(session, adapter) is None:
        raise NothingToRollBack(adapter.name)
    before = registry.served_before(session, adapter)
    return session.get(AdapterVersion, before) if before else None


def _plan(session: Session, adapter: Adapter, kind: str, to: AdapterVersion | None) -> Move:
    if to is not None and to.status != VersionStatus.SERVABLE:
        raise VersionNotServable(adapter.name, to.number, WHY_NOT[to.status])
    to_id = to.id if to else None
    if to_id == _champion_alias(session, adapter).version_id:
        raise AlreadyChampion(registry.version_name(adapter.name, to.number if to else None))
    return Move(
        kind=kind,
        to_id=to_id,
        to_number=to.number if to else None,
        revision=_champion_alias(session, adapter).revision,
    )


def _champion_alias(session: Session, adapter: Adapter) -> Alias:
    return session.scalars(
        select(Alias).where(Alias.adapter_id == adapter.id, Alias.name == CHAMPION)
    ).one()
