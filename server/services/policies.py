"""Policies: which method runs by itself, on what, and when."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from adapters.spec import BudgetSpec, MethodConfig
from adapters.types import ItemKind
from server.core.clock import new_id, utc_now
from server.core.errors import InvalidRequest
from server.core.queue import INGEST_DOCUMENT, Queue
from server.core.settings import LearningSettings
from server.db import (
    AdaptationPolicy,
    AdaptationRun,
    Adapter,
    Document,
    DocumentState,
)
from server.db.session import after_commit
from server.services import documents, evaluations, methods, plans, promotion, runs, taint
from server.services import policy_timing as timing
from server.services.plans import Plan, Wish
from server.services.policy_rules import MaterialSpec
from server.services.policy_timing import News

DEFAULT = "documents"
"""The name of the policy that every line has."""

HEALING = "healing"
"""Who asked for a run that heals, beside the policies of a line."""

_INGEST_GRACE = timedelta(seconds=5)
_DECIDE_AGAIN = timedelta(minutes=1)
"""Looking at prompts costs a second or so; a policy that found nothing to do waits this long."""


def ensure_default_policy(session: Session, adapter: Adapter, *, is_enabled: bool) -> None:
    """The row that makes a new line learn its documents without being asked.

    Once somebody has changed it, the settings no longer say whether it is enabled.
    """
    policy = session.scalar(
        select(AdaptationPolicy).where(
            AdaptationPolicy.adapter_id == adapter.id, AdaptationPolicy.name == DEFAULT
        )
    )
    if policy is None:
        policy = AdaptationPolicy(
            id=new_id("pol"),
            adapter_id=adapter.id,
            name=DEFAULT,
            trigger=timing.NEW_DOCUMENTS,
            config={},
        )
        session.add(policy)
    if policy.changed_by is None:
        policy.is_enabled = is_enabled


def resolved_config(policy: AdaptationPolicy | None, settings: LearningSettings) -> MethodConfig:
    """The config by which a policy learns documents: the settings', as far as it says nothing else.

    Raises:
        InvalidRequest: it says what no method takes any more.
    """
    if policy is None:
        return settings.chosen
    overrides = dict(policy.config)
    name = overrides.pop("type", None) or policy.method
    if name == plans.AUTO:  # which takes the settings' method for documents
        name, overrides = None, dict(overrides.get(settings.chosen.type, {}))
    return methods.config_of(settings, name, methods.within(policy.budget, overrides))


def wish_of(policy: AdaptationPolicy, settings: LearningSettings) -> Wish:
    """What a policy wants learnt."""
    material = MaterialSpec.model_validate(policy.material)
    overrides = dict(policy.config)
    named = overrides.pop("type", None)  # as rows of old name their method
    is_of_documents = material.kind == "documents"
    method = policy.method or named or (settings.chosen.type if is_of_documents else plans.AUTO)
    return Wish(method, material, overrides, BudgetSpec.model_validate(policy.budget))


def queue_due_runs(
    session: Session,
    settings: LearningSettings,
    *,
    queue: Queue,
    now: datetime | None = None,
    max_rank: int | None = None,
) -> list[AdaptationRun]:
    """Start what is due, one run for a line at a time: of each line the oldest policy that is due.

    A line's own policy is due when its owner has sent new documents, and none for a while; or,
    where nothing is new, when its champion needs healing.
    """
    moment = now or utc_now()
    enabled = session.execute(
        select(AdaptationPolicy, Adapter)
        .join(Adapter, Adapter.id == AdaptationPolicy.adapter_id)
        .where(AdaptationPolicy.is_enabled)
        .order_by(AdaptationPolicy.created_at, AdaptationPolicy.id)
    ).all()
    started = []
    for policy, adapter in enabled:
        if runs.is_learning(session, adapter):
            continue
        try:
            run = _start(session, settings, policy, adapter, queue, moment, max_rank)
        except InvalidRequest as refused:  # written under other settings, or nothing is left
            _decide(policy, moment, None, None, {"why": refused.message, "rejected": {}})
            continue
        if run is not None:
            started.append(run)
    return started


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a policy would do now."""

    is_due: bool
    when: str
    """Why it is due, or why not."""
    new: int
    """Pieces of material since its last run."""
    documents: int
    """Documents among them."""
    plan: Plan


def dry_run(
    session: Session,
    settings: LearningSettings,
    policy: AdaptationPolicy,
    *,
    now: datetime | None = None,
    max_rank: int | None = None,
) -> DryRun:
    """What a policy would learn now, due or not; changes nothing.

    Raises:
        InvalidRequest: its config was written under other settings, and is not taken any more.
    """
    adapter = session.get_one(Adapter, policy.adapter_id)
    moment = now or utc_now()
    news = timing.news_of(session, policy, adapter, moment)
    due = timing.is_due(session, settings, policy, adapter, news, moment)
    plan = plans.make(
        session,
        settings,
        adapter,
        wish_of(policy, settings),
        new_documents=news.documents,
        max_rank=max_rank,
    )
    return DryRun(due.is_due, due.why, news.count, news.documents, plan)


def _start(
    session: Session,
    settings: LearningSettings,
    policy: AdaptationPolicy,
    adapter: Adapter,
    queue: Queue,
    now: datetime,
    max_rank: int | None,
) -> AdaptationRun | None:
    """The run that a policy begins now; None where it is not due, or finds nothing to do."""
    news = timing.news_of(session, policy, adapter, now)
    is_own = policy.trigger == timing.NEW_DOCUMENTS
    if is_own and not news.count and needs_healing(session, adapter, settings):
        return _queue(
            session, adapter, policy, Plan(settings.heal, MaterialSpec(), {}), HEALING, queue
        )
    due = timing.is_due(session, settings, policy, adapter, news, now)
    if due.has_fired:
        policy.checked_at = now
    if not due.is_due or _has_decided(policy, news, now):
        return None
    wish = wish_of(policy, settings)
    plan = plans.make(
        session, settings, adapter, wish, new_documents=news.documents, max_rank=max_rank
    )
    _decide(policy, now, news, plan.config, plan.reason)
    if plan.config is None:
        return None
    return _queue(session, adapter, policy, plan, policy.name, queue)


def _queue(
    session: Session,
    adapter: Adapter,
    policy: AdaptationPolicy,
    plan: Plan,
    asking: str,
    queue: Queue,
) -> AdaptationRun | None:
    assert plan.config is not None
    is_of_documents = plan.material.kind == "documents"
    run, is_new = runs.queue_run(
        session,
        adapter,
        method=plan.config.type,
        config=plan.config.model_dump(mode="json"),
        requested_by=f"policy:{asking}",
        policy_id=policy.id,
        material={} if is_of_documents else plan.material.model_dump(mode="json"),
        reason=plan.reason or None,
        queue=queue,
    )
    return run if is_new else None


def _has_decided(policy: AdaptationPolicy, news: News, now: datetime) -> bool:
    """Whether it found nothing to do in the very same material, or only just now."""
    last = policy.decision
    if last is None or last["method"] is not None:
        return False
    return last["new"] == news.count or now < datetime.fromisoformat(last["at"]) + _DECIDE_AGAIN


def _decide(
    policy: AdaptationPolicy,
    now: datetime,
    news: News | None,
    config: MethodConfig | None,
    reason: dict[str, Any],
) -> None:
    policy.decision = {
        "at": now.isoformat(),
        "new": news.count if news is not None else 0,
        "method": config.type if config is not None else None,
        **reason,
    }


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
