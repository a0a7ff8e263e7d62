"""Adapter lines, their immutable versions, the aliases that move, and every move."""

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Row


class VersionStatus(StrEnum):
    """Whether a version may serve."""

    CANDIDATE = "candidate"
    """Trained and valid; the exam is open."""
    SERVABLE = "servable"
    """Passed the gate; any alias may point at it."""
    REJECTED = "rejected"
    """Failed the gate, or the exam said nothing; kept for its report."""


class Adapter(Row):
    """A named line of LoRA weights over one base model."""

    __tablename__ = "adapters"

    name: Mapped[str] = mapped_column(String(200), unique=True)
    owner: Mapped[str | None] = mapped_column(String(100))
    """The tenant whose line this is; null serves everybody and learns from the operator alone."""
    base_model: Mapped[str] = mapped_column(String(500))
    base_path: Mapped[str] = mapped_column(Text)
    base_hash: Mapped[str] = mapped_column(String(80))
    revision: Mapped[int] = mapped_column(default=0)
    """Rises with every change that routing must see; gateways watch it."""


class AdapterVersion(Row):
    """One artifact. Never changes after it is registered, but for its status."""

    __tablename__ = "adapter_versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        UniqueConstraint("run_id"),  # a run that is done twice still registers one version
    )

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("adapter_versions.id"))
    run_id: Mapped[str | None] = mapped_column(ForeignKey("adaptation_runs.id"))
    status: Mapped[str] = mapped_column(String(20), default=VersionStatus.CANDIDATE)
    path: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[dict[str, Any]]


class Alias(Row):
    """A mutable pointer; ``version_id`` null is the base model."""

    __tablename__ = "aliases"
    __table_args__ = (UniqueConstraint("adapter_id", "name"),)

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    name: Mapped[str] = mapped_column(String(50))
    version_id: Mapped[str | None] = mapped_column(ForeignKey("adapter_versions.id"))
    revision: Mapped[int] = mapped_column(default=0)


class AliasEvent(Row):
    """One move of an alias: appended, never rewritten."""

    __tablename__ = "alias_events"
    __table_args__ = (Index("ix_alias_events_adapter_id_alias", "adapter_id", "alias"),)

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    alias: Mapped[str] = mapped_column(String(50))
    kind: Mapped[str] = mapped_column(String(20))
    from_version_id: Mapped[str | None] = mapped_column(ForeignKey("adapter_versions.id"))
    to_version_id: Mapped[str | None] = mapped_column(ForeignKey("adapter_versions.id"))
    actor: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str] = mapped_column(Text)
