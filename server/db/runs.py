"""Adaptation policies and runs. The run's row is the truth; a queue message is only a hint."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from server.db.base import Base, Row


class RunStatus(StrEnum):
    """queued → running → one of the three ends."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    """Went to its end; whether its version serves is the verdict's matter."""
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunKind(StrEnum):
    """What a run is for."""

    LEARN = "learn"
    """A new version."""
    REBUILD = "rebuild"
    """Training an old version again from its manifest, to compare."""


class AdaptationPolicy(Row):
    """Which method runs on what, and when."""

    __tablename__ = "adaptation_policies"
    __table_args__ = (UniqueConstraint("adapter_id", "name"),)

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    name: Mapped[str] = mapped_column(String(100))
    trigger: Mapped[str] = mapped_column(String(50))
    """``new_documents``: the line's own policy, which the settings made; else ``conditions``."""
    method: Mapped[str | None] = mapped_column(String(50))
    """A name of ``adapters.spec.METHODS``, or ``auto``; null: the settings' choice."""
    material: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    conditions: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    budget: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    config: Mapped[dict[str, Any]]
    """What is to differ from the settings' config of the method."""
    is_enabled: Mapped[bool] = mapped_column(default=True)
    cooldown_hours: Mapped[float] = mapped_column(default=0.0, server_default="0")
    """After a run of it, so long none is begun."""
    checked_at: Mapped[datetime | None]
    """When its schedule was last looked at."""
    decision: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """What it decided last when it was due: ``at``, ``new``, ``method`` (null: no run), ``why``,
    ``rejected``."""
    changed_by: Mapped[str | None] = mapped_column(String(200))
    """Who changed it last; null: nobody, and the settings say whether it is enabled."""


class AdaptationRun(Row):
    """One execution of a method."""

    __tablename__ = "adaptation_runs"
    __table_args__ = (Index("ix_adaptation_runs_adapter_id_status", "adapter_id", "status"),)

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    policy_id: Mapped[str | None] = mapped_column(ForeignKey("adaptation_policies.id"))
    status: Mapped[str] = mapped_column(String(20), default=RunStatus.QUEUED)
    method: Mapped[str] = mapped_column(String(50))
    config: Mapped[dict[str, Any]]
    requested_by: Mapped[str] = mapped_column(String(200))
    attempt: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    heartbeat_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    stage: Mapped[str | None] = mapped_column(String(30))
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    verdict: Mapped[str | None] = mapped_column(String(20))
    report: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[str | None] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String(20), default=RunKind.LEARN)
    rebuilds: Mapped[str | None] = mapped_column(String(48))
    """Id of the version that a rebuild makes again. Not a foreign key: versions point at runs."""
    material: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    """What it was to learn from; empty: documents, or a task."""
    reason: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """Why this method: what ``auto`` found, and why it took none of the others."""


class RunDocument(Base):
    """Which documents a run saw: the lineage from a version back to its material."""

    __tablename__ = "run_documents"

    run_id: Mapped[str] = mapped_column(
        ForeignKey("adaptation_runs.id", ondelete="CASCADE"), primary_key=True
    )
    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True
    )


class RunTask(Base):
    """Which tasks a run saw."""

    __tablename__ = "run_tasks"

    run_id: Mapped[str] = mapped_column(
        ForeignKey("adaptation_runs.id", ondelete="CASCADE"), primary_key=True
    )
    task_id: Mapped[str] = mapped_column(
        ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class RunPrompt(Base):
    """Which prompts, sent for learning, a run saw; the prompt's own split says for what."""

    __tablename__ = "run_prompts"

    run_id: Mapped[str] = mapped_column(
        ForeignKey("adaptation_runs.id", ondelete="CASCADE"), primary_key=True
    )
    prompt_id: Mapped[str] = mapped_column(
        ForeignKey("prompts.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class Use(StrEnum):
    """What a run takes an interaction for."""

    TRAIN = "train"
    """Its prompt is learnt from."""
    GATE = "gate"
    """Its prompt is asked in the exam."""
    OPINION = "opinion"
    """What was said of its reply is learnt from."""
    BOTH = "both"
    """Its prompt is learnt from, and what was said of its reply."""


class RunInteraction(Base):
    """Which interactions a run saw. Not a foreign key: the row outlives what retention deletes."""

    __tablename__ = "run_interactions"

    run_id: Mapped[str] = mapped_column(
        ForeignKey("adaptation_runs.id", ondelete="CASCADE"), primary_key=True
    )
    interaction_id: Mapped[str] = mapped_column(String(48), primary_key=True, index=True)
    owner: Mapped[str | None] = mapped_column(String(100), index=True)
    """The interaction's tenant, kept here because the interaction may be gone."""
    use: Mapped[str | None] = mapped_column(String(10))
    """For what: a value of :class:`Use`; null in rows of before."""


class RunEvent(Row):
    """A line of a run's history: a stage begun, a figure, an error."""

    __tablename__ = "run_events"
    __table_args__ = (Index("ix_run_events_run_id", "run_id"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("adaptation_runs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]]
