"""Rows for tests, made through the services wherever a service makes them."""

from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from server.core.clock import new_id, utc_now
from server.core.queue import Queue
from server.core.security import Scope
from server.db import AdaptationRun, Adapter, AdapterVersion, Document, VersionStatus
from server.services import documents, ingestion, registry, runs
from server.services.documents import Upload
from server.services.keys import Principal
from server.services.runs import Claim
from tests.conftest import RecordingQueue


def accept_text(
    session: Session,
    text: str,
    *,
    queue: Queue,
    owner: str | None = None,
    created_by: str = "key_test",
    **fields: Any,
) -> tuple[Document, bool]:
    """A plain text as a document that waits to be chunked; True when it is new."""
    upload = Upload(text=text, **fields)
    return documents.accept(session, upload, owner=owner, created_by=created_by, queue=queue)


def make_document(
    session: Session, text: str = "The keeper is Odile Brandt.", *, owner: str | None = None
) -> Document:
    """A document that has been chunked."""
    document, _ = accept_text(session, text, owner=owner, queue=RecordingQueue())
    ingestion.store_chunks(session, document.id, [text])
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
    parent: AdapterVersion | None = None,
) -> AdapterVersion:
    """A registered version, of a finished run of its own unless a claim is given."""
    number = registry.next_number(session, adapter)
    run_id = claim.run_id if claim else f"run_of_{adapter.name}_v{number}"
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
        parent=parent,
    )
    registry.set_status(session, version, status)
    return version


def captured(*said: str, **fields: Any) -> dict[str, Any]:
    """A record as the gateway writes it: user and assistant in turn, from a user on.

    Keyword arguments replace columns; ``request`` is added to the request.
    """
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
    interaction_id = fields.get("id") or new_id("int")
    request = {"model": "smollm2", "messages": messages, **fields.pop("request", {})}
    return {
        "id": interaction_id,
        "created_at": utc_now().isoformat(),
        "completion_id": f"chatcmpl-{interaction_id}",
        "key_id": "key_1",
        "owner": None,
        "endpoint": "chat",
        "requested_model": "smollm2",
        "adapter": "smollm2",
        "version": "smollm2@v1",
        "engine_name": "smollm2@v1.00000000",
        "is_stream": False,
        "request": request,
        "reply": "A reply.",
        "finish_reason": "stop",
        "outcome": "complete",
        "status": 200,
        "error": None,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "first_byte_ms": 1.5,
        "duration_ms": 2.5,
        "may_learn": True,
        **fields,
    }


def principal(owner: str | None = None, name: str = "key_1") -> Principal:
    """Somebody who may do everything, of a tenant or of none."""
    return Principal(name, name, frozenset({Scope.ADMIN}), owner)
