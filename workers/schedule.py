"""The single beat entry: start what is due, send again what was lost."""

from datetime import timedelta

from celery import shared_task

from server.core.queue import TICK
from server.services import policies, runs
from workers.context import WorkerContext, worker_context


@shared_task(name=TICK)
def tick_task() -> None:
    """Beat's message."""
    tick(worker_context())


def tick(context: WorkerContext) -> None:
    """One look at policies, lost runs and lost documents, in one transaction."""
    learning = context.settings.learning
    with context.database.unit_of_work() as session:
        policies.resend_ingests(session, queue=context.queue)
        runs.sweep(
            session,
            lease=timedelta(seconds=learning.lease_s),
            max_attempts=learning.max_attempts,
            queue=context.queue,
        )
        policies.queue_due_runs(session, learning, queue=context.queue)
