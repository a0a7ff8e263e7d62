"""The rows a fresh server needs: the adapter line, its champion alias, its default policy."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.clock import new_id
from server.core.errors import SetupError
from server.core.settings import Settings
from server.db import Adapter, Alias
from server.engine.routing import CHAMPION
from server.services import policies


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
        adapter = Adapter(
            id=new_id("ada"),
            name=name,
            base_model=settings.model.source,
            base_path=str(base_path),
            base_hash=base_hash,
            revision=1,
        )
        session.add(adapter)
        session.flush()
        session.add(Alias(id=new_id("ali"), adapter_id=adapter.id, name=CHAMPION))
    if adapter.base_hash != base_hash:
        raise SetupError(
            f"The line {name!r} was started on other base weights "
            f"({adapter.base_model}, {adapter.base_hash[:12]}…); its versions do not fit these "
            f"({base_hash[:12]}…). Set EVERLEARN_MODEL__SOURCE back, or EVERLEARN_MODEL__NAME "
            "to a new name."
        )
    adapter.base_path = str(base_path)  # the same weights may have moved
    policies.ensure_default_policy(session, adapter, is_enabled=settings.learning.is_enabled)
    return adapter
