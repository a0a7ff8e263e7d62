"""Adapter lines, their immutable versions, the aliases that move, every move, and every trial."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, UniqueConstraint, text
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
    UNPROVEN = "unproven"
    """Imported; has sat no exam. Serves on trial, or when an admin forces it."""
    RETIRED = "retired"
    """Never serves again: it saw what was deleted since, or an admin retired it."""


class VersionOrigin(StrEnum):
    """Where a version comes from."""

    RUN = "run"
    """One of our adaptation runs."""
    IMPORT = "import"
    """A foreign adapter that an admin brought."""


class LineRole(StrEnum):
    """What a line is for."""

    SERVE = "serve"
    """It answers users."""
    EDITOR = "editor"
    """It writes the self-edits of another line, and is never routed to."""
    TASK = "task"
    """It answers one task given by examples, and learns no documents."""


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
    rollout: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The line's own values of ``RolloutSettings``; what is left out, or null, is the settings'."""
    role: Mapped[str] = mapped_column(String(20), default=LineRole.SERVE)
    edits_for: Mapped[str | None] = mapped_column(String(48), unique=True)
    """Id of the line whose self-edits an editor writes."""


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
    manifest: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    """Kilobytes that routing and moves never look at, so they are read when asked for."""
    origin: Mapped[str] = mapped_column(String(20), default=VersionOrigin.RUN)
    generation: Mapped[int] = mapped_column(default=0)
    """How many times in a row it was trained on from another version; 0: from the clean base."""
    retired_at: Mapped[datetime | None]
    retire_reason: Mapped[str | None] = mapped_column(Text)
    files_removed_at: Mapped[datetime | None]
    """When the artifact's folder was removed, which only a retired version's ever is."""


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
    is_forced: Mapped[bool] = mapped_column(default=False)
    """Whether an admin moved it to a version that had not passed the gate."""
    revision: Mapped[int] = mapped_column(default=0)
    """The alias's own count after this move."""


class TrialMode(StrEnum):
    """How a challenger meets live traffic."""

    HOLD = "hold"
    """Not at all: it passed the exam and waits for a person's yes."""
    SHADOW = "shadow"
    """It answers copies of prompts; users never see its answers."""
    CANARY = "canary"
    """It answers a stable share of requests."""


class TrialState(StrEnum):
    """running or waiting → promoted or aborted."""

    RUNNING = "running"
    WAITING = "waiting"
    """The judge is done, or was never asked; a person decides."""
    PROMOTED = "promoted"
    ABORTED = "aborted"


_TRIAL_IS_OPEN = text("state IN ('running', 'waiting')")


class Trial(Row):
    """A version of a line beside its champion; at most one of a line is open."""

    __tablename__ = "trials"
    __table_args__ = (
        Index(
            "ix_trials_open",
            "adapter_id",
            unique=True,
            sqlite_where=_TRIAL_IS_OPEN,
            postgresql_where=_TRIAL_IS_OPEN,
        ),
        Index("ix_trials_adapter_id_created_at", "adapter_id", "created_at"),
    )

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    version_id: Mapped[str] = mapped_column(ForeignKey("adapter_versions.id"))
    champion_version_id: Mapped[str | None] = mapped_column(ForeignKey("adapter_versions.id"))
    """Who it is compared with; null is the base model."""
    mode: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20), default=TrialState.RUNNING)
    share: Mapped[float]
    """Percent of requests that it answers, or gets copies of."""
    salt: Mapped[str] = mapped_column(String(48))
    """Makes the draw of one trial independent of the next one's."""
    started_by: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str] = mapped_column(Text, default="")
    evidence: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What the judge has seen at its last look, signal by signal."""
    judged_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    ended_by: Mapped[str | None] = mapped_column(String(200))
    outcome: Mapped[str | None] = mapped_column(Text)
    """Why it ended."""
