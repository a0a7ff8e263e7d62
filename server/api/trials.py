"""/api/v1/adapters/NAME/trial: a version beside the champion, and a person's yes or no."""

from fastapi import APIRouter
from sqlalchemy.orm import Session

from server.api.deps import Admin, Read, RequestId, RuntimeDep
from server.api.schemas.adapters import ApprovalBody, TrialBody, TrialView
from server.api.schemas.base import Listing, Text
from server.api.views import trial_view
from server.core.errors import NoTrialWaits, RowNotFound
from server.db import Adapter, Trial
from server.services import audit, registry, trials
from server.services.tenants import sees

router = APIRouter(prefix="/adapters/{name}", tags=["trials"])


@router.post("/trial", status_code=201, responses={400: {}, 403: {}, 404: {}, 409: {}})
async def start_trial(
    name: Text, body: TrialBody, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> TrialView:
    """Try a version on live traffic, once the engine holds it; the judge ends it, or an admin."""

    def choose(session: Session) -> int:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        version = trials.challenger_of(session, adapter, body.version, force=body.force)
        trials.assert_none_open(session, adapter)
        return version.number

    number = await runtime.database.read(choose)
    await runtime.ensure_servable(name, number)

    def start(session: Session) -> TrialView:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        version = trials.challenger_of(session, adapter, number, force=body.force)
        config = trials.config_of(adapter, runtime.settings.rollout)
        trial = trials.start(
            session,
            adapter,
            version,
            mode=body.mode,
            share=config.share if body.share is None else body.share,
            actor=actor.label,
            reason=body.reason,
            config=config,
        )
        view = trial_view(session, adapter, trial)
        detail = {"version": view.version, "mode": view.mode, "share": view.share}
        audit.record(
            session,
            actor,
            "trial.start",
            name,
            {**detail, "force": body.force},
            request_id,
            owner=adapter.owner,
        )
        return view

    view = await runtime.database.run(start)
    await runtime.refresh()
    return view


@router.get("/trial", responses={404: {}})
async def get_trial(name: Text, runtime: RuntimeDep, actor: Read) -> TrialView:
    """The trial that runs or waits, with what the judge has seen."""

    def read(session: Session) -> TrialView:
        adapter = _line(session, name, actor.owner)
        return trial_view(session, adapter, _open(session, adapter))

    return await runtime.database.read(read)


@router.get("/trials", responses={404: {}})
async def list_trials(name: Text, runtime: RuntimeDep, actor: Read) -> Listing:
    """The line's trials, newest first; of everybody's lines, a tenant sees none."""

    def read(session: Session) -> list[TrialView]:
        adapter = _line(session, name, actor.owner)
        return [trial_view(session, adapter, trial) for trial in trials.trials_of(session, adapter)]

    return Listing(data=await runtime.database.read(read))


@router.delete("/trial", responses={403: {}, 404: {}})
async def abort_trial(
    name: Text, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> TrialView:
    """End the trial without a promotion: also the no to one that waits. The version stays."""

    def abort(session: Session) -> TrialView:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        trial = _open(session, adapter)
        trials.abort(session, trial, actor=actor.label, reason="ended by an admin")
        view = trial_view(session, adapter, trial)
        detail = {"version": view.version}
        audit.record(session, actor, "trial.abort", name, detail, request_id, owner=adapter.owner)
        return view

    view = await runtime.database.run(abort)
    await runtime.refresh()
    return view


@router.post("/trial/approve", responses={400: {}, 403: {}, 404: {}, 409: {}})
async def approve_trial(
    name: Text, body: ApprovalBody, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> TrialView:
    """The yes to a trial that waits: its version serves when this returns."""

    def waiting(session: Session) -> int:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        trial = trials.waiting_trial_of(session, adapter)
        return registry.by_id(session, trial.version_id).number

    number = await runtime.database.read(waiting)
    await runtime.ensure_servable(name, number)

    def approve(session: Session) -> TrialView:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        trial = trials.waiting_trial_of(session, adapter)
        if registry.by_id(session, trial.version_id).number != number:
            raise NoTrialWaits(name, f"that of v{number} was followed by another meanwhile")
        trials.approve(session, trial, actor=actor.label, reason=body.reason)
        view = trial_view(session, adapter, trial)
        detail = {"version": view.version}
        audit.record(session, actor, "trial.approve", name, detail, request_id, owner=adapter.owner)
        return view

    view = await runtime.database.run(approve)
    await runtime.refresh()
    return view


def _line(session: Session, name: str, tenant: str | None) -> Adapter:
    """A line whose trials this tenant may see: its own."""
    adapter = registry.get_adapter(session, name, tenant=tenant)
    if not sees(tenant, adapter.owner):
        raise RowNotFound("trial", name, "Trials of everybody's line are the operator's to see.")
    return adapter


def _open(session: Session, adapter: Adapter) -> Trial:
    trial = trials.open_trial_of(session, adapter)
    if trial is None:
        raise RowNotFound(
            "trial", adapter.name, f"Start one: `everlearn trial start {adapter.name}`."
        )
    return trial
