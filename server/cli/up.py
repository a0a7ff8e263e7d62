"""`everlearn up`, `down`, `status` and `prepare`: the server on this machine."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from server.cli.console import Failure, err, out
from server.core.settings import Settings
from server.db.session import Database
from server.embedded import up as embedded
from server.embedded.child import Child
from server.embedded.detach import Handover, fork_detached
from server.embedded.plan import answers_http
from server.embedded.preflight import PRIVATE_UMASK, check_home
from server.embedded.state import process_start_time, read_state, stop_server


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it is ready; it keeps running.")
    ] = False,
) -> None:
    """Start the server: queue, engine, workers, gateway; watched, and restarted when they die."""
    settings = Settings()
    home = settings.home_path
    state = read_state(home)
    if detach and state and state.is_ready:
        out.print(f"Everlearn already runs at [bold]{state.url}[/] (folder {home}).")
        return
    handover = fork_detached() if detach else None
    try:
        embedded.run_server(settings, TerminalWatcher(settings, handover))
    finally:
        out.file.flush()


def prepare() -> None:
    """Prepare model, database and first rows, and start nothing: what a cluster runs first."""
    settings = Settings()
    check_home(settings.home_path)
    os.umask(PRIVATE_UMASK)
    database = Database(settings.sqlalchemy_url)
    try:
        model = embedded.prepare(settings, database, TerminalWatcher(settings, None))
    finally:
        database.close_sync()
    out.print(f"The model is in {model.path}.", soft_wrap=True)


def down() -> None:
    """Stop the server of the home folder."""
    home = Settings().home_path
    state = read_state(home)
    if state is None:
        out.print(f"No server runs in {home}.")
        return
    began = time.monotonic()
    if not stop_server(state):
        raise Failure(
            f"The server (process {state.pid}) does not end. Look at {home / 'logs'}; "
            f"`kill -9 {state.pid}` ends it and all its children at once."
        )
    out.print(f"Everlearn is stopped ({time.monotonic() - began:.1f} s).")


def status() -> None:
    """Show what runs in the home folder; exit status 1 when the server is not ready."""
    home = Settings().home_path
    state = read_state(home)
    if state is None:
        raise Failure(f"No server runs in {home}. Start one: `everlearn up`.")
    is_ready = answers_http(f"{state.url}/readyz")
    out.print(f"{state.url}  {'[green]ready[/]' if is_ready else '[red]not ready[/]'}  ({home})")
    table = Table("process", "pid", "state", box=None)
    table.add_row("supervisor", str(state.pid), "runs")
    for name, pid in state.children.items():
        table.add_row(name, str(pid), "runs" if process_start_time(pid) else "[red]is down[/]")
    out.print(table)
    if not is_ready:
        raise Failure(f"Not ready; the logs are in {home / 'logs'}.")


class TerminalWatcher:
    """Tells the terminal how the start goes, one line per step."""

    def __init__(self, settings: Settings, handover: Handover | None) -> None:
        self._logs: Path = settings.home_path / "logs"
        self._model = settings.model.name
        self._handover = handover

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        out.print(f"  {what} … ", end="")
        out.file.flush()
        began = time.monotonic()
        try:
            yield
        except BaseException:
            out.print()
            raise
        out.print(f"[green]{time.monotonic() - began:.1f} s[/]")

    def ready(self, url: str, admin_key: str | None) -> None:
        out.print(f"\nEverlearn serves [bold]{self._model}[/] at [bold]{url}[/]")
        if admin_key is not None:
            out.print("Your admin key, shown this once:\n")
            out.print(f"  export OPENAI_BASE_URL={url}/v1", soft_wrap=True)
            out.print(f"  export OPENAI_API_KEY={admin_key}\n", soft_wrap=True)
        stop = "`everlearn down` stops it" if self._handover else "Ctrl-C stops it"
        out.print(f"{stop}; logs are in {self._logs}.", soft_wrap=True)
        if self._handover is not None:
            self._handover.complete(self._logs / "supervisor.log")

    def restarted(self, child: Child) -> None:
        moment = time.strftime("%H:%M:%S")
        err.print(f"{moment} {child.name} had died and was started again; see {child.log_path}")
        sys.stderr.flush()
