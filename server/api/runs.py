"""/api/v1/runs: what is being learnt, live; start one by hand, stop one."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from sqlalchemy.orm import Session

from adapters.spec import SealEditorConfig
from server.api.deps import Admin, Read, ReadOrIngest, RequestId, RuntimeDep
from server.api.report_page import render_report
from server.api.schemas.base import Listing, Text
from server.api.schemas.runs import ReportView, RunBody, RunView
from server.api.views import report_view, run_view
from server.runtime import Runtime
from server.services import audit, editing, orders, registry, runs
from server.services.plans import Plan, Wish

router = APIRouter(prefix="/runs", tags=["runs"])

_POLL_S = 0.5


@router.post("", status_code=202, responses={200: {"model": RunView}, 400: {}, 403: {}, 404: {}})
async def start_run(
    body: RunBody, response: Response, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> RunView:
    """Learn all documents of the line's owner now; a run that is open already is returned with 200.

    ``method`` and ``config`` choose how, ``material`` from what; ``heal`` learns nothing new, and
    ``auto`` chooses a method by what there is.
    """
    name = body.adapter or runtime.settings.model.name

    def plan_it(session: Session) -> Plan:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        wish = Wish(body.method, body.material, body.config)
        return orders.planned(session, runtime.settings, adapter, wish)

    plan = await runtime.read_aside(plan_it)

    def start(session: Session) -> tuple[RunView, bool]:
        adapter = registry.own_adapter(session, name, tenant=actor.owner)
        if isinstance(plan.config, SealEditorConfig):
            run, is_new = editing.queue_editor_run(
                session, adapter, plan.config, requested_by=actor.label, queue=runtime.queue
            )
        else:
            run, is_new = orders.queue(
                session, adapter, plan, requested_by=actor.label, queue=runtime.queue
            )
        if is_new:
            detail = {"adapter": adapter.name, "method": run.method}
            audit.record(
                session, actor, "run.start", run.id, detail, request_id, owner=adapter.owner
            )
        return run_view(session, run), is_new

    view, is_new = await runtime.database.run(start)
    response.status_code = 202 if is_new else 200
    return view


@router.get("")
async def list_runs(
    runtime: RuntimeDep,
    actor: ReadOrIngest,
    document_id: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Listing:
    """Newest first; with ``document_id``, those that learnt that document."""

    def read(session: Session) -> list[RunView]:
        rows = runs.list_runs(session, document_id=document_id, tenant=actor.owner, limit=limit)
        return [run_view(session, row) for row in rows]

    return Listing(data=await runtime.read(read))


@router.get("/{run_id}", responses={404: {}})
async def get_run(run_id: Text, runtime: RuntimeDep, actor: ReadOrIngest) -> RunView:
    """One run: status, stage, progress, verdict, report."""
    return await _read(runtime, run_id, actor.owner)


@router.get("/{run_id}/events", responses={404: {}})
async def follow_run(run_id: Text, runtime: RuntimeDep, actor: ReadOrIngest) -> StreamingResponse:
    """Server-sent events: the run whenever it changed, until it is over."""
    first = await _read(runtime, run_id, actor.owner)
    return StreamingResponse(_changes(runtime, first), media_type="text/event-stream")


@router.get("/{run_id}/report", responses={404: {}})
async def report_run(run_id: Text, runtime: RuntimeDep, actor: Read) -> ReportView:
    """What the run found: the gate's decision, both answers to every question, the lineage."""
    return await _report(runtime, run_id, actor.owner)


@router.get("/{run_id}/report.html", response_class=HTMLResponse, responses={404: {}})
async def show_report(run_id: Text, runtime: RuntimeDep, actor: Read) -> HTMLResponse:
    """The same as one page that needs nothing else."""
    report = await _report(runtime, run_id, actor.owner)
    return HTMLResponse(
        render_report(report),
        headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"},
    )


@router.post("/{run_id}/cancel", responses={404: {}, 409: {}})
async def cancel_run(
    run_id: Text, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> RunView:
    """Stop a run; its training process is killed within a heartbeat."""

    def cancel(session: Session) -> RunView:
        run = runs.request_cancel(session, run_id, tenant=actor.owner)
        owner = runs.line_of(session, run).owner
        audit.record(session, actor, "run.cancel", run.id, None, request_id, owner=owner)
        session.flush()
        return run_view(session, run)

    return await runtime.database.run(cancel)


async def _read(runtime: Runtime, run_id: str, tenant: str | None = None) -> RunView:
    def read(session: Session) -> RunView:
        return run_view(session, runs.get_run(session, run_id, tenant=tenant))

    return await runtime.read(read)


async def _report(runtime: Runtime, run_id: str, tenant: str | None) -> ReportView:
    def read(session: Session) -> ReportView:
        return report_view(session, runs.get_run(session, run_id, tenant=tenant))

    return await runtime.read(read)


async def _changes(runtime: Runtime, view: RunView) -> AsyncIterator[str]:
    shown = ""
    while True:
        data = view.model_dump_json()
        if data != shown:
            shown = data
            yield f"event: run\ndata: {data}\n\n"
        if view.status not in runs.OPEN:
            yield f"event: end\ndata: {json.dumps({'status': view.status})}\n\n"
            return
        await asyncio.sleep(_POLL_S)
        view = await _read(runtime, view.id)
