"""The whole server over the fake engine, with a client of an admin and doors to look behind it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from server.app import create_app
from server.core.settings import CaptureSettings, EngineSettings, Settings
from server.db.session import Database
from server.services import interactions, keys
from server.services.bootstrap import ensure_line
from tests.conftest import BASE_HASH, RecordingQueue
from tests.support.fake_engine import FakeEngine, serve

ADMIN_KEY = "el_admin_key_of_this_contract_test"


@dataclass
class Api:
    """A running server."""

    client: httpx2.Client
    database: Database
    engine: FakeEngine
    settings: Settings

    def key(self, *scopes: str, owner: str | None = None) -> dict[str, str]:
        """The header of a fresh key."""
        with self.database.unit_of_work() as session:
            key, secret = keys.create_key(session, "k", scopes)
            key.owner = owner
        return {"authorization": f"Bearer {secret}"}

    def store(self, *records: dict[str, Any]) -> None:
        """Put captured records into the database, as the shipper does."""
        with self.database.unit_of_work() as session:
            interactions.record_all(session, records)


@contextmanager
def running_api(
    tmp_path: Path, settings: Settings, database: Database, *, base_hash: str = BASE_HASH
) -> Iterator[Api]:
    """A server that is ready to answer, on a database that has its tables."""
    engine = FakeEngine()
    with serve(engine.app()) as upstream:
        settings = settings.model_copy(
            update={
                "database_url": database.url.render_as_string(hide_password=False),
                "engine": EngineSettings(url=upstream.url),
                "capture": CaptureSettings(ship_s=0.05),
            }
        )
        with database.unit_of_work() as session:
            ensure_line(session, settings, base_path=tmp_path / "base", base_hash=base_hash)
            keys.ensure_admin_key(session, ADMIN_KEY)
        with (
            serve(create_app(settings, queue=RecordingQueue())) as server,
            httpx2.Client(
                base_url=server.url, headers={"authorization": f"Bearer {ADMIN_KEY}"}
            ) as client,
        ):
            until(lambda: client.get("/readyz").status_code == 200)
            yield Api(client, database, engine, settings)


def until(condition: Any, timeout_s: float = 10) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
