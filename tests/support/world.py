"""A gateway on a real port over the fake engine, with a database and one line of versions."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from anthropic import Anthropic
from fastapi import FastAPI
from openai import OpenAI
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.app import create_app
from server.core.settings import CaptureSettings, EngineSettings, Settings, SwapSettings
from server.db import Base, Interaction, VersionStatus
from server.db.session import Database
from server.services import keys, promotion, registry
from server.services.bootstrap import ensure_line
from tests.conftest import RecordingQueue
from tests.support.factories import make_version
from tests.support.fake_engine import FakeEngine, Served, serve

KEY = "el_contract_test_key"
CHAT_KEY = "el_chat_only_key"


@dataclass
class World:
    """A gateway, its engine and its database."""

    engine: FakeEngine
    gateway: Served
    database: Database
    app: FastAPI
    closing: ExitStack
    """Closes the clients that were handed out."""

    def client(self, key: str = KEY, **options: Any) -> OpenAI:
        options = {"max_retries": 0, "timeout": 30, **options}
        client = OpenAI(base_url=f"{self.gateway.url}/v1", api_key=key, **options)
        return self.closing.enter_context(client)

    def anthropic(self, key: str = KEY) -> Anthropic:
        client = Anthropic(base_url=self.gateway.url, api_key=key, max_retries=0, timeout=30)
        return self.closing.enter_context(client)

    def interactions(self, count: int) -> list[Interaction]:
        """All rows, once there are ``count`` of them; waits for the shipper."""
        wait_for(lambda: len(self._rows()) >= count)
        time.sleep(0.15)  # a second row for one request would come now
        return self._rows()

    def _rows(self) -> list[Interaction]:
        with self.database.unit_of_work() as session:
            return list(session.scalars(select(Interaction).order_by(Interaction.id)))

    def promote(self, number: int | None) -> None:
        """Move the champion as another process would."""
        with self.database.unit_of_work() as session:
            move_champion(session, number)
        wanted = registry.version_name("smollm2", number)
        runtime = self.app.state.runtime
        wait_for(lambda: runtime.route("smollm2").version_name == wanted)


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


@contextmanager
def running_world(
    home: Path,
    engine: FakeEngine,
    engine_url: str,
    *,
    more_urls: Sequence[str] = (),
    quorum: float = 1.0,
) -> Iterator[World]:
    """A gateway that is ready, over the engine at ``engine_url`` and its replicas."""
    settings = Settings(
        _env_file=None,
        home=home,
        engine=EngineSettings(
            url=engine_url, more_urls=list(more_urls), connect_timeout_s=1, read_timeout_s=5
        ),
        swap=SwapSettings(refresh_s=0.05, quorum=quorum),
        capture=CaptureSettings(ship_s=0.05),
    )
    database = Database(settings.sqlalchemy_url)
    Base.metadata.create_all(database.engine)
    with database.unit_of_work() as session:
        seed(session, settings)
    app = create_app(settings, queue=RecordingQueue())
    with serve(app) as gateway, ExitStack() as closing:
        made = World(engine, gateway, database, app, closing)
        wait_for(lambda: ready(gateway.url))
        yield made
    database.close_sync()


def ready(url: str) -> bool:
    return asyncio.run(readiness(url))["status"] == "ok"


def why_not_ready(url: str) -> str:
    return asyncio.run(readiness(url))["engine"]


async def readiness(url: str) -> dict[str, str]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as answer:
        parts: dict[str, str] = await answer.json()
        assert answer.status == (200 if parts["status"] == "ok" else 503)
        return parts


def seed(session: Session, settings: Settings) -> None:
    """One line with v1 and v2 servable, v3 a candidate; v1 is champion."""
    keys.add_key(session, "contract", ["admin"], secret=KEY)
    keys.add_key(session, "chat", ["chat"], secret=CHAT_KEY)
    adapter = ensure_line(session, settings, base_path=settings.home / "base", base_hash="0" * 64)
    for status in (VersionStatus.SERVABLE, VersionStatus.SERVABLE, VersionStatus.CANDIDATE):
        make_version(session, adapter, status=status)
    move_champion(session, 1)


def move_champion(session: Session, number: int | None) -> None:
    adapter = registry.get_adapter(session, "smollm2")
    move = promotion.plan_promotion(session, adapter, "base" if number is None else number)
    promotion.apply_move(session, adapter, move, actor="test", reason="")
