"""The Celery application: `celery -A workers.app worker -Q train` and `-Q light`, `… beat`."""

import os
from pathlib import Path
from typing import Any

from celery import signals

from adapters.evaluation.general import load_general_suite
from server.core.logging import configure_logging
from server.core.queue import READY_FILE_VARIABLE, TICK, build_celery
from server.core.settings import Settings
from workers.context import redis_url

_settings = Settings()
# An operator's file that no exam could use ends the start, not the first lesson.
load_general_suite(_settings.learning.general_suite)

app = build_celery(
    redis_url(_settings),
    include=("workers.adaptation", "workers.ingest", "workers.schedule"),
    beat_schedule={
        TICK: {
            "task": TICK,
            "schedule": _settings.learning.tick_s,
            # A tick that nobody took in time is worthless: the next one does the same.
            "options": {"expires": 2 * _settings.learning.tick_s},
        }
    },
)


@signals.setup_logging.connect
def _configure_logging(**_: Any) -> None:
    configure_logging(_settings.log)


@signals.worker_ready.connect
def _say_ready(**_: Any) -> None:
    if file := os.environ.get(READY_FILE_VARIABLE):
        Path(file).touch()
