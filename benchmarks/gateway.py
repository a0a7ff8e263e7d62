"""`make bench-gateway`: what a gateway adds to its engine, side by side in one run.

The same load, the same upstream, three ways to it: direct, through Everlearn (real database, real
Valkey, a key with limits, capture on), through LiteLLM's proxy in an environment of its own. The
gateway has a core to itself where there are two; load and upstream share the other.

Not measured here: LiteLLM with its database, whose client's engine is downloaded at first use.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks.results import FOLDER, ROOT, Aim, Results
from benchmarks.stub import BASE
from server.core.settings import EngineSettings, ModelSettings, Settings
from server.db import ApiKey
from server.db.session import Database
from server.embedded.preflight import free_port
from server.embedded.up import migrate
from server.services import keys
from server.services.bootstrap import ensure_line
from tests.support.servers import running_postgres, running_valkey

MODEL = BASE.removesuffix("@base")
DIRECT, EVERLEARN, LITELLM = "direct", "everlearn", "litellm"
START_TIMEOUT_S = 90
LITELLM_REQUIREMENT = "litellm[proxy]>=1.106,<1.107"
LITELLM_VARIABLE = "EVERLEARN_BENCH_LITELLM"
"""Names a virtual environment that has LiteLLM already."""

AIMS = {"json": Aim(25), "stream": Aim(40)}
"""Times LiteLLM's requests per second."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to the upstream."""

    name: str
    port: int
    key: str
    model: str
    process: "subprocess.Popen[bytes] | None" = None
    """Whose work is counted; None for the direct way."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a process and its children have used so far."""

    cpu_s: float
    rss_bytes: int


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gateway-")))
        stub_port = free_port()
        stack.enter_context(_running([sys.executable, "-m", "benchmarks.stub", str(stub_port)]))
        contenders = [Contender(DIRECT, stub_port, "none", BASE)]
        if EVERLEARN in options.only:
            contenders.append(stack.enter_context(_everlearn(folder, stub_port)))
        if LITELLM in options.only:
            contenders.append(stack.enter_context(_litellm(folder, stub_port)))
        setup = f"{options.seconds:g} s a case; {_pin(contenders)}; LiteLLM without a database"
        results = Results("gateway", setup=setup, seed=0, again=options.again)
        for kind in options.kinds:
            for clients in options.clients:
                _measure(results, contenders, kind, clients, options.seconds)
        _measure_memory(results, contenders, options.memory_requests)
    return 0


def _measure(
    results: Results, contenders: list[Contender], kind: str, clients: int, seconds: float
) -> None:
    """One kind of request at one number of clients, every contender in turn."""
    case = f"{kind}, {clients} clients"
    if results.has(case):
        return
    rates: dict[str, float] = {}
    times: dict[str, Mapping[str, float]] = {}
    for contender in contenders:
        before = _used(contender.process)
        seen = _load(contender, kind, clients, seconds)
        after = _used(contender.process)
        name = contender.name
        rates[name], times[name] = seen["requests_per_second"], seen["latency_ms"]
        results.add(case, f"{name}: requests", rates[name], "1/s", baseline=rates.get(DIRECT))
        results.add(case, f"{name}: failures", sum(seen["failures"].values()), "requests")
        for part in ("p50", "p95", "p99"):
            unit, direct = "ms", times[DIRECT].get(part)
            if part in times[name]:
                results.add(case, f"{name}: {part}", times[name][part], unit, baseline=direct)
        if "p50" in seen["first_byte_ms"]:
            first = seen["first_byte_ms"]["p50"]
            results.add(case, f"{name}: first byte p50", first, "ms")
        if contender.process is not None and seen["all_requests"]:
            cpu_ms = 1000 * (after.cpu_s - before.cpu_s) / seen["all_requests"]
            results.add(case, f"{name}: CPU of a request", cpu_ms, "ms")
    if EVERLEARN in rates and rates.get(LITELLM):
        results.add(
            case,
            "everlearn: requests against LiteLLM",
            rates[EVERLEARN],
            "1/s",
            baseline=rates[LITELLM],
            aim=AIMS[kind],
        )
    results.finish(case)


def _measure_memory(results: Results, contenders: list[Contender], requests: int) -> None:
    """Resident memory before and after many requests."""
    case = f"memory, {requests} requests"
    everlearn = next((one for one in contenders if one.name == EVERLEARN), None)
    if everlearn is None or requests == 0 or results.has(case):
        return
    before, done = _used(everlearn.process).rss_bytes, 0
    while done < requests:
        done += _load(everlearn, "json", 64, 10)["all_requests"]
    after = _used(everlearn.process).rss_bytes
    mib = 1024 * 1024
    aim = Aim(1.1, is_at_least=False)
    results.add(case, "everlearn: RSS", after / mib, "MiB", baseline=before / mib, aim=aim)
    results.finish(case)


def _load(contender: Contender, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    """The load generator's report, from a process of its own."""
    body = {
        "model": contender.model,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "stream": kind == "stream",
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(body, file)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.load", str(contender.port), file.name]
        command += [contender.key, str(clients), str(seconds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@contextmanager
def _everlearn(folder: Path, stub_port: int) -> Iterator[Contender]:
    """The gateway as it is run in production: PostgreSQL, Valkey, capture, a key with limits."""
    with running_postgres() as database_url, running_valkey(folder) as redis_url:
        settings = Settings(
            _env_file=None,
            home=folder / "home",
            database_url=database_url,
            redis_url=redis_url,
            model=ModelSettings(name=MODEL),
            engine=EngineSettings(url=f"http://127.0.0.1:{stub_port}"),
        )
        database = Database(database_url)
        migrate(database)
        with database.unit_of_work() as session:
            ensure_line(session, settings, base_path=folder / "base", base_hash="0" * 64)
            row, key = keys.create_key(session, "bench", ["chat"])
            _set_limits(row)
        database.close_sync()
        port = free_port()
        environment = {
            "EVERLEARN_HOME": str(settings.home),
            "EVERLEARN_DATABASE_URL": database_url,
            "EVERLEARN_REDIS_URL": redis_url,
            "EVERLEARN_MODEL__NAME": MODEL,
            "EVERLEARN_ENGINE__URL": f"http://127.0.0.1:{stub_port}",
            "EVERLEARN_LOG__LEVEL": "warning",
        }
        command = [sys.executable, "-m", "server.serve", "--port", str(port)]
        with _running(command, environment) as process:
            _wait_for(f"http://127.0.0.1:{port}/readyz")
            yield Contender(EVERLEARN, port, key, MODEL, process)


def _set_limits(key: ApiKey) -> None:
    """Never reached, but counted."""
    key.requests_per_minute = key.tokens_per_minute = 2_000_000_000
    key.token_budget = 1_000_000_000_000


@contextmanager
def _litellm(folder: Path, stub_port: int) -> Iterator[Contender]:
    """LiteLLM's proxy with one worker and a master key."""
    key, port = "sk-benchmark", free_port()
    config = folder / "litellm.yaml"
    upstream = f"http://127.0.0.1:{stub_port}/v1"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n"
        f"      model: hosted_vllm/{BASE}\n      api_base: {upstream}\n      api_key: none\n"
        f"general_settings:\n  master_key: {key}\n"
    )
    command = [str(_litellm_environment() / "bin" / "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with _running(command, {"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}) as process:
        _wait_for(f"http://127.0.0.1:{port}/health/liveliness")
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


@contextmanager
def _running(
    command: list[str], environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process, stopped with all it has started."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def _pin(contenders: list[Contender]) -> str:
    """Give the gateways a core of their own; the words for it."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return "one core for all"
    gateways = [one.process for one in contenders if one.process is not None]
    for process in psutil.Process().children(recursive=True):
        process.cpu_affinity(cores[1:])
    for gateway in gateways:
        for process in (psutil.Process(gateway.pid), *_children(gateway)):
            process.cpu_affinity(cores[:1])
    os.sched_setaffinity(0, cores[1:])  # the load is started by this process
    return f"gateways on one core in turn, load, upstream and database on {len(cores) - 1}"


def _used(process: "subprocess.Popen[bytes] | None") -> Used:
    if process is None:
        return Used(0, 0)
    cpu_s, rss = 0.0, 0
    for one in (psutil.Process(process.pid), *_children(process)):
        times = one.cpu_times()
        cpu_s += times.user + times.system
        rss += one.memory_info().rss
    return Used(cpu_s, rss)


def _children(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return found


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.3)
    raise TimeoutError(f"{url} does not answer within {START_TIMEOUT_S} s")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=numbers, default=[16, 64, 256])
    parser.add_argument("--kinds", type=words, default=["json", "stream"])
    parser.add_argument("--only", type=words, default=[EVERLEARN, LITELLM])
    parser.add_argument("--memory-requests", type=int, default=100_000)
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
