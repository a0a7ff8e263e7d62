"""document.ingest: a received document is read and becomes chunks."""

from celery import shared_task
from sqlalchemy.orm import Session

from adapters.corpus.chunking import chunk_text
from adapters.corpus.inspection import inspect
from adapters.corpus.near_duplicates import LOOKUP_SIZE, Sketch, build_sketch, similarity
from adapters.corpus.parsing import Parsed, Unreadable
from server.core.queue import INGEST_DOCUMENT
from server.services import ingestion, inspections
from workers import inspecting
from workers.context import WorkerContext, worker_context
from workers.parsing import read_file


@shared_task(name=INGEST_DOCUMENT)
def ingest_task(document_id: str) -> None:
    """The message; may come twice."""
    ingest(worker_context(), document_id)


def ingest(context: WorkerContext, document_id: str) -> None:
    """Read, chunk and inspect the document; one that is chunked already stays as it is.

    No transaction is open while a file is read, which may take a minute.
    """
    with context.database.unit_of_work() as session:
        source = ingestion.source_of(session, document_id)
    if source is None:
        return
    settings = context.settings.documents
    try:
        parsed = Parsed(source.text, None)
        if source.content is not None:
            parsed = read_file(
                source.content, source.media_type, charset=source.charset, settings=settings
            )
    except Unreadable as error:
        with context.database.unit_of_work() as session:
            ingestion.mark_unreadable(session, document_id, str(error))
        return
    chunks = chunk_text(parsed.text, max_chars=settings.chunk_chars)
    limits = inspecting.limits_of(settings)
    inspection = inspect(chunks, limits)
    if inspection.refusal is not None:
        with context.database.unit_of_work() as session:
            ingestion.mark_unreadable(session, document_id, inspection.refusal)
            found = inspecting.rows_of(inspection.findings)
            inspections.store(session, document_id, language=inspection.language, findings=found)
        return
    sheet = inspecting.sheet_of(chunks, inspection, limits)
    sketch = build_sketch(parsed.text)
    with context.database.unit_of_work() as session:
        is_new = ingestion.store_chunks(
            session, document_id, chunks, text=parsed.text, title=parsed.title
        )
        if is_new:
            least = settings.near_duplicate_similarity
            likeness = _compare(session, document_id, sketch, least=least)
            inspecting.keep(session, document_id, inspection, sheet, settings=settings)
            if likeness is not None:
                inspecting.name_near_duplicate(session, document_id, likeness)


def _compare(session: Session, document_id: str, sketch: Sketch, *, least: float) -> float | None:
    """Name the document that this one nearly repeats, if there is one; how like it is."""
    lookup = sketch[:LOOKUP_SIZE]
    likeness = {
        other.id: similarity(sketch, other.sketch)
        for other in ingestion.neighbours(session, document_id, lookup)
    }
    ingestion.store_sketch(session, document_id, sketch, lookup=lookup)
    nearest = max(likeness, key=likeness.__getitem__, default=None)
    if nearest is not None and likeness[nearest] >= least:
        ingestion.name_near_duplicates(session, document_id, nearest)
        return likeness[nearest]
    return None
