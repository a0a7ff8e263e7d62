"""Runs that somebody orders by hand: planned as a policy's are, and refused where those wait."""

from sqlalchemy.orm import Session

from server.core.errors import InvalidRequest, NoPrompts
from server.core.queue import Queue
from server.core.settings import Settings
from server.db import AdaptationRun, Adapter
from server.services import plans, policy_timing, runs
from server.services.plans import AUTO, Plan, Wish


def planned(session: Session, settings: Settings, adapter: Adapter, wish: Wish) -> Plan:
    """What an order comes to; its config is never None.

    Raises:
        InvalidRequest: no such method, or a value that it does not take.
        NoPrompts: there is no prompt, and no opinion on a reply, to learn from.
    """
    plan = plans.make(
        session,
        settings.learning,
        adapter,
        wish,
        new_documents=policy_timing.new_documents(session, adapter),
        max_rank=settings.engine.max_lora_rank,
    )
    found = plan.selection
    if plan.config is not None:
        return plan
    if wish.method != AUTO and found is not None and not (found.train or found.opinions):
        raise NoPrompts(adapter.name)
    rejected = " ".join(f"{name}: {why}" for name, why in plan.reason["rejected"].items())
    raise InvalidRequest(
        f"There is nothing to learn now. {plan.reason['why']} {rejected} Send more, or name a "
        "method and lower what it asks for (config.min_prompts).",
        "material" if wish.method != AUTO else "method",
    )


def queue(
    session: Session, adapter: Adapter, plan: Plan, *, requested_by: str, queue: Queue
) -> tuple[AdaptationRun, bool]:
    """Queue what was planned; the line's open run is returned instead, with False.

    Raises:
        NothingToLearn: it is of documents, and there is none.
        InvalidRequest: the line learns no such thing.
    """
    assert plan.config is not None
    is_of_documents = plan.material.kind == "documents"
    return runs.queue_run(
        session,
        adapter,
        method=plan.config.type,
        config=plan.config.model_dump(mode="json"),
        requested_by=requested_by,
        queue=queue,
        material={} if is_of_documents else plan.material.model_dump(mode="json"),
        reason=None if is_of_documents and not plan.reason["rejected"] else plan.reason,
    )
