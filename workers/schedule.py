"""The single beat entry: start what is due, send again what was lost."""

from datetime import timedelta

from celery import shared_task

from server.core.queue import TICK
from server.services import editing, policies, retention, runs
from workers import cleaning, leftovers
from workers.context import WorkerContext, worker_context
from workers.trials import judge_trials, watch_promotions

RETENTION_BATCHES = 4
"""Bounded transactions of clean-up in one tick, so that a backlog does not hold up the rest."""


@shared_task(name=TICK)
def tick_task() -> None:
    """Beat's message."""
    tick(worker_context())


def tick(context: WorkerContext) -> None:
    """One look at everything that is due; what is too old goes last."""
    cleaning.forget(context)
    start_what_is_due(context)
    judge_trials(context)
    watch_promotions(context)
    leftovers.tidy(context)
    cleaning.remove_files(context)
    clean_up(context)


def start_what_is_due(context: WorkerContext) -> None:
    """Policies, editors, lost runs and lost documents, in one transaction."""
    learning = context.settings.learning
    with context.database.unit_of_work() as session:
        policies.resend_ingests(session, queue=context.queue)
        runs.sweep(
            session,
            lease=timedelta(seconds=learning.lease_s),
            max_attempts=learning.max_attempts,
            queue=context.queue,
        )
        policies.queue_due_runs(
            session,
            learning,
            queue=context.queue,
            max_rank=context.settings.engine.max_lora_rank,
        )
        editing.queue_due_editors(session, learning, queue=context.queue)


def clean_up(context: WorkerContext) -> None:
    """Join early feedback to its interaction; delete what is older than the settings keep."""
    with context.database.unit_of_work() as session:
        retention.tend_feedback(session)
    days = context.settings.capture.retention_days
    if days is None:
        return
    for _ in range(RETENTION_BATCHES):
        with context.database.unit_of_work() as session:
            deleted = retention.delete_old(session, keep_for=timedelta(days=days))
        if deleted < retention.BATCH:
            return
