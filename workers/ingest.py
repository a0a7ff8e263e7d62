"""document.ingest: a received document becomes chunks."""

from celery import shared_task

from adapters.corpus.chunking import chunk_text
from server.core.queue import INGEST_DOCUMENT
from server.services import documents
from workers.context import WorkerContext, worker_context


@shared_task(name=INGEST_DOCUMENT)
def ingest_task(document_id: str) -> None:
    """The message; may come twice."""
    ingest(worker_context(), document_id)


def ingest(context: WorkerContext, document_id: str) -> None:
    """Chunk the document; one that is chunked already stays as it is."""
    with context.database.unit_of_work() as session:
        text = documents.get_document(session, document_id).text
        chunks = chunk_text(text, max_chars=context.settings.documents.chunk_chars)
        documents.store_chunks(session, document_id, chunks)
