"""Rows for tests, made through the services wherever a service makes them."""

from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from server.db import AdaptationRun, Adapter, AdapterVersion, Document, VersionStatus
from server.services import documents, registry, runs
from server.services.runs import Claim
from tests.conftest import RecordingQueue


def make_document(
    session: Session, text: str = "The keeper is Odile Brandt.", *, owner: str | None = None
) -> Document:
    """A document that has been chunked."""
    document, _ = documents.accept_document(
        session, text, owner=owner, created_by="key_test", queue=RecordingQueue()
    )
    documents.store_chunks(session, document.id, [text])
    return document


def make_run(session: Session, adapter: Adapter, **fields: Any) -> AdaptationRun:
    """A queued run."""
    run, _ = runs.queue_run(
        session,
        adapter,
        method="seal",
        config={},
        requested_by="test",
        queue=RecordingQueue(),
        **fields,
    )
    return run


def make_version(
    session: Session,
    adapter: Adapter,
    *,
    status: VersionStatus = VersionStatus.SERVABLE,
    claim: Claim | None = None,
) -> AdapterVersion:
    """A registered version, of a finished run of its own unless a claim is given."""
    number = registry.next_number(session, adapter)
    run_id = claim.run_id if claim else f"run_of_v{number}"
    if claim is None:
        session.add(
            AdaptationRun(
                id=run_id,
                adapter_id=adapter.id,
                status="succeeded",
                method="seal",
                config={},
                requested_by="test",
            )
        )
        session.flush()
    version = registry.register_version(
        session,
        adapter,
        number=number,
        run_id=run_id,
        path=Path(f"/nowhere/v{number:04d}"),
        digest=f"{number:064x}",
        manifest={},
    )
    registry.set_status(session, version, status)
    return version
