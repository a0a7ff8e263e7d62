"""When a policy is due: what has come since its last run, and what its conditions make of that."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session

from server.core.settings import LearningSettings
from server.db import (
    AdaptationPolicy,
    AdaptationRun,
    Adapter,
    AdapterVersion,
    Document,
    Prompt,
    RunDocument,
    RunEvent,
    VersionStatus,
)
from server.services import documents, experience, prompt_material, prompts, runs, taint
from server.services.experience import Window
from server.services.policy_rules import MaterialSpec, WhenSpec, has_fired

NEW_DOCUMENTS = "new_documents"
"""Trigger of the policy that every line has."""
CONDITIONS = "conditions"
"""Trigger of those that users have made."""


@dataclass(frozen=True, slots=True)
class News:
    """What has come since a policy's last run; of prompts, before any is left out."""

    documents: int = 0
    prompts: int = 0
    """Those sent for learning, and those of traffic."""
    judged: int = 0
    oldest: datetime | None = None
    newest_document: datetime | None = None

    @property
    def count(self) -> int:
        """All of it."""
        return self.documents + self.prompts + self.judged


@dataclass(frozen=True, slots=True)
class Due:
    """Whether a policy is due, and why or why not."""

    is_due: bool
    why: str
    has_fired: bool = False
    """Whether a moment of its schedule has come, which is over now."""


def news_of(session: Session, policy: AdaptationPolicy, adapter: Adapter, now: datetime) -> News:
    """What is new for a policy. Two counts; no text is read."""
    spec = MaterialSpec.model_validate(policy.material)
    found, first, last = 0, None, None
    if spec.kind == "documents" or (spec.kind == "all" and spec.tag is None):
        found, first, last = _unseen_documents(session, adapter)
    since = _since(session, policy, spec)
    oldest, until = prompt_material.window_of(spec, now)
    begin = max((moment for moment in (since, oldest) if moment is not None), default=None)
    moments = [first]
    asked = judged = 0
    if spec.kind in ("prompts", "all"):
        asked, moment = _new_prompts(session, adapter, spec, begin, until)
        moments.append(moment)
    if spec.kind in ("feedback", "all"):
        window = Window(spec.tag, begin, until, is_judged=True)
        judged, moment = experience.count_within(session, adapter, window)
        moments.append(moment)
    known = [moment for moment in moments if moment is not None]
    return News(found, asked, judged, min(known, default=None), last)


def is_due(
    session: Session,
    settings: LearningSettings,
    policy: AdaptationPolicy,
    adapter: Adapter,
    news: News,
    now: datetime,
) -> Due:
    """Whether a policy is to run now; reads, and changes nothing."""
    when = WhenSpec.model_validate(policy.conditions)
    if (hold := _held_back(session, policy, adapter, when, news, settings, now)) is not None:
        return Due(False, hold)
    fired = when.schedule is not None and has_fired(
        when.schedule, policy.checked_at or policy.created_at, now
    )
    if not news.count:
        return Due(False, "Nothing is new since its last run.", fired)
    met = _met(when, news, now)
    if fired:
        met.append(f"its schedule, {when.schedule}")
    has_conditions = (when.count, when.max_age_hours, when.schedule) != (None, None, None)
    if has_conditions and not met:
        return Due(False, f"{news.count} are new; none of its conditions is met.", fired)
    return Due(True, "; ".join([f"{news.count} new", *met]), fired)


def new_documents(session: Session, adapter: Adapter) -> int:
    """How many documents the line may learn that no run of it has taken."""
    return _unseen_documents(session, adapter)[0]


def last_run(session: Session, policy: AdaptationPolicy) -> AdaptationRun | None:
    """The last run whose material counts as seen.

    Not one that was broken off because some of it was deleted, nor one whose version is retired
    because of that: what else it had learnt is learnt again.
    """
    statement = select(AdaptationRun).where(
        AdaptationRun.policy_id == policy.id, ~_was_broken_off(), ~lost_its_version()
    )
    return session.scalar(statement.order_by(AdaptationRun.id.desc()).limit(1))


def _held_back(
    session: Session,
    policy: AdaptationPolicy,
    adapter: Adapter,
    when: WhenSpec,
    news: News,
    settings: LearningSettings,
    now: datetime,
) -> str | None:
    """Why it may not run now, whatever is new; None: it may."""
    settled = now - timedelta(seconds=settings.quiet_s)
    if news.newest_document is not None and news.newest_document > settled:
        return f"Documents are still coming; it waits until none came for {settings.quiet_s:g} s."
    if policy.cooldown_hours:
        newest = session.scalar(
            select(
                func.max(func.coalesce(AdaptationRun.finished_at, AdaptationRun.created_at))
            ).where(AdaptationRun.policy_id == policy.id)
        )
        if newest is not None and now < newest + timedelta(hours=policy.cooldown_hours):
            return f"Its last run ended less than {policy.cooldown_hours:g} hours ago."
    if when.idle_hours is not None:
        asked = experience.last_asked(session, adapter)
        if asked is not None and now < asked + timedelta(hours=when.idle_hours):
            return f"Somebody asked the line less than {when.idle_hours:g} hours ago."
    return None


def _met(when: WhenSpec, news: News, now: datetime) -> list[str]:
    met = []
    if when.count is not None and news.count >= when.count:
        met.append(f"at least {when.count}")
    if when.max_age_hours is not None and news.oldest is not None:
        waited = now - news.oldest
        if waited >= timedelta(hours=when.max_age_hours):
            met.append(f"the oldest has waited {when.max_age_hours:g} hours")
    return met


def _unseen_documents(
    session: Session, adapter: Adapter
) -> tuple[int, datetime | None, datetime | None]:
    """How many documents the line may learn and no run of it has taken; the oldest, the newest."""
    taken = (
        select(RunDocument.document_id)
        .join(AdaptationRun, AdaptationRun.id == RunDocument.run_id)
        .where(AdaptationRun.adapter_id == adapter.id, ~_was_broken_off())
    )
    created = Document.created_at
    row = session.execute(
        select(func.count(), func.min(created), func.max(created)).where(
            documents.is_learnable(adapter.owner), Document.id.not_in(taken)
        )
    ).one()
    return row[0], row[1], row[2]


def _new_prompts(
    session: Session,
    adapter: Adapter,
    spec: MaterialSpec,
    since: datetime | None,
    until: datetime,
) -> tuple[int, datetime | None]:
    """How many prompts to train on came in this time, and the first of them."""
    count = 0
    moments: list[datetime | None] = []
    if spec.sources != "traffic":
        found, first = session.execute(
            select(func.count(), func.min(Prompt.created_at)).where(
                prompt_material.is_learnable(adapter, spec, since, until),
                Prompt.split == prompts.TRAIN,
            )
        ).one()
        count += found
        moments.append(first)
    if spec.sources != "uploaded":
        found, moment = experience.count_within(session, adapter, Window(spec.tag, since, until))
        count += found
        moments.append(moment)
    return count, min((moment for moment in moments if moment is not None), default=None)


def _since(session: Session, policy: AdaptationPolicy, spec: MaterialSpec) -> datetime | None:
    """From when on material is new: when the last run took its own, less what was too young."""
    run = last_run(session, policy)
    if run is None:
        return None
    taken = session.scalar(
        select(RunEvent.created_at).where(
            RunEvent.run_id == run.id, RunEvent.kind == prompt_material.PROMPTS_TAKEN
        )
    )
    moment: datetime = taken or run.started_at or run.created_at
    return moment - timedelta(hours=spec.min_age_hours)


def _was_broken_off() -> ColumnElement[bool]:
    return exists().where(
        RunEvent.run_id == AdaptationRun.id, RunEvent.kind == runs.MATERIAL_DELETED
    )


def lost_its_version() -> ColumnElement[bool]:
    """The condition on a run that its version is retired because of a deletion."""
    return exists().where(
        AdapterVersion.run_id == AdaptationRun.id,
        AdapterVersion.status == VersionStatus.RETIRED,
        taint.has_seen_what_was_deleted(),
    )
