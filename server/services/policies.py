"""Policies: when a method runs by itself."""

from datetime import datetime, timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from adapters.spec import METHOD_CONFIG, MethodConfig
from adapters.types import ItemKind
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
from server.services import documents, evaluations, promotion, runs, taint

NEW_DOCUMENTS = "new_documents"
HEALING = "healing"
"""Who asked for a run that heals, beside the policies of a line."""

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


def resolved_config(policy: AdaptationPolicy | None, default: MethodConfig) -> MethodConfig:
    """The policy's own config where it has one, the settings' otherwise; recorded by the run.

    A policy's config that names no ``type`` is of the settings' method.
    """
    if policy is None or not policy.config:
        return default
    return METHOD_CONFIG.validate_python({"type": default.type, **policy.config})


def queue_due_runs(
    session: Session, settings: LearningSettings, *, queue: Queue, now: datetime | None = None
) -> list[AdaptationRun]:
    """Start what is due: a line's owner has sent new documents, and none for a while; or, where
    nothing is new, its champion needs healing."""
    settled = (now or utc_now()) - timedelta(seconds=settings.quiet_s)
    enabled = session.execute(
        select(AdaptationPolicy, Adapter)
        .join(Adapter, Adapter.id == AdaptationPolicy.adapter_id)
        .where(AdaptationPolicy.is_enabled, AdaptationPolicy.trigger == NEW_DOCUMENTS)
    ).all()
    started = []
    for policy, adapter in enabled:
        newest = _newest_unseen(session, adapter)
        if newest is None and needs_healing(session, adapter, settings):
            config: MethodConfig = settings.heal
            asking = HEALING
        elif newest is None or newest > settled:
            continue
        else:
            config = resolved_config(policy, settings.chosen)
            asking = policy.name
        run, is_new = runs.queue_run(
            session,
            adapter,
            method=config.type,
            config=config.model_dump(mode="json"),
            requested_by=f"policy:{asking}",
            policy_id=policy.id,
            queue=queue,
        )
        if is_new:
            started.append(run)
    return started


def needs_healing(session: Session, adapter: Adapter, settings: LearningSettings) -> bool:
    """Whether what serves lost so much of the general suite in its exam that it is healed, once.

    It is compared with what served before it. A version that a deletion touches is not healed: it
    is on its way out.
    """
    champion = promotion.champion(session, adapter)
    if champion is None or not settings.heal_after_items:
        return False
    evaluation = evaluations.of_version(session, champion)
    if evaluation is None:
        return False
    lost = evaluations.net_loss(session, evaluation, kind=ItemKind.GENERAL)
    if lost < settings.heal_after_items or taint.is_tainted(session, champion):
        return False
    is_tried = exists().where(
        AdaptationRun.adapter_id == adapter.id,
        AdaptationRun.method == runs.HEAL,
        AdaptationRun.created_at >= champion.created_at,
    )
    return not session.scalar(select(is_tried)) and documents.has_documents(
        session, owner=adapter.owner
    )


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
