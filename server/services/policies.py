"""Policies: when a method runs by itself."""

from datetime import datetime, timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from adapters.spec import SealConfig
from server.core.clock import new_id, utc_now
from server.core.queue import INGEST_DOCUMENT, Queue
from server.core.settings import LearningSettings
from server.db import (
    AdaptationPolicy,
    AdaptationRun,
    Adapter,
    Document,
    DocumentState,
    RunDocument,
    RunEvent,
)
from server.db.session import after_commit
from server.services import documents, runs

NEW_DOCUMENTS = "new_documents"

_INGEST_GRACE = timedelta(seconds=5)


def ensure_default_policy(session: Session, adapter: Adapter, *, is_enabled: bool) -> None:
    """The row that makes a new line learn its documents without being asked."""
    policy = session.scalar(
        select(AdaptationPolicy).where(
            AdaptationPolicy.adapter_id == adapter.id, AdaptationPolicy.name == "documents"
        )
    )
    if policy is None:
        policy = AdaptationPolicy(
            id=new_id("pol"),
            adapter_id=adapter.id,
            name="documents",
            trigger=NEW_DOCUMENTS,
            config={},
        )
        session.add(policy)
    policy.is_enabled = is_enabled


def resolved_config(policy: AdaptationPolicy | None, default: SealConfig) -> SealConfig:
    """The policy's own config where it has one, the settings' otherwise; recorded by the run."""
    return SealConfig.model_validate(policy.config) if policy and policy.config else default


def queue_due_runs(
    session: Session, settings: LearningSettings, *, queue: Queue, now: datetime | None = None
) -> list[AdaptationRun]:
    """Start what is due: a line's owner has sent new documents, and none for a while."""
    settled = (now or utc_now()) - timedelta(seconds=settings.quiet_s)
    enabled = session.execute(
        select(AdaptationPolicy, Adapter)
        .join(Adapter, Adapter.id == AdaptationPolicy.adapter_id)
        .where(AdaptationPolicy.is_enabled, AdaptationPolicy.trigger == NEW_DOCUMENTS)
    ).all()
    started = []
    for policy, adapter in enabled:
        newest = _newest_unseen(session, adapter)
        if newest is None or newest > settled:
            continue
        config = resolved_config(policy, settings.seal)
        run, is_new = runs.queue_run(
            session,
            adapter,
            method=config.type,
            config=config.model_dump(mode="json"),
            requested_by=f"policy:{policy.name}",
            policy_id=policy.id,
            queue=queue,
        )
        if is_new:
            started.append(run)
    return started


def _newest_unseen(session: Session, adapter: Adapter) -> datetime | None:
    """When the newest document came that the line may learn and no run of it has taken."""
    was_broken_off = exists().where(
        RunEvent.run_id == AdaptationRun.id, RunEvent.kind == runs.MATERIAL_DELETED
    )
    taken = (
        select(RunDocument.document_id)
        .join(AdaptationRun, AdaptationRun.id == RunDocument.run_id)
        .where(AdaptationRun.adapter_id == adapter.id, ~was_broken_off)
    )
    return session.scalar(
        select(func.max(Document.created_at)).where(
            documents.is_learnable(adapter.owner), Document.id.not_in(taken)
        )
    )


def resend_ingests(session: Session, *, queue: Queue, now: datetime | None = None) -> None:
    """Send the message of every document again that has waited too long to be chunked."""
    waiting = session.scalars(
        select(Document.id).where(
            Document.state == DocumentState.RECEIVED,
            Document.created_at < (now or utc_now()) - _INGEST_GRACE,
        )
    )
    for document_id in waiting:
        after_commit(
            session,
            lambda document_id=document_id: queue.send(INGEST_DOCUMENT, document_id),  # type: ignore[misc]
        )
