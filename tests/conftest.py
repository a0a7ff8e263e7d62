"""What every test may ask for: settings that touch only a temporary folder, and a database."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from server.core.settings import Settings
from server.db import Adapter, Base
from server.db.session import Database
from server.services.bootstrap import ensure_line

BASE_HASH = "0" * 64

# The same examples each time, so that a red run is a change's doing; `make explore` looks for new ones.
# No deadline: a busy machine is no defect.
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeat")


class RecordingQueue:
    """A queue that only remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ...]] = []

    def send(self, task: str, *ids: str) -> None:
        self.sent.append((task, *ids))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Defaults in a folder of the test's own, whatever the developer's environment says."""
    for name in list(os.environ):
        if name.startswith("EVERLEARN_") and name != "EVERLEARN_DATA":
            monkeypatch.delenv(name)
    return Settings(_env_file=None, home=tmp_path / "home")


@pytest.fixture
def paper_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions without files: the digest of ``…/v0007`` is the number seven."""

    def digest(folder: Path) -> str:
        return f"{int(folder.name.removeprefix('v')):064x}"

    monkeypatch.setattr("adapters.artifact.digest", digest)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A SQLite file with every table."""
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    Base.metadata.create_all(database.engine)
    yield database
    database.close_sync()


@pytest.fixture
def queue() -> RecordingQueue:
    return RecordingQueue()


@pytest.fixture
def adapter(database: Database, settings: Settings, tmp_path: Path) -> Adapter:
    """The line ``smollm2`` over a base model that nobody loads."""
    with database.unit_of_work() as session:
        return ensure_line(session, settings, base_path=tmp_path / "base", base_hash=BASE_HASH)
