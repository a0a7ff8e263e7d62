"""The rows a line needs: itself, its champion alias, its default policy; for the first and others."""

from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from server.core.clock import new_id
from server.core.errors import Conflict, SetupError
from server.core.settings import Settings
from server.db import Adapter, Alias, LineRole
from server.engine.routing import CHAMPION
from server.services import policies, registry


def ensure_line(
    session: Session, settings: Settings, *, base_path: Path, base_hash: str
) -> Adapter:
    """Make the line of ``settings.model.name`` over this base model; doing it twice is fine.

    Raises:
        SetupError: the line exists over other base weights, on which its versions do not fit.
    """
    name = settings.model.name
    adapter = session.scalar(select(Adapter).where(Adapter.name == name))
    if adapter is None:
        adapter = add_line(
            session,
            name,
            owner=None,
            base_model=settings.model.source,
            base_path=str(base_path),
            base_hash=base_hash,
        )
    if adapter.base_hash != base_hash:
        raise SetupError(
            f"The line {name!r} was started on other base weights "
            f"({adapter.base_model}, {adapter.base_hash[:12]}…); its versions do not fit these "
            f"({base_hash[:12]}…). Set EVERLEARN_MODEL__SOURCE back, or EVERLEARN_MODEL__NAME "
            "to a new name."
        )
    same_weights = update(Adapter).where(Adapter.base_hash == base_hash)
    session.execute(same_weights.values(base_path=str(base_path)))  # they may have moved
    policies.ensure_default_policy(session, adapter, is_enabled=settings.learning.is_enabled)
    return adapter


def create_line(
    session: Session,
    settings: Settings,
    name: str,
    *,
    owner: str | None,
    role: LineRole = LineRole.SERVE,
) -> Adapter:
    """A further line over the served base model, which learns from its owner's documents alone.

    One of another role than to serve learns nothing by itself.

    Raises:
        Conflict: the name is taken, by whomever.
    """
    taken = f"There is a line {name!r} already; choose another name."
    if session.scalar(select(Adapter.id).where(Adapter.name == name)) is not None:
        raise Conflict(taken)
    first = registry.get_adapter(session, settings.model.name)
    try:
        with session.begin_nested():
            adapter = add_line(
                session,
                name,
                owner=owner,
                role=role,
                base_model=first.base_model,
                base_path=first.base_path,
                base_hash=first.base_hash,
            )
    except IntegrityError as error:  # somebody made it at the same moment
        raise Conflict(taken) from error
    if role is LineRole.SERVE:
        policies.ensure_default_policy(session, adapter, is_enabled=settings.learning.is_enabled)
    return adapter


def add_line(session: Session, name: str, **fields: Any) -> Adapter:
    """A line with the columns of Adapter, and its champion: the base model."""
    adapter = Adapter(id=new_id("ada"), name=name, revision=1, **fields)
    session.add(adapter)
    session.flush()
    session.add(Alias(id=new_id("ali"), adapter_id=adapter.id, name=CHAMPION))
    return adapter
