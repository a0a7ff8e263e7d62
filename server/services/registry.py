"""Adapter lines and their versions: register, look up, and the picture that routing works from."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from server.core.clock import new_id, utc_now
from server.core.errors import ForeignTenant, InvalidRequest, RowNotFound, VersionInUse
from server.db import (
    Adapter,
    AdapterVersion,
    Alias,
    AliasEvent,
    LineRole,
    RunDocument,
    RunInteraction,
    RunPrompt,
    RunTask,
    Trial,
    TrialMode,
    TrialState,
    VersionOrigin,
    VersionStatus,
)
from server.engine.routing import (
    BASE,
    CHAMPION,
    AdapterRoutes,
    RoutingSnapshot,
    TrialRoute,
    VersionRoute,
)
from server.services.history import path_back
from server.services.tenants import only, sees

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def base_engine_name(served: str) -> str:
    """What the engine calls its base model, where ``served`` is the settings' model name."""
    return f"{served}@{BASE}"


def base_engine_name_of(session: Session, adapter: Adapter, served: str) -> str:
    """What the engine calls the base model under a line.

    The engine has one base model, under the settings' name. A line over other weights gets a name
    that the engine does not have, so that nothing ever answers in its place.
    """
    base_hash = session.scalar(select(Adapter.base_hash).where(Adapter.name == served))
    return base_engine_name(served if adapter.base_hash == base_hash else adapter.name)


def version_name(adapter: str, number: int | None) -> str:
    """The public name of a version; None is the base model."""
    return f"{adapter}@{BASE}" if number is None else f"{adapter}@v{number}"


def name_by_id(session: Session, adapter: Adapter, version_id: str | None) -> str:
    """The public name behind a version's id; none is the base model."""
    version = session.get(AdapterVersion, version_id) if version_id else None
    return version_name(adapter.name, version.number if version else None)


def engine_name(adapter: str, version: AdapterVersion) -> str:
    """What the engine calls a version: never used twice, so no cache can mix two versions up."""
    return f"{adapter}@v{version.number}.{version.digest[:8]}"


def get_adapter(session: Session, name: str, *, tenant: str | None = None) -> Adapter:
    """A line that ``tenant`` may ask for: its own, or everybody's.

    Raises:
        RowNotFound: no such line, or another tenant's.
    """
    adapter = session.scalar(select(Adapter).where(Adapter.name == name))
    if adapter is None or not (adapter.owner is None or sees(tenant, adapter.owner)):
        raise RowNotFound("adapter", name, "List them: `everlearn adapters`.")
    return adapter


def own_adapter(session: Session, name: str, *, tenant: str | None = None) -> Adapter:
    """A line that an admin of ``tenant`` may change.

    Raises:
        RowNotFound: no such line, or another tenant's.
        ForeignTenant: it is everybody's, and only the operator changes it.
    """
    adapter = get_adapter(session, name, tenant=tenant)
    if tenant is not None and adapter.owner is None:
        remedy = f"{name} is everybody's; make a line of your own: POST /api/v1/adapters."
        raise ForeignTenant(tenant, remedy)
    return adapter


def list_adapters(session: Session, *, tenant: str | None = None) -> Sequence[Adapter]:
    """The lines that ``tenant`` may ask for, by name; editors answer nobody."""
    open_to_all = Adapter.owner.is_(None)
    return session.scalars(
        select(Adapter)
        .where(Adapter.role != LineRole.EDITOR, or_(open_to_all, only(Adapter.owner, tenant)))
        .order_by(Adapter.name)
    ).all()


def get_version(session: Session, adapter: Adapter, wanted: str | int) -> AdapterVersion | None:
    """A version by number, ``v7``, ``smollm2@v7``; None for ``base``.

    Raises:
        InvalidRequest: not the name of a version.
        RowNotFound: no such version.
    """
    text = str(wanted).strip().removeprefix(f"{adapter.name}@")
    if text == BASE:
        return None
    number = text.removeprefix("v")
    if not _NUMBER.fullmatch(number):
        raise InvalidRequest(
            f"{wanted!r} is not a version: say v3, 3, {adapter.name}@v3 or base.", "version"
        )
    version = session.scalar(
        select(AdapterVersion).where(
            AdapterVersion.adapter_id == adapter.id, AdapterVersion.number == int(number)
        )
    )
    if version is None:
        latest = next_number(session, adapter) - 1
        known = "v1" if latest == 1 else f"v1 to v{latest}"
        has = f"{adapter.name} has {known if latest else 'none yet'}."
        raise RowNotFound("version", f"{adapter.name}@v{number}", has)
    return version


def by_id(session: Session, version_id: str) -> AdapterVersion:
    """A version whose id comes from our own rows."""
    return session.get_one(AdapterVersion, version_id)


def next_number(session: Session, adapter: Adapter) -> int:
    highest = session.scalar(
        select(func.max(AdapterVersion.number)).where(AdapterVersion.adapter_id == adapter.id)
    )
    return (highest or 0) + 1


def version_of_run(session: Session, run_id: str) -> AdapterVersion | None:
    """The version a run has registered, if it came that far."""
    return session.scalar(select(AdapterVersion).where(AdapterVersion.run_id == run_id))


def register_version(
    session: Session,
    adapter: Adapter,
    *,
    number: int,
    run_id: str | None,
    path: Path,
    digest: str,
    manifest: dict[str, Any],
    origin: VersionOrigin = VersionOrigin.RUN,
    status: VersionStatus = VersionStatus.CANDIDATE,
    parent: AdapterVersion | None = None,
) -> AdapterVersion:
    """Enter a finished artifact; the database refuses a second one for the run.

    ``parent`` is the version that it was trained on from; without it, it came of the clean base.
    """
    version = AdapterVersion(
        id=new_id("ver"),
        adapter_id=adapter.id,
        number=number,
        parent_id=parent.id if parent else None,
        generation=parent.generation + 1 if parent else 0,
        run_id=run_id,
        status=status,
        origin=origin,
        path=str(path),
        digest=digest,
        manifest=manifest,
    )
    session.add(version)
    session.flush()
    touch(session, adapter.id)
    return version


def set_status(session: Session, version: AdapterVersion, status: VersionStatus) -> None:
    """Open a version to serving, or close it."""
    version.status = status
    touch(session, version.adapter_id)


def retire(session: Session, version: AdapterVersion, *, reason: str) -> None:
    """Close a version for good: it is never resident, routable or promotable again.

    Raises:
        VersionInUse: it serves. The alias is locked, so it cannot come to serve meanwhile.
    """
    adapter = session.get_one(Adapter, version.adapter_id)
    serving = session.scalar(
        select(Alias.version_id)
        .where(Alias.adapter_id == adapter.id, Alias.name == CHAMPION)
        .with_for_update()
    )
    if serving == version.id:
        why = f"it serves; roll back first: `everlearn rollback {adapter.name}`."
        raise VersionInUse(adapter.name, version.number, why)
    version.status = VersionStatus.RETIRED
    version.retired_at = utc_now()
    version.retire_reason = reason
    touch(session, version.adapter_id)


def touch(session: Session, adapter_id: str) -> None:
    """Tell the gateways that something they route by has changed."""
    session.execute(
        update(Adapter).where(Adapter.id == adapter_id).values(revision=Adapter.revision + 1)
    )


def aliases_of(session: Session, adapter: Adapter) -> dict[str, AdapterVersion | None]:
    rows = session.execute(
        select(Alias.name, AdapterVersion)
        .outerjoin(AdapterVersion, AdapterVersion.id == Alias.version_id)
        .where(Alias.adapter_id == adapter.id)
        .order_by(Alias.name)
    )
    return {row[0]: row[1] for row in rows}


def versions_of(session: Session, adapter: Adapter) -> Sequence[AdapterVersion]:
    """Oldest first."""
    return session.scalars(
        select(AdapterVersion)
        .where(AdapterVersion.adapter_id == adapter.id)
        .order_by(AdapterVersion.number)
    ).all()


def ancestry(session: Session, version: AdapterVersion) -> list[AdapterVersion | None]:
    """The version, its parent, and so on to the base model, which is None."""
    line: list[AdapterVersion | None] = [version]
    while version.parent_id is not None:
        version = session.get_one(AdapterVersion, version.parent_id)
        line.append(version)
    return [*line, None]


def events_of(session: Session, adapter: Adapter, *, limit: int = 50) -> Sequence[AliasEvent]:
    """Newest first."""
    return session.scalars(
        select(AliasEvent)
        .where(AliasEvent.adapter_id == adapter.id)
        .order_by(AliasEvent.id.desc())
        .limit(limit)
    ).all()


def documents_of(session: Session, version: AdapterVersion | None) -> set[str]:
    """The documents a version was trained on, or any that it was trained on from; none for the base."""
    taken = select(RunDocument.document_id).where(
        RunDocument.run_id.in_(_runs_of(session, version))
    )
    return set(session.scalars(taken))


def tasks_of(session: Session, version: AdapterVersion | None) -> set[str]:
    """The tasks a version was trained on, likewise."""
    taken = select(RunTask.task_id).where(RunTask.run_id.in_(_runs_of(session, version)))
    return set(session.scalars(taken))


def prompts_of(session: Session, version: AdapterVersion | None) -> set[str]:
    """The prompts, sent for learning, that its runs took, those of the exam included; likewise."""
    taken = select(RunPrompt.prompt_id).where(RunPrompt.run_id.in_(_runs_of(session, version)))
    return set(session.scalars(taken))


def interactions_of(session: Session, version: AdapterVersion | None) -> set[str]:
    """The interactions that its runs took, those of the exam included; likewise."""
    taken = select(RunInteraction.interaction_id).where(
        RunInteraction.run_id.in_(_runs_of(session, version))
    )
    return set(session.scalars(taken))


def _runs_of(session: Session, version: AdapterVersion | None) -> list[str]:
    """The runs that a version comes from; an imported one saw what nobody here knows."""
    line = ancestry(session, version) if version is not None else []
    return [each.run_id for each in line if each is not None and each.run_id is not None]


def snapshot_revision(session: Session) -> int:
    """A number that differs after every change that routing must see."""
    return session.scalar(select(func.coalesce(func.sum(Adapter.revision), 0))) or 0


def snapshot(session: Session, *, resident_versions: int, served: str) -> RoutingSnapshot:
    """Everything the gateway needs to choose weights for a request.

    ``served`` is the settings' model name, under which the engine knows its base model.

    Desired in the engine are the newest ``resident_versions`` servable versions of each line,
    whatever an alias points at, and what a rollback would go to, however old it is: so a rollback
    loads nothing. A version that is not there is loaded before the alias moves.
    """
    return RoutingSnapshot(
        revision=snapshot_revision(session),
        adapters={
            adapter.name: _routes(session, adapter, resident_versions, served)
            for adapter in session.scalars(select(Adapter).order_by(Adapter.name))
        },
    )


def _routes(
    session: Session, adapter: Adapter, resident_versions: int, served: str
) -> AdapterRoutes:
    versions = versions_of(session, adapter)
    aliases = {
        name: version.number if version else None
        for name, version in aliases_of(session, adapter).items()
    }
    previous = _previous(session, adapter, versions, aliases)
    resident = _resident(versions, aliases, previous, newest=resident_versions)
    return AdapterRoutes(
        name=adapter.name,
        base_engine_name=base_engine_name_of(session, adapter, served),
        owner=adapter.owner,
        aliases=aliases,
        previous=previous,
        is_routed=adapter.role != LineRole.EDITOR,
        versions={
            version.number: VersionRoute(
                number=version.number,
                engine_name=engine_name(adapter.name, version),
                path=version.path,
                status=version.status,
                digest=version.digest,
                is_resident=version.number in resident,
                retire_reason=version.retire_reason,
            )
            for version in versions
        },
        trial=_trial(session, adapter),
    )


def _previous(
    session: Session,
    adapter: Adapter,
    versions: Sequence[AdapterVersion],
    aliases: Mapping[str, int | None],
) -> int | None:
    """Number of the version that a rollback would go to; None is the base model."""
    servable = {v.id: v.number for v in versions if v.status == VersionStatus.SERVABLE}
    serving = aliases.get(CHAMPION)
    for version_id in path_back(session, adapter.id):
        if version_id is None:
            return None
        if (number := servable.get(version_id)) not in (None, serving):
            return number
    return None


def _resident(
    versions: Sequence[AdapterVersion],
    aliases: Mapping[str, int | None],
    previous: int | None,
    *,
    newest: int,
) -> set[int]:
    """Numbers of the versions that an engine should hold."""
    servable = [v.number for v in versions if v.status == VersionStatus.SERVABLE]
    closed = {
        v.number for v in versions if v.status in (VersionStatus.REJECTED, VersionStatus.RETIRED)
    }
    pointed_at = {number for number in (*aliases.values(), previous) if number is not None}
    return {*servable[-newest:], *pointed_at} - closed


def _trial(session: Session, adapter: Adapter) -> TrialRoute | None:
    """The trial that meets live traffic now."""
    row = session.execute(
        select(Trial, AdapterVersion.number)
        .join(AdapterVersion, AdapterVersion.id == Trial.version_id)
        .where(
            Trial.adapter_id == adapter.id,
            Trial.state == TrialState.RUNNING,
            Trial.mode != TrialMode.HOLD,
            AdapterVersion.status != VersionStatus.RETIRED,
        )
    ).one_or_none()
    if row is None:
        return None
    trial, number = row
    return TrialRoute(trial.mode, number, trial.share, trial.salt)
