"""What every task needs, made once per worker process."""

import os
import socket
from dataclasses import dataclass, field
from functools import cache

from server.core.errors import SetupError
from server.core.logging import configure_logging
from server.core.queue import CeleryQueue, Queue
from server.core.settings import Settings
from server.db.session import Database


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Settings, database and queue of this process, and the name it signs its claims with."""

    settings: Settings
    database: Database
    queue: Queue
    name: str
    tidied: set[str] = field(default_factory=set, compare=False)
    """Runs that are over and have left nothing more to remove."""


@cache
def worker_context() -> WorkerContext:
    """The process's context; a solo worker never forks, so sharing it is safe."""
    settings = Settings()
    configure_logging(settings.log)
    return WorkerContext(
        settings=settings,
        database=Database(settings.sqlalchemy_url),
        queue=CeleryQueue(redis_url(settings)),
        name=f"{socket.gethostname()}:{os.getpid()}",
    )


def redis_url(settings: Settings) -> str:
    """The queue's address.

    Raises:
        SetupError: none is set; `everlearn up` sets it for its own workers.
    """
    if not settings.redis_url:
        raise SetupError(
            "No queue is configured. Start the workers with `everlearn up`, "
            "or set EVERLEARN_REDIS_URL to a Redis or Valkey server."
        )
    return settings.redis_url
