"""One run of `everlearn up`: check, prepare, migrate, start, watch, stop.

Nothing is left half started: whatever fails, what was started before is stopped again.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

import migrations
from server.core.errors import SetupError
from server.core.settings import Settings, revealed
from server.db.session import Database
from server.embedded.child import Child
from server.embedded.plan import Plan, make_plan
from server.embedded.preflight import PRIVATE_UMASK, check_home, check_libraries, check_port
from server.embedded.state import State, hold_home, remove_state
from server.embedded.supervisor import Supervisor
from server.engine.launch import require_engine
from server.services.bootstrap import ensure_line
from server.services.fleet import sync_from_settings
from server.services.keys import ensure_admin_key

POLL_S = 0.5


class Watcher(Protocol):
    """Who is told how the start goes; the terminal, as a rule."""

    def step(self, what: str) -> AbstractContextManager[None]:
        """Around each step of the start."""
        ...

    def ready(self, url: str, admin_key: str | None) -> None:
        """The server serves. The key is given only when it was minted now: show it, keep it not."""
        ...

    def restarted(self, child: Child) -> None:
        """A child died and was started again."""
        ...


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """Where the base model's files are, and their hash."""

    path: Path
    hash: str


def run_server(settings: Settings, watcher: Watcher) -> None:
    """Start everything and keep it running until SIGTERM, SIGHUP or SIGINT.

    Must be called in the main thread: signals arrive there, and children die with it.

    Raises:
        SetupError: the start failed; nothing runs any more.
    """
    home = settings.home_path
    check_home(home)
    os.umask(PRIVATE_UMASK)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    with hold_home(home):
        if settings.gateway.port:
            check_port(settings.gateway.host, settings.gateway.port)
        if not settings.engine.url and require_engine().is_cpu:
            check_libraries()
        try:
            _start_and_watch(settings, watcher)
        except KeyboardInterrupt:
            return


def _start_and_watch(settings: Settings, watcher: Watcher) -> None:
    database = Database(settings.sqlalchemy_url)
    model = prepare(settings, database, watcher)
    plan = make_plan(settings, model.path)
    with database.unit_of_work() as session:  # the workers start before the gateway
        sync_from_settings(session, plan.settings.engine.urls)
    record = _Record(settings.home_path, plan.gateway_url, watcher)
    supervisor = Supervisor(record.on_change)
    try:
        record.on_start(plan)
        _start(plan, supervisor, watcher)
        with database.unit_of_work() as session:
            admin_key = ensure_admin_key(session, revealed(settings.admin_key))
        database.close_sync()
        record.on_ready()
        watcher.ready(plan.gateway_url, admin_key)
        while True:
            supervisor.poll()
            time.sleep(POLL_S)
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        supervisor.stop()
        remove_state(settings.home_path)


def prepare(settings: Settings, database: Database, watcher: Watcher) -> PreparedModel:
    """Model, schema and first rows: everything before the processes. Doing it twice is fine.

    Raises:
        SetupError: the model, the database, the line of adapters or the admin key does not fit.
    """
    with watcher.step(f"preparing the model {settings.model.source}"):
        model = prepare_model(settings.model.source, settings.home_path)
    with watcher.step("preparing the database"):
        migrate(database)
        with database.unit_of_work() as session:
            ensure_line(session, settings, base_path=model.path, base_hash=model.hash)
            if settings.engine.url:
                sync_from_settings(session, settings.engine.urls)
            if admin_key := revealed(settings.admin_key):
                ensure_admin_key(session, admin_key)
    return model


def prepare_model(source: str, home: Path) -> PreparedModel:
    """Have the base model prepared by a child, since the service never loads an ML framework.

    Raises:
        SetupError: the source is unknown, incomplete, or does not fit on the disk.
    """
    folder = home / "models" / re.sub(r"[^\w.-]+", "--", source)
    done = subprocess.run(
        [sys.executable, "-m", "adapters.base_model", source, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise SetupError(
            f"Preparing the model {source} ended with status {done.returncode}:\n{tail}\n"
            "`everlearn doctor` says what is missing."
        ) from None
    if report["event"] == "error":
        raise SetupError(f"The base model cannot be prepared: {report['message']}.")
    return PreparedModel(Path(report["path"]), report["hash"])


def migrate(database: Database) -> None:
    """Bring the schema up to date; an empty database gets all of it.

    Raises:
        SetupError: the database does not answer.
    """
    config = Config()
    folder = Path(migrations.__file__ or "").parent
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["url"] = database.url.render_as_string(hide_password=False)
    try:
        command.upgrade(config, "head")
    except DBAPIError as error:
        raise SetupError(
            f"The database {database.url.render_as_string()} does not work: {error.orig}. "
            "Check EVERLEARN_DATABASE_URL."
        ) from None


def _start(plan: Plan, supervisor: Supervisor, watcher: Watcher) -> None:
    if plan.queue is not None:
        with watcher.step("starting the queue"):
            supervisor.start(plan.queue)
            supervisor.wait_ready(plan.queue)
    if plan.engine is not None:
        with watcher.step("starting the engine (about a minute on a CPU)"):
            supervisor.start(plan.engine)
            supervisor.wait_ready(plan.engine)
    with watcher.step("starting the workers and the gateway"):
        for child in (*plan.workers, plan.gateway):
            supervisor.start(child)
        supervisor.wait_ready(*plan.workers, plan.gateway)


class _Record:
    """Keeps `state.json` true and tells the watcher of restarts."""

    def __init__(self, home: Path, url: str, watcher: Watcher) -> None:
        self._home = home
        self._state = State.of_this_process(url)
        self._watcher = watcher

    def on_start(self, plan: Plan) -> None:
        self._write(replace(self._state, engine_url=plan.settings.engine.url))

    def on_change(self, child: Child) -> None:
        is_restart = child.name in self._state.children
        self._write(self._state.with_child(child.name, child.pid or 0))
        if is_restart:
            self._watcher.restarted(child)

    def on_ready(self) -> None:
        self._write(replace(self._state, is_ready=True))

    def _write(self, state: State) -> None:
        self._state = state
        state.write(self._home)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
