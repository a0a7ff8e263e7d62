"""The tick: trials are looked at; what the settings do not keep goes, in bounded steps."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from server.core.clock import utc_now
from server.core.settings import CaptureSettings, EngineSettings, RolloutSettings, Settings
from server.db import Adapter, Interaction, Message
from server.db.session import Database
from server.services import interactions, promotion, retention, trials
from tests.conftest import RecordingQueue
from tests.support.factories import captured, make_version
from workers import schedule
from workers.context import WorkerContext


def context(database: Database, settings: Settings, days: float | None) -> WorkerContext:
    capture = CaptureSettings(retention_days=days)
    settings = settings.model_copy(update={"capture": capture})
    return WorkerContext(settings, database, RecordingQueue(), "test")


def store(database: Database, *ages_days: float) -> list[str]:
    records = [
        captured(f"{age} days ago", created_at=(utc_now() - timedelta(days=age)).isoformat())
        for age in ages_days
    ]
    with database.unit_of_work() as session:
        interactions.record_all(session, records)
    return [record["id"] for record in records]


def left(database: Database) -> list[str]:
    with database.unit_of_work() as session:
        return list(session.scalars(select(Interaction.id).order_by(Interaction.created_at)))


def test_a_tick_deletes_what_is_too_old(
    database: Database, settings: Settings, adapter: Adapter
) -> None:
    ids = store(database, 9, 8, 6, 0)

    schedule.tick(context(database, settings, days=7))

    assert left(database) == ids[2:]
    with database.unit_of_work() as session:
        assert len(session.scalars(select(Message)).all()) == 2


def test_without_the_setting_everything_is_kept(
    database: Database, settings: Settings, adapter: Adapter
) -> None:
    ids = store(database, 9000, 1)

    schedule.tick(context(database, settings, days=None))

    assert left(database) == ids


def test_a_tick_is_bounded_and_the_next_goes_on(
    database: Database, settings: Settings, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(schedule, "RETENTION_BATCHES", 2)
    store(database, *[9] * 5)
    worker = context(database, settings, days=7)

    schedule.tick(worker)
    assert len(left(database)) == 1
    schedule.tick(worker)
    assert left(database) == []


def test_a_tick_looks_at_trials(database: Database, settings: Settings, adapter: Adapter) -> None:
    with database.unit_of_work() as session:
        line = session.get_one(Adapter, adapter.id)
        trial = trials.start(
            session,
            line,
            make_version(session, line),
            mode="canary",
            share=10,
            actor="test",
            reason="",
            config=settings.rollout,
        )
        trial.created_at = utc_now() - timedelta(hours=settings.rollout.max_hours, seconds=1)

    schedule.tick(context(database, settings, days=None))

    with database.unit_of_work() as session:
        [ended] = trials.trials_of(session, adapter)
        assert (ended.state, ended.ended_by) == ("aborted", "judge")


def test_a_judge_without_an_engine_promotes_nobody_and_holds_up_no_tick(
    database: Database, settings: Settings, adapter: Adapter
) -> None:
    """A move is asked of the engine first; here there is none."""
    wide = {"error_margin": 0.9, "format_margin": 0.9, "latency_margin": 0.9, "min_requests": 5}
    with database.unit_of_work() as session:
        line = session.get_one(Adapter, adapter.id)
        trials.start(
            session,
            line,
            make_version(session, line),
            mode="canary",
            share=50,
            actor="test",
            reason="",
            config=RolloutSettings(**wide),
        )
        arms = [("smollm2@base", "champion"), ("smollm2@v1", "challenger")] * 30
        records = [captured("Hi", version=version, arm=arm) for version, arm in arms]
        interactions.record_all(session, records)
    settings = settings.model_copy(
        update={"engine": EngineSettings(url="http://127.0.0.1:9", connect_timeout_s=1)}
    )

    schedule.tick(context(database, settings, days=None))

    with database.unit_of_work() as session:
        line = session.get_one(Adapter, adapter.id)
        open_trial = trials.open_trial_of(session, line)
        assert open_trial is not None
        assert trials.look(session, open_trial, utc_now()).verdict == "promote"
        assert promotion.champion(session, line) is None


def test_a_trial_that_nobody_can_read_holds_up_no_tick(
    database: Database, settings: Settings, adapter: Adapter
) -> None:
    with database.unit_of_work() as session:
        line = session.get_one(Adapter, adapter.id)
        trial = trials.start(
            session,
            line,
            make_version(session, line),
            mode="canary",
            share=10,
            actor="test",
            reason="",
            config=settings.rollout,
        )
        trial.evidence = {}
    store(database, 9)

    schedule.tick(context(database, settings, days=7))

    assert left(database) == []
