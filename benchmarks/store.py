"""`make bench-store`: what a million interactions do to capture, to queries and to the gateway.

SQLite and PostgreSQL are each filled through the service that the shipper calls, in its batches. The
filled database stays in a folder beside this file, so that a run that was broken off goes on with it;
a changed schema or another traffic gets a folder of its own.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import text
from sqlalchemy.schema import CreateIndex, CreateTable

from benchmarks import queries, rig, traffic
from benchmarks.gateway import closed_loop, middle, open_loop
from benchmarks.results import FOLDER, Aim, Results
from benchmarks.rig import CORES, MODEL, Contender
from server.core.security import Scope
from server.core.settings import ModelSettings, Settings
from server.db import Base
from server.db.session import Database
from server.embedded.preflight import free_port
from server.gateway.shipping import BATCH
from server.services import feedback, interactions
from server.services.keys import Principal
from tests.support.servers import running_postgres

SEED = 0
SMALL_ROWS = 1_000
CHUNK = 8 * BATCH
"""Rows that are stored before it is written down how many there are."""

CAPTURED_CHUNKS = 5
"""Stored in turn, in the empty and in the full database, to compare the rates."""

CLIENTS = 16

CAPTURE_AIM = Aim(0.8)
QUERY_AIM = Aim(100, is_at_least=False, of_ratio=False)
GATEWAY_AIM = Aim(1.5, is_at_least=False)

OPERATOR = Principal("key_bench", "bench", frozenset({Scope.ADMIN}))


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    cores = rig.share_out(1)
    setup = (
        f"{options.rows} rows beside {SMALL_ROWS}; gateway {options.rounds} rounds of "
        f"{options.seconds:g} s at half of saturation, "
        f"{'on a core of its own' if len(CORES) > 1 else 'one core for all'}"
    )
    results = Results("store", setup=setup, seed=SEED, again=options.again)
    for kind in options.databases:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-store-")))
            folder = kept_folder(kind, options.rows)
            (scratch / "small").mkdir()
            small_url = stack.enter_context(_database(kind, scratch / "small"))
            full_url = stack.enter_context(_database(kind, folder))
            _fill(small_url, SMALL_ROWS, scratch / "small")
            _fill(full_url, options.rows, folder)
            (scratch / "empty").mkdir()
            empty_url = stack.enter_context(_database(kind, scratch / "empty"))
            _measure_capture(results, f"{kind}: capture", empty_url, full_url)
            _measure_queries(results, f"{kind}: queries", small_url, full_url)
            _measure_gateway(
                results, f"{kind}: gateway", scratch, (small_url, full_url), cores, options
            )
    return 0


def kept_folder(kind: str, rows: int) -> Path:
    """Where a filled database stays; its name changes with what is in it."""
    digest = hashlib.blake2b(Path(traffic.__file__).read_bytes(), digest_size=4)
    for table in Base.metadata.sorted_tables:
        for statement in (CreateTable(table), *map(CreateIndex, _by_name(table.indexes))):
            digest.update(str(statement).encode())
    return FOLDER.parent / f".store-{rows}-{kind}-{digest.hexdigest()}"


def _by_name(indexes: Any) -> list[Any]:
    return sorted(indexes, key=lambda index: str(index.name))


@contextmanager
def _database(kind: str, folder: Path) -> Iterator[str]:
    """A URL with the schema, a line and a key behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if kind == "sqlite":
            url = f"sqlite:///{folder / 'everlearn.db'}"
        else:
            cluster = folder / "cluster"
            cluster.mkdir(exist_ok=True)
            url = stack.enter_context(running_postgres(cluster))
        rig.prepare(
            Settings(_env_file=None, home=folder, database_url=url, model=ModelSettings(name=MODEL))
        )
        yield url


def _fill(url: str, rows: int, folder: Path) -> None:
    """Store and judge the rows that are not there yet."""
    log = folder / "filled"
    done = read_filled(log)
    left = islice(enumerate(traffic.records(rows, SEED)), done, None)
    database = Database(url)
    while chunk := list(islice(left, CHUNK)):
        for start in range(0, len(chunk), BATCH):
            batch = chunk[start : start + BATCH]
            _store(database, [record for _, record in batch])
            _judge(database, batch)
        done += len(chunk)
        log.write_text(str(done))
        if done % (25 * CHUNK) == 0:
            sys.stderr.write(f"{url.partition(':')[0]}: {done:,} of {rows:,} rows\n")
    if database.engine.dialect.name == "postgresql":
        with database.engine.begin() as connection:
            connection.execute(text("ANALYZE"))  # what autovacuum does within a minute
    database.close_sync()


def read_filled(log: Path) -> int:
    """Rows stored by earlier runs; 0 where that was torn, for storing a row twice changes nothing."""
    try:
        return int(log.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _store(database: Database, records: Sequence[dict[str, Any]]) -> None:
    """The shipper's transaction."""
    with database.unit_of_work() as session:
        interactions.record_all(session, records)


def _judge(database: Database, batch: Sequence[tuple[int, dict[str, Any]]]) -> None:
    with database.unit_of_work() as session:
        for index, record in batch:
            if said := traffic.judgement(index):
                feedback.give(session, OPERATOR, record["completion_id"], [said])


def _measure_capture(results: Results, case: str, empty_url: str, full_url: str) -> None:
    """Rows a second into an empty and into the full database, in turn."""
    if results.has(case):
        return
    databases = {"empty": Database(empty_url), "full": Database(full_url)}
    rows = traffic.records(
        2 * CAPTURED_CHUNKS * CHUNK,
        seed=time.time_ns(),  # rows of an earlier run are passed over
        begins_at=traffic.BEGINS_AT + traffic.LASTS,
    )
    rates: dict[str, list[float]] = {name: [] for name in databases}
    for _ in range(CAPTURED_CHUNKS):
        for name, database in databases.items():
            chunk = list(islice(rows, CHUNK))
            began = time.perf_counter()
            for start in range(0, CHUNK, BATCH):
                _store(database, chunk[start : start + BATCH])
            rates[name].append(CHUNK / (time.perf_counter() - began))
    for database in databases.values():
        database.close_sync()
    empty, full = median(rates["empty"]), median(rates["full"])
    results.add(case, "empty: rows", empty, "1/s")
    results.add(case, "full: rows", full, "1/s", baseline=empty, aim=CAPTURE_AIM)
    results.finish(case)


def _measure_queries(results: Results, case: str, small_url: str, full_url: str) -> None:
    """Every query with a million rows beside the same with a thousand."""
    if results.has(case):
        return
    small, full = Database(small_url), Database(full_url)
    baseline = {query.name: took_ms for query, took_ms in queries.measure(small)}
    for query, took_ms in queries.measure(full):
        aim = QUERY_AIM if query.is_bounded else None
        results.add(case, query.name, took_ms, "ms", baseline=baseline[query.name], aim=aim)
    small.close_sync()
    full.close_sync()
    results.finish(case)


def _measure_gateway(
    results: Results,
    case: str,
    folder: Path,
    urls: tuple[str, str],
    cores: rig.Cores,
    options: argparse.Namespace,
) -> None:
    """The same load at half of saturation over the small and the full database, in turn."""
    if results.has(case):
        return
    with ExitStack() as stack:
        port = free_port()
        stack.enter_context(rig.running([sys.executable, "-m", "benchmarks.stub", str(port)]))
        gateways: dict[str, Contender] = {}
        for name, url in zip(("small", "full"), urls, strict=True):
            home = folder / f"gateway-{name}"
            home.mkdir()
            gateways[name] = stack.enter_context(
                rig.everlearn(home, f"http://127.0.0.1:{port}", cores.measured, url)
            )
        saturation = closed_loop(gateways["small"], "json", CLIENTS, options.seconds)
        rate = saturation["sustained_per_second"] / 2
        results.add(case, "requests", rate, "1/s")
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in gateways}
        for number in range(options.rounds):
            for name, gateway in gateways.items():
                seen[name].append(open_loop(gateway, "json", rate, options.seconds, number))
    for name, rounds in seen.items():
        failures = sum(sum(one["failures"].values()) for one in rounds)
        results.add(case, f"{name}: failures", failures, "requests")
        for part in ("p50", "p95", "p99"):
            value = middle(rounds, "latency_ms", part)
            baseline = middle(seen["small"], "latency_ms", part)
            aim = GATEWAY_AIM if (name, part) == ("full", "p99") else None
            results.add(case, f"{name}: {part}", value, "ms", baseline=baseline, aim=aim)
    results.finish(case)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--databases", type=lambda text: text.split(","), default=["sqlite", "postgresql"]
    )
    parser.add_argument("--seconds", type=float, default=10, help="of each load on the gateway")
    parser.add_argument("--rounds", type=int, default=5, help="of load on the gateway")
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
