"""Trials and the watch, looked at with every tick: judge what runs, take back what does harm.

Looking is reading; the engine is asked next, with no transaction open; what follows is one
transaction. A trial that disturbs the judge is logged and looked at again, and holds up no other.
"""

import structlog

from server.core.clock import utc_now
from server.core.errors import AppError
from server.db import Adapter, Trial
from server.services import registry, trials, watch
from server.services.judge import Verdict
from workers import replicas
from workers.context import WorkerContext

log = structlog.get_logger(__name__)


def judge_trials(context: WorkerContext) -> None:
    """Look at every open trial that is due, and do what its verdict asks for."""
    with context.database.look() as session:
        due = [trial.id for trial in trials.due(session, utc_now())]
    for trial_id in due:
        try:
            _judge(context, trial_id)
        except AppError as disturbance:
            log.warning("trial_not_judged", trial=trial_id, reason=str(disturbance))
        except Exception:  # a defect of ours; the other trials must not wait for its cure
            log.exception("judge_crashed", trial=trial_id)


def watch_promotions(context: WorkerContext) -> None:
    """Roll back what has done harm since it was promoted."""
    with context.database.look() as session:
        alarms = watch.alarms(session, context.settings.rollout, utc_now())
    for alarm in alarms:
        try:
            if alarm.to_number is not None:
                _have_replicas_hold(context, alarm.adapter_id, alarm.to_number)
            with context.database.unit_of_work() as session:
                event = watch.take_back(session, alarm)
        except AppError as disturbance:
            log.warning("watch_not_heard", event_id=alarm.event_id, reason=str(disturbance))
            continue
        if event is not None:
            log.warning("promotion_taken_back", event_id=alarm.event_id, reason=alarm.reason)


def _judge(context: WorkerContext, trial_id: str) -> None:
    now = utc_now()
    with context.database.look() as session:
        trial = session.get_one(Trial, trial_id)
        finding = trials.look(session, trial, now)
        adapter_id, number = trial.adapter_id, registry.by_id(session, trial.version_id).number
    if finding.verdict is Verdict.PROMOTE:
        _have_replicas_hold(context, adapter_id, number)
    with context.database.unit_of_work() as session:
        state = trials.settle(session, session.get_one(Trial, trial_id), finding, now)
    if finding.verdict is not Verdict.CONTINUE:
        log.info("trial_judged", trial=trial_id, state=state, reason=finding.reason)


def _have_replicas_hold(context: WorkerContext, adapter_id: str, number: int) -> None:
    """Have the replicas load and prove a version before an alias moves to it.

    Raises:
        EngineError: too few of them do; says why.
    """
    with context.database.look() as session:
        adapter = session.get_one(Adapter, adapter_id)
        version = registry.get_version(session, adapter, number)
        assert version is not None, "a number is no base model"
        name = registry.engine_name(adapter.name, version)
        base = registry.base_engine_name_of(session, adapter, context.settings.model.name)
        path = version.path

    replicas.prove_everywhere(context, name, path, base)
