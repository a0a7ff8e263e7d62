"""What benchmarks start: the gateway, LiteLLM and engines, each on cores given to it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx2
import psutil
from sqlalchemy.orm import Session

from benchmarks.results import FOLDER, ROOT
from benchmarks.stub import BASE
from server.core.settings import EngineSettings, ModelSettings, Settings
from server.db.session import Database
from server.embedded.preflight import free_port
from server.embedded.up import migrate
from server.services import keys
from server.services.bootstrap import ensure_line
from server.services.keys import Limits
from tests.support.servers import running_postgres, running_valkey

MODEL = BASE.removesuffix("@base")
DIRECT, EVERLEARN, LITELLM = "direct", "everlearn", "litellm"
START_TIMEOUT_S = 90
SHIP_TIMEOUT_S = 300
LOG_TAIL_BYTES = 3000
LITELLM_REQUIREMENT = "litellm[proxy]>=1.106,<1.107"
LITELLM_VARIABLE = "EVERLEARN_BENCH_LITELLM"
"""Names a virtual environment that has LiteLLM already."""

NEVER_REACHED = Limits(2_000_000_000, 2_000_000_000, 1_000_000_000_000)
"""Limits that are counted, and stop nothing."""

CORES = tuple(sorted(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class Cores:
    """Who computes where."""

    measured: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to the upstream."""

    name: str
    port: int
    key: str
    model: str
    process: "subprocess.Popen[bytes] | None" = None
    """Whose work is counted; None for the direct way."""
    segments: Path | None = None
    """Where captured interactions wait for the database; None where nothing is captured."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a process and its children have used so far."""

    cpu_s: float
    rss_bytes: int


def share_out(measured: int) -> Cores:
    """Keep so many cores for what is measured; this process and all it starts later get the rest.

    Call it before anything is started: a database that becomes a daemon is nobody's child later.
    On a single core, all share it.
    """
    if len(CORES) == 1:
        return Cores(CORES, CORES)
    measured = max(1, min(measured, len(CORES) - 1))
    cores = Cores(CORES[:measured], CORES[measured:])
    os.sched_setaffinity(0, cores.others)
    return cores


@contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process, stopped with all it has started.

    Args:
        cores: where it and its children compute; None leaves them where this process does.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if cores is not None:
            os.sched_setaffinity(process.pid, cores)  # at once: what it starts inherits them
        try:
            yield process
        except BaseException:
            sys.stderr.write(f"{' '.join(command)[:300]} said at last:\n{_tail(log)}\n")
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def _tail(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
    return log.read().decode(errors="replace")


@contextmanager
def everlearn(
    folder: Path,
    engine_url: str,
    cores: Sequence[int],
    database_url: str | None = None,
    fill: Callable[[Session, Settings], str] | None = None,
) -> Iterator[Contender]:
    """The gateway as in production: a database, Valkey, capture, a key whose limits are counted.

    Args:
        folder: an empty one, for its home and Valkey's.
        database_url: empty or filled; None starts a PostgreSQL of its own.
        fill: what to put beside the line into the database; gives the secret of a key.
    """
    with ExitStack() as stack:
        url = database_url or stack.enter_context(running_postgres())
        redis_url = stack.enter_context(running_valkey(folder))
        settings = Settings(
            _env_file=None,
            home=folder / "home",
            database_url=url,
            redis_url=redis_url,
            model=ModelSettings(name=MODEL),
            engine=EngineSettings(url=engine_url),
        )
        key, port = prepare(settings, fill), free_port()
        environment = {
            "EVERLEARN_HOME": str(settings.home),
            "EVERLEARN_DATABASE_URL": url,
            "EVERLEARN_REDIS_URL": redis_url,
            "EVERLEARN_MODEL__NAME": MODEL,
            "EVERLEARN_ENGINE__URL": engine_url,
            "EVERLEARN_LOG__LEVEL": "warning",
        }
        command = [sys.executable, "-m", "server.serve", "--port", str(port)]
        with running(command, environment, cores) as process:
            wait_for(f"http://127.0.0.1:{port}/readyz", process)
            yield Contender(EVERLEARN, port, key, MODEL, process, settings.segments_path)


def prepare(settings: Settings, fill: Callable[[Session, Settings], str] | None = None) -> str:
    """Schema, line, and a key or what ``fill`` adds in the database; the key's secret."""
    database = Database(settings.sqlalchemy_url)
    migrate(database)
    with database.unit_of_work() as session:
        ensure_line(session, settings, base_path=settings.home / "base", base_hash="0" * 64)
        secret = (fill or _chat_key)(session, settings)
    database.close_sync()
    return secret


def _chat_key(session: Session, _: Settings) -> str:
    return keys.create_key(session, "bench", ["chat"], limits=NEVER_REACHED)[1]


@contextmanager
def litellm(folder: Path, engine_url: str, cores: Sequence[int]) -> Iterator[Contender]:
    """LiteLLM's proxy with one worker and a master key."""
    key, port = "sk-benchmark", free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n"
        f"      model: hosted_vllm/{BASE}\n      api_base: {engine_url}/v1\n      api_key: none\n"
        f"general_settings:\n  master_key: {key}\n"
    )
    command = [str(_litellm_environment() / "bin" / "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    with running(command, environment, cores) as process:
        wait_for(f"http://127.0.0.1:{port}/health/liveliness", process)
        yield Contender(LITELLM, port, key, MODEL, process)


def _litellm_environment() -> Path:
    if given := os.environ.get(LITELLM_VARIABLE):
        return Path(given)
    folder = FOLDER.parent / ".venv-litellm"
    if not (folder / "bin" / "litellm").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, LITELLM_REQUIREMENT], check=True)
    return folder


def wait_until_shipped(contender: Contender) -> float:
    """Seconds until all that was captured is in the database.

    Raises:
        TimeoutError: something is not.
    """
    began = time.monotonic()
    while contender.segments is not None and any(contender.segments.glob("*.jsonl")):
        if time.monotonic() - began > SHIP_TIMEOUT_S:
            raise TimeoutError("what was captured does not reach the database")
        time.sleep(0.02)
    return time.monotonic() - began


def used(process: "subprocess.Popen[bytes] | None") -> Used:
    """Of the process and what it has started; nothing for None."""
    if process is None:
        return Used(0, 0)
    cpu_s, rss = 0.0, 0
    whole = psutil.Process(process.pid)
    for one in (whole, *whole.children(recursive=True)):
        times = one.cpu_times()
        cpu_s += times.user + times.system
        rss += one.memory_info().rss
    return Used(cpu_s, rss)


def wait_for(
    url: str, process: "subprocess.Popen[bytes]", timeout_s: float = START_TIMEOUT_S
) -> None:
    """Return when a GET gets a 200.

    Raises:
        RuntimeError: the process that should answer has ended.
        TimeoutError: it does not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"who should answer at {url} ended with {process.returncode}")
        try:
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.3)
    raise TimeoutError(f"{url} does not answer within {timeout_s:g} s")
