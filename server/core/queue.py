"""The queue: its configuration, and the one way to send a message.

A message is a hint that carries an id. The rows decide what is done, so a message may come twice,
late or never; :func:`workers.schedule.tick` sends lost ones again.
"""

from typing import Any, Protocol

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

INGEST_DOCUMENT = "document.ingest"
RUN_ADAPTATION = "adaptation.run"
TICK = "schedule.tick"

TRAIN_QUEUE = "train"
LIGHT_QUEUE = "light"

MESSAGE_EXPIRES_S = 30
"""A message that nobody took in time is worthless: the tick has sent it again."""

READY_FILE_VARIABLE = "EVERLEARN_READY_FILE"
"""Names the file that a worker makes when it takes messages, for whoever started it."""

_WORKER_WAITS = {"socket_connect_timeout": 5, "socket_timeout": 30}
_SENDER_WAITS = {"socket_connect_timeout": 2, "socket_timeout": 2, "max_retries": 0}
"""Seconds: whoever sends has somebody waiting, and what is lost is sent again."""

log = structlog.get_logger(__name__)


class Queue(Protocol):
    """Where services leave their hints."""

    def send(self, task: str, *ids: str) -> None:
        """Send a message; never raises, since the next tick finds what was lost."""
        ...


class CeleryQueue:
    """Messages over Redis or Valkey."""

    def __init__(self, redis_url: str) -> None:
        self.app = build_celery(redis_url, broker_transport_options=_SENDER_WAITS)

    def send(self, task: str, *ids: str) -> None:
        try:
            self.app.send_task(
                task, args=ids, ignore_result=True, retry=False, expires=MESSAGE_EXPIRES_S
            )
        except (OperationalError, OSError) as error:
            log.warning("queue_message_lost", task=task, ids=ids, error=str(error))


def build_celery(redis_url: str, *, include: tuple[str, ...] = (), **settings: Any) -> Celery:
    """The Celery application, the same for senders and workers.

    Messages are acknowledged on receipt: a run's recovery is its lease running out, not a
    redelivery, so the broker's visibility timeout never starts a second training.
    """
    app = Celery("everlearn", broker=redis_url, include=list(include))
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue=LIGHT_QUEUE,
        task_routes={RUN_ADAPTATION: {"queue": TRAIN_QUEUE}},
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options=_WORKER_WAITS,
        enable_utc=True,
    )
    app.conf.update(settings)
    return app
