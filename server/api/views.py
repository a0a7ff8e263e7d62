"""From rows to the response models: reads only, sync, inside the caller's transaction."""

from typing import Any

from sqlalchemy.orm import Session

from server.api.schemas.adapters import AdapterView, AliasEventView, SignalView, TrialView
from server.api.schemas.deletions import DeletionDetail, DeletionView
from server.api.schemas.documents import DocumentView, FindingView
from server.api.schemas.feedback import FeedbackView
from server.api.schemas.interactions import InteractionDetail, InteractionView
from server.api.schemas.keys import AuditEventView, KeyView
from server.api.schemas.policies import DryRunView, PolicyView
from server.api.schemas.prompts import PromptView
from server.api.schemas.runs import ReportView, RunView
from server.api.schemas.tasks import TaskView
from server.api.schemas.versions import LineageView, VersionDetail, VersionView
from server.core.settings import LearningSettings
from server.db import (
    AdaptationPolicy,
    AdaptationRun,
    Adapter,
    AdapterVersion,
    AliasEvent,
    ApiKey,
    AuditEvent,
    Deletion,
    Document,
    Feedback,
    Interaction,
    Prompt,
    Task,
    Trial,
)
from server.engine.routing import CHAMPION
from server.services import (
    audit,
    deletions,
    documents,
    evaluations,
    feedback,
    messages,
    policies,
    policy_rows,
    promotion,
    prompts,
    registry,
    reports,
    runs,
    task_lines,
    tasks,
    trials,
)
from server.services.policies import DryRun
from server.services.policy_rules import MaterialSpec
from server.services.tenants import sees

_EXAMPLES = 10
"""Ids that a dry run names."""


def document_view(session: Session, document: Document) -> DocumentView:
    chunks, questions = documents.counts(session, document.id)
    seen_by = [
        registry.version_name(_adapter_name(session, version), version.number)
        for version in documents.versions_that_saw(session, document.id)
    ]
    return DocumentView(
        id=document.id,
        owner=document.owner,
        title=document.title or document.filename or "Untitled",
        filename=document.filename,
        media_type=document.media_type,
        state=document.state,
        error=document.error,
        language=document.language,
        findings=[FindingView(**finding) for finding in document.findings or ()],
        released_at=document.released_at,
        near_duplicate_of=document.near_duplicate_of,
        replaced_by=documents.replaced_by(session, document.id),
        content_hash=document.content_hash,
        size_bytes=document.size_bytes,
        chunks=chunks,
        exam_questions=questions,
        versions=seen_by,
        created_at=document.created_at,
        deleted_at=document.deleted_at,
    )


def task_view(session: Session, task: Task) -> TaskView:
    return TaskView(
        id=task.id,
        owner=task.owner,
        title=task.title,
        form=task.form,
        state=task.state,
        adapter=task_lines.line_name(task.id),
        example_count=len(task.examples),
        test_count=len(task.tests),
        versions=[
            registry.version_name(_adapter_name(session, version), version.number)
            for version in tasks.versions_that_saw(session, task.id)
        ],
        created_at=task.created_at,
        deleted_at=task.deleted_at,
    )


def prompt_view(session: Session, prompt: Prompt) -> PromptView:
    return PromptView(
        id=prompt.id,
        owner=prompt.owner,
        messages=prompt.messages,
        answers=prompt.answers,
        tests=prompt.tests,
        tag=prompt.tag,
        split=prompt.split,
        versions=[
            registry.version_name(_adapter_name(session, version), version.number)
            for version in prompts.versions_that_saw(session, prompt.id)
        ],
        created_at=prompt.created_at,
        deleted_at=prompt.deleted_at,
    )


def policy_view(
    session: Session, policy: AdaptationPolicy, learning: LearningSettings
) -> PolicyView:
    draft = policy_rows.draft_of(policy)
    latest = policy_rows.latest_run(session, policy)
    return PolicyView(
        id=policy.id,
        name=policy.name,
        adapter=policy_rows.line_of(session, policy).name,
        method=policies.wish_of(policy, learning).method or "",
        material=MaterialSpec.model_validate(policy.material).model_dump(mode="json"),
        when=draft.when.model_dump(mode="json"),
        budget=draft.budget.model_dump(mode="json"),
        config=policy.config,
        is_enabled=policy.is_enabled,
        cooldown_hours=policy.cooldown_hours,
        decision=policy.decision,
        last_run=latest and latest.id,
        changed_by=policy.changed_by,
        created_at=policy.created_at,
    )


def dry_run_view(found: DryRun) -> DryRunView:
    plan, taken = found.plan, found.plan.selection
    chosen = [*taken.train, *taken.opinions] if taken is not None else []
    is_run = plan.config is not None
    return DryRunView(
        is_due=found.is_due,
        when=found.when,
        new=found.new,
        method=plan.config.type if plan.config is not None else None,
        why=plan.reason["why"],
        rejected=plan.reason["rejected"],
        config=plan.config.model_dump(mode="json") if plan.config is not None else None,
        documents=found.documents if is_run and taken is None else 0,
        train=len(taken.train) if taken is not None else 0,
        held_out=len(taken.held_out) if taken is not None else 0,
        opinions=len(taken.opinions) if taken is not None else 0,
        left_out=taken.left_out if taken is not None else {},
        examples=[each.prompt.id for each in chosen[:_EXAMPLES]],
        generations=plan.generations,
    )


def deletion_view(session: Session, deletion: Deletion) -> DeletionView:
    return DeletionView(
        id=deletion.id,
        kind=deletion.kind,
        target=deletion.target,
        owner=deletion.owner,
        state=deletion.state,
        is_rebuild=deletion.is_rebuild,
        versions=deletions.version_names(session, deletion),
        runs=deletion.run_ids,
        reason=deletion.reason,
        actor=deletion.actor,
        created_at=deletion.created_at,
        finished_at=deletion.finished_at,
    )


def deletion_detail(session: Session, deletion: Deletion) -> DeletionDetail:
    return DeletionDetail(
        **deletion_view(session, deletion).model_dump(),
        chain=[audit_view(event) for event in audit.chain_of(session, deletion.id)],
    )


def audit_view(event: AuditEvent) -> AuditEventView:
    return AuditEventView.model_validate(event, from_attributes=True)


def interaction_view(row: Interaction) -> InteractionView:
    return InteractionView(
        id=row.id,
        completion_id=row.completion_id,
        created_at=row.created_at,
        key_id=row.key_id,
        owner=row.owner,
        endpoint=row.endpoint,
        requested_model=row.requested_model,
        adapter=row.adapter,
        version=row.version,
        arm=row.arm,
        shadow_of=row.shadow_of,
        is_stream=row.is_stream,
        conversation_id=row.conversation_id,
        reply=row.reply,
        finish_reason=row.finish_reason,
        outcome=row.outcome,
        status=row.status,
        error=row.error,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        first_byte_ms=row.first_byte_ms,
        duration_ms=row.duration_ms,
        may_learn=row.may_learn,
        split=row.split,
        task=row.task_tag,
        end_user=row.end_user,
        redacted_at=row.redacted_at,
    )


def interaction_detail(session: Session, row: Interaction) -> InteractionDetail:
    return InteractionDetail(
        **interaction_view(row).model_dump(),
        messages=messages.prompt_messages(session, row),
        request=messages.split_prompt(row.endpoint, row.request)[0],
        choices=row.choices,
        tokens=row.tokens,
        feedback=[
            feedback_view(found) for found in feedback.feedback_of(session, [row.id])[row.id]
        ],
    )


def feedback_view(row: Feedback) -> FeedbackView:
    return FeedbackView(
        id=row.id,
        completion_id=row.completion_id,
        interaction_id=row.interaction_id,
        kind=row.kind,
        choice=row.choice,
        value=row.value,
        created_at=row.created_at,
    )


def run_view(session: Session, run: AdaptationRun) -> RunView:
    adapter = session.get_one(Adapter, run.adapter_id)
    version = registry.version_of_run(session, run.id)
    return RunView(
        id=run.id,
        adapter=adapter.name,
        kind=run.kind,
        rebuilds=registry.name_by_id(session, adapter, run.rebuilds) if run.rebuilds else None,
        method=run.method,
        status=run.status,
        stage=run.stage,
        done=run.done,
        total=run.total,
        attempt=run.attempt,
        verdict=run.verdict,
        version=version and registry.version_name(adapter.name, version.number),
        documents=runs.documents_of(session, run.id),
        tasks=runs.tasks_of(session, run.id),
        prompts=runs.prompts_of(session, run.id),
        interactions=len(runs.interactions_of(session, run.id)),
        material=run.material,
        reason=run.reason,
        report=run.report,
        error=run.error,
        requested_by=run.requested_by,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
    )


def report_view(session: Session, run: AdaptationRun) -> ReportView:
    exam, questions = reports.exam_of(session, run)
    adapter = session.get_one(Adapter, run.adapter_id)
    version = registry.version_of_run(session, run.id)
    ancestry = registry.ancestry(session, version) if version is not None else []
    return ReportView(
        run=run_view(session, run),
        config=run.config,
        exam=exam,
        questions=questions,
        lineage=[_step(session, adapter, step) for step in ancestry],
    )


def adapter_view(session: Session, adapter: Adapter, *, tenant: str | None = None) -> AdapterView:
    """A line as ``tenant`` may see it: of a line that is not its own, only who serves and may."""
    trial = trials.open_trial_of(session, adapter)
    names = {
        name: registry.version_name(adapter.name, version.number if version else None)
        for name, version in registry.aliases_of(session, adapter).items()
    }
    is_own = sees(tenant, adapter.owner)
    versions = [
        version_view(session, adapter, version)
        for version in registry.versions_of(session, adapter)
    ]
    return AdapterView(
        name=adapter.name,
        owner=adapter.owner,
        role=adapter.role,
        base_model=adapter.base_model,
        base_hash=adapter.base_hash,
        champion=names[CHAMPION],
        revision=promotion.champion_revision(session, adapter),
        aliases=names,
        versions=versions if is_own else [_without_material(view) for view in versions],
        events=[
            event_view(session, adapter, event)
            for event in (registry.events_of(session, adapter) if is_own else ())
        ],
        trial=trial_view(session, adapter, trial) if trial is not None and is_own else None,
        rollout=adapter.rollout if is_own else None,
    )


def trial_view(session: Session, adapter: Adapter, trial: Trial) -> TrialView:
    evidence = trial.evidence
    return TrialView(
        id=trial.id,
        version=registry.name_by_id(session, adapter, trial.version_id),
        champion=registry.name_by_id(session, adapter, trial.champion_version_id),
        mode=trial.mode,
        state=trial.state,
        share=trial.share,
        started_by=trial.started_by,
        reason=trial.reason,
        created_at=trial.created_at,
        judged_at=trial.judged_at,
        replies=evidence.get("replies", 0),
        verdict=evidence.get("verdict"),
        evidence={
            name: SignalView.model_validate(found)
            for name, found in evidence.get("signals", {}).items()
        },
        ended_at=trial.ended_at,
        ended_by=trial.ended_by,
        outcome=trial.outcome,
    )


def version_view(session: Session, adapter: Adapter, version: AdapterVersion) -> VersionView:
    evaluation = evaluations.of_version(session, version)
    return VersionView(
        name=registry.version_name(adapter.name, version.number),
        number=version.number,
        status=version.status,
        parent=registry.name_by_id(session, adapter, version.parent_id),
        generation=version.generation,
        engine_name=registry.engine_name(adapter.name, version),
        run_id=version.run_id,
        documents=sorted(registry.documents_of(session, version)),
        prompts=len(registry.prompts_of(session, version)),
        interactions=len(registry.interactions_of(session, version)),
        exam=evaluation and evaluation.decision,
        origin=version.origin,
        created_at=version.created_at,
        retired_at=version.retired_at,
        retire_reason=version.retire_reason,
        files_removed_at=version.files_removed_at,
    )


def version_detail(
    session: Session, adapter: Adapter, version: AdapterVersion, *, tenant: str | None = None
) -> VersionDetail:
    """One version with its manifest and its way back to the base, as ``tenant`` may see it."""
    is_own = sees(tenant, adapter.owner)
    view = version_view(session, adapter, version)
    aliases = registry.aliases_of(session, adapter)
    steps = [_step(session, adapter, step) for step in registry.ancestry(session, version)]
    return VersionDetail(
        **(view if is_own else _without_material(view)).model_dump(),
        adapter=adapter.name,
        aliases=[name for name, at in aliases.items() if at is not None and at.id == version.id],
        digest=version.digest,
        manifest=version.manifest if is_own else None,
        lineage=steps if is_own else [_step_without_material(step) for step in steps],
    )


def _step(session: Session, adapter: Adapter, version: AdapterVersion | None) -> LineageView:
    if version is None:
        return LineageView(
            name=registry.version_name(adapter.name, None),
            status=None,
            origin=None,
            run_id=None,
            verdict=None,
            documents=None,
            prompts=None,
            created_at=None,
        )
    evaluation = evaluations.of_version(session, version)
    return LineageView(
        name=registry.version_name(adapter.name, version.number),
        status=version.status,
        origin=version.origin,
        run_id=version.run_id,
        verdict=evaluation and evaluation.verdict,
        documents=len(registry.documents_of(session, version)),
        prompts=len(registry.prompts_of(session, version))
        + len(registry.interactions_of(session, version)),
        created_at=version.created_at,
    )


def _step_without_material(step: LineageView) -> LineageView:
    return step.model_copy(
        update={"run_id": None, "verdict": None, "documents": None, "prompts": None}
    )


def event_view(session: Session, adapter: Adapter, event: AliasEvent) -> AliasEventView:
    return AliasEventView(
        kind=event.kind,
        alias=event.alias,
        from_version=registry.name_by_id(session, adapter, event.from_version_id),
        to_version=registry.name_by_id(session, adapter, event.to_version_id),
        actor=event.actor,
        reason=event.reason,
        is_forced=event.is_forced,
        revision=event.revision,
        created_at=event.created_at,
    )


def key_view(key: ApiKey) -> KeyView:
    return KeyView.model_validate(key, from_attributes=True)


def _without_material(view: VersionView) -> VersionView:
    """What every tenant may know of a version: its names and whether it serves."""
    hidden: dict[str, Any] = {
        "documents": [],
        "prompts": 0,
        "interactions": 0,
        "exam": None,
        "run_id": None,
        "retire_reason": None,
    }
    return view.model_copy(update=hidden)


def _adapter_name(session: Session, version: AdapterVersion) -> str:
    return session.get_one(Adapter, version.adapter_id).name
