"""/api/v1/adapters/{name}/versions: one version and its lineage; import, export, rebuild."""

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from adapters.artifact import CONFIG, MANIFEST, WEIGHTS
from server.api import imports
from server.api.archive import stream_zip
from server.api.deps import Admin, Read, RequestId, RuntimeDep
from server.api.schemas.base import Text
from server.api.schemas.runs import RunView
from server.api.schemas.versions import ImportForm, VersionDetail
from server.api.views import run_view, version_detail
from server.core.clock import new_id
from server.core.errors import RowNotFound
from server.db import Adapter, AdapterVersion, VersionOrigin, VersionStatus
from server.services import artifacts, audit, evaluations, rebuilds, registry
from server.services.artifacts import Prepared

router = APIRouter(prefix="/adapters/{name}/versions", tags=["adapters"])

EXAM = "exam.json"


@router.post(
    "",
    status_code=201,
    responses={400: {}, 403: {}, 404: {}, 413: {}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {imports.MULTIPART: {"schema": ImportForm.model_json_schema()}},
        }
    },
)
async def import_version(
    name: Text, request: Request, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> VersionDetail:
    """Bring a foreign PEFT adapter into the line, as an unproven version.

    A form with the files ``config`` (`adapter_config.json`) and ``weights``
    (`adapter_model.safetensors`), and the texts ``source`` and ``reason``. It is checked to the last
    value before anything is stored, and no engine sees it before it is tried or promoted.
    """
    settings = runtime.settings
    adapter = await runtime.database.read(_own, name, actor.owner)
    async with _scratch(settings.home_path / "imports") as sent:
        texts = await imports.receive(request, sent, max_bytes=settings.swap.import_max_bytes)
        source, reason = texts.get("source", ""), texts.get("reason", "")
        prepared: Prepared = await to_thread.run_sync(
            partial(artifacts.prepare_import, sent, adapter, settings, source=source)
        )

    def enter(session: Session) -> VersionDetail:
        line = registry.own_adapter(session, name, tenant=actor.owner)
        version = artifacts.enter(
            session,
            line.id,
            prepared,
            line=settings.artifacts_path / line.name,
            run_id=None,
            origin=VersionOrigin.IMPORT,
            status=VersionStatus.UNPROVEN,
        )
        target = registry.version_name(line.name, version.number)
        detail = {"digest": version.digest, "source": source, "reason": reason}
        audit.record(session, actor, "version.import", target, detail, request_id, owner=line.owner)
        session.flush()
        return version_detail(session, line, version, tenant=actor.owner)

    try:
        view = await runtime.database.run(enter)
    finally:
        await to_thread.run_sync(artifacts.discard, prepared.folder)  # it has its name, or no row
    await runtime.refresh()
    return view


@router.get("/{version}", responses={400: {}, 404: {}})
async def get_version(name: Text, version: Text, runtime: RuntimeDep, actor: Read) -> VersionDetail:
    """One version: manifest, exam, status, documents, and its way back to the base model."""

    def read(session: Session) -> VersionDetail:
        line = registry.get_adapter(session, name, tenant=actor.owner)
        return version_detail(session, line, _found(session, line, version), tenant=actor.owner)

    return await runtime.read(read)


@router.get(
    "/{version}/export",
    response_class=Response,
    responses={
        200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}},
        400: {},
        403: {},
        404: {},
        409: {},
    },
)
async def export_version(
    name: Text, version: Text, runtime: RuntimeDep, actor: Admin, request_id: RequestId
) -> StreamingResponse:
    """A zip archive of the version as a plain PEFT folder, with its manifest and its exam."""

    def read(session: Session) -> tuple[Adapter, AdapterVersion, bytes]:
        line = registry.own_adapter(session, name, tenant=actor.owner)
        found = _found(session, line, version)
        return line, found, _exam(session, found)

    line, found, exam = await runtime.database.read(read)
    folder = await to_thread.run_sync(artifacts.check_files, line, found)
    target = registry.version_name(line.name, found.number)

    def note(session: Session) -> None:
        detail = {"digest": found.digest}
        audit.record(session, actor, "version.export", target, detail, request_id, owner=line.owner)

    await runtime.database.run(note)
    files: dict[str, Path | bytes] = {name: folder / name for name in (CONFIG, WEIGHTS, MANIFEST)}
    stem = f"{line.name}-v{found.number}"
    return StreamingResponse(
        stream_zip(stem, {**files, EXAM: exam}),
        media_type="application/zip",
        headers={"content-disposition": f'attachment; filename="{stem}.zip"'},
    )


@router.post(
    "/{version}/rebuild",
    status_code=202,
    responses={200: {"model": RunView}, 400: {}, 403: {}, 404: {}, 409: {}},
)
async def rebuild_version(
    name: Text,
    version: Text,
    response: Response,
    runtime: RuntimeDep,
    actor: Admin,
    request_id: RequestId,
) -> RunView:
    """Train the version again from its manifest and compare; the run's report says how it came out.

    A rebuild of it that is open already is returned with 200.
    """

    def queue(session: Session) -> tuple[RunView, bool]:
        line = registry.own_adapter(session, name, tenant=actor.owner)
        found = _found(session, line, version)
        run, is_new = rebuilds.queue_rebuild(
            session,
            line,
            found,
            requested_by=actor.label,
            queue=runtime.queue,
        )
        if is_new:
            target = registry.version_name(line.name, found.number)
            detail = {"run": run.id}
            audit.record(
                session, actor, "version.rebuild", target, detail, request_id, owner=line.owner
            )
            session.flush()
        return run_view(session, run), is_new

    view, is_new = await runtime.database.run(queue)
    response.status_code = 202 if is_new else 200
    return view


def _own(session: Session, name: str, tenant: str | None) -> Adapter:
    return registry.own_adapter(session, name, tenant=tenant)


def _found(session: Session, adapter: Adapter, wanted: str) -> AdapterVersion:
    """A version of the line.

    Raises:
        InvalidRequest: not the name of a version.
        RowNotFound: no such version; the base model is none.
    """
    version = registry.get_version(session, adapter, wanted)
    if version is None:
        base = registry.version_name(adapter.name, None)
        raise RowNotFound("version", base, "That is the base model, which was not learnt here.")
    return version


def _exam(session: Session, version: AdapterVersion) -> bytes:
    """The gate's decision and both answers to every question; null where there was no exam."""
    evaluation = evaluations.of_version(session, version)
    exam: dict[str, Any] | None = None
    if evaluation is not None:
        exam = {
            "verdict": evaluation.verdict,
            "decision": evaluation.decision,
            "results": evaluations.results_of(session, evaluation),
        }
    return json.dumps(exam, indent=2, ensure_ascii=False).encode() + b"\n"


@asynccontextmanager
async def _scratch(parent: Path) -> AsyncIterator[Path]:
    """A folder of this request's own, gone when it ends."""
    folder = parent / new_id("imp")
    await to_thread.run_sync(partial(folder.mkdir, parents=True, mode=0o700))
    try:
        yield folder
    finally:
        await to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))
