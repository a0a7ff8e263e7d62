"""Policies as users keep them: make, list, change, delete; each checked as a run would be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from adapters.spec import BudgetSpec
from server.core.clock import new_id
from server.core.errors import Conflict, InvalidRequest, RowNotFound
from server.core.settings import Settings
from server.db import AdaptationPolicy, AdaptationRun, Adapter, LineRole
from server.services import plans, policies, registry
from server.services import policy_timing as timing
from server.services.keys import Principal
from server.services.plans import Wish
from server.services.policy_rules import MaterialSpec, WhenSpec
from server.services.tenants import only, sees


@dataclass(frozen=True, slots=True)
class Draft:
    """All that a user says of a policy."""

    name: str
    method: str | None = None
    material: MaterialSpec | None = None
    when: WhenSpec = field(default_factory=WhenSpec)
    budget: BudgetSpec = field(default_factory=BudgetSpec)
    config: Mapping[str, Any] = field(default_factory=dict)
    is_enabled: bool = True
    cooldown_hours: float = 0.0


def create(
    session: Session, settings: Settings, adapter: Adapter, draft: Draft, *, actor: Principal
) -> AdaptationPolicy:
    """A new policy of a line.

    Raises:
        Conflict: the line has a policy of this name.
        InvalidRequest: it could never run; ``param`` names the field.
    """
    if adapter.role != LineRole.SERVE:
        raise InvalidRequest(
            f"{adapter.name} is the line of a task or an editor and learns nothing by itself; name "
            "another line.",
            "adapter",
        )
    session.get_one(Adapter, adapter.id, with_for_update=True)
    same = select(AdaptationPolicy.id).where(
        AdaptationPolicy.adapter_id == adapter.id, AdaptationPolicy.name == draft.name
    )
    if session.scalar(same) is not None:
        raise Conflict(
            f"{adapter.name} has a policy {draft.name!r} already; change that one, or choose "
            "another name."
        )
    policy = AdaptationPolicy(
        id=new_id("pol"), adapter_id=adapter.id, name=draft.name, trigger=timing.CONDITIONS
    )
    _fill(policy, settings, draft, actor)
    session.add(policy)
    session.flush()
    return policy


def change(
    session: Session,
    settings: Settings,
    policy: AdaptationPolicy,
    changes: Mapping[str, Any],
    *,
    actor: Principal,
) -> None:
    """Replace some fields of a policy, by the names of :class:`Draft`.

    Raises:
        InvalidRequest: it could never run then.
    """
    session.refresh(policy, with_for_update=True)
    kept = draft_of(policy)
    fields = {name: getattr(kept, name) for name in Draft.__dataclass_fields__}
    if "method" in changes and "material" not in changes:
        fields["material"] = _material_for(changes["method"], kept.material)
    _fill(policy, settings, Draft(**{**fields, **changes}), actor)
    policy.decision = None  # made by other rules
    session.flush()


def delete(session: Session, policy: AdaptationPolicy) -> None:
    """Forget a policy; its runs stay.

    Raises:
        Conflict: it is the line's own.
    """
    if policy.trigger == timing.NEW_DOCUMENTS:
        raise Conflict(
            f"{policy.name!r} is the line's own policy and stays; switch it off instead: "
            f"`everlearn policies update {policy.id} --disable`."
        )
    session.execute(
        update(AdaptationRun).where(AdaptationRun.policy_id == policy.id).values(policy_id=None)
    )
    session.delete(policy)


def get(session: Session, policy_id: str, *, tenant: str | None = None) -> AdaptationPolicy:
    """A policy of a line that is ``tenant``'s; None is the operator, who sees all.

    Raises:
        RowNotFound: no such policy, or another tenant's.
    """
    policy = session.get(AdaptationPolicy, policy_id)
    if policy is None or not sees(tenant, line_of(session, policy).owner):
        raise RowNotFound("policy", policy_id, "List them: `everlearn policies list`.")
    return policy


def listed(
    session: Session, *, tenant: str | None = None, adapter: str | None = None
) -> Sequence[AdaptationPolicy]:
    """Those of ``tenant``'s lines, by line and age; optionally of one line.

    Raises:
        ModelNotFound: there is no such line.
    """
    statement = select(AdaptationPolicy).join(Adapter).where(only(Adapter.owner, tenant))
    if adapter is not None:
        line = registry.own_adapter(session, adapter, tenant=tenant)
        statement = statement.where(AdaptationPolicy.adapter_id == line.id)
    ordered = statement.order_by(Adapter.name, AdaptationPolicy.created_at, AdaptationPolicy.id)
    return session.scalars(ordered).all()


def line_of(session: Session, policy: AdaptationPolicy) -> Adapter:
    """The line that a policy teaches."""
    return session.get_one(Adapter, policy.adapter_id)


def latest_run(session: Session, policy: AdaptationPolicy) -> AdaptationRun | None:
    """Its newest run, however that ended."""
    return session.scalar(
        select(AdaptationRun)
        .where(AdaptationRun.policy_id == policy.id)
        .order_by(AdaptationRun.id.desc())
        .limit(1)
    )


def draft_of(policy: AdaptationPolicy) -> Draft:
    """What a stored policy says."""
    return Draft(
        name=policy.name,
        method=policy.method,
        material=MaterialSpec.model_validate(policy.material),
        when=WhenSpec.model_validate(policy.conditions),
        budget=BudgetSpec.model_validate(policy.budget),
        config=policy.config,
        is_enabled=policy.is_enabled,
        cooldown_hours=policy.cooldown_hours,
    )


def _material_for(method: str | None, kept: MaterialSpec | None) -> MaterialSpec | None:
    """The material of a policy whose method is changed and whose material is not."""
    kind = plans.kind_of(method) if method is not None else None
    if kept is None or kind is None:
        return kept
    return kept.model_copy(update={"kind": kind})


def _fill(policy: AdaptationPolicy, settings: Settings, draft: Draft, actor: Principal) -> None:
    config = dict(draft.config)
    named = config.pop("type", None) if policy.trigger == timing.NEW_DOCUMENTS else None
    wish = Wish(draft.method or named, draft.material, config, draft.budget)
    _, material = plans.completed(wish, settings.learning.chosen.type)
    plans.check(settings.learning, wish, max_rank=settings.engine.max_lora_rank)
    if policy.trigger == timing.NEW_DOCUMENTS and material.kind != "documents":
        raise InvalidRequest(
            f"{policies.DEFAULT!r} is the line's own policy and learns documents; make another "
            "policy for prompts and feedback: `everlearn policies create`.",
            "material.kind",
        )
    policy.method = draft.method
    policy.material = material.model_dump(mode="json", exclude_defaults=True) | {
        "kind": material.kind
    }
    policy.conditions = draft.when.model_dump(mode="json", exclude_none=True)
    policy.budget = draft.budget.model_dump(mode="json", exclude_none=True)
    policy.config = dict(draft.config)
    policy.is_enabled = draft.is_enabled
    policy.cooldown_hours = draft.cooldown_hours
    policy.name = draft.name
    policy.changed_by = actor.label
