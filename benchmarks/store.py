"""`make bench-store`: what a million interactions do to capture, to queries and to the gateway.

SQLite and PostgreSQL are each filled through the service that the shipper calls, in its batches. The
filled database stays in a folder beside this file, so that a run that was broken off goes on with it;
a changed schema or another traffic gets a folder of its own.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import text
from sqlalchemy.schema import CreateIndex, CreateTable

from benchmarks import queries, rig, traffic
from benchmarks.gateway import closed_loop, open_loop
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
CHUNK = 10 * BATCH
"""Rows whose time is written down together."""

ENDS = 10
"""Chunks at the beginning and at the end of the filling whose rates are compared."""

CLIENTS = 16
PAUSE_S = 1.0
"""Between two loads, so that what the first one captured is shipped."""

CAPTURE_AIM = Aim(0.8)
QUERY_AIM = Aim(100, is_at_least=False, of_ratio=False)
GATEWAY_AIM = Aim(1.5, is_at_least=False)

OPERATOR = Principal("key_bench", "bench", frozenset({Scope.ADMIN}))


@dataclass(frozen=True, slots=True)
class Filled:
    """How long a chunk of rows took to store, without what is done for the benchmark's sake."""

    rows: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


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
            chunks = _fill(full_url, options.rows, folder)
            _report_filling(results, f"{kind}: capture", chunks)
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


def _fill(url: str, rows: int, folder: Path) -> list[Filled]:
    """Store the rows that are not there yet; the times of all, those of earlier runs too."""
    log = folder / "filled.jsonl"
    chunks = read_filled(log)
    done = sum(chunk.rows for chunk in chunks)
    left = islice(enumerate(traffic.records(rows, SEED)), done, None)
    database = Database(url)
    while chunk := list(islice(left, CHUNK)):
        seconds = 0.0
        for start in range(0, len(chunk), BATCH):
            seconds += _store(database, chunk[start : start + BATCH])
        filled = Filled(len(chunk), seconds)
        with log.open("a") as file:
            file.write(json.dumps(asdict(filled)) + "\n")
        chunks.append(filled)
        done += filled.rows
        if done % (20 * CHUNK) == 0:
            sys.stderr.write(f"{url.partition(':')[0]}: {done} of {rows} rows\n")
    if database.engine.dialect.name == "postgresql":
        with database.engine.begin() as connection:
            connection.execute(text("ANALYZE"))  # what autovacuum does within a minute
    database.close_sync()
    return chunks


def _store(database: Database, batch: Sequence[tuple[int, dict[str, Any]]]) -> float:
    """Seconds that the shipper's transaction took; judgements come in one of their own."""
    began = time.perf_counter()
    with database.unit_of_work() as session:
        interactions.record_all(session, [record for _, record in batch])
    took = time.perf_counter() - began
    with database.unit_of_work() as session:
        for index, record in batch:
            if said := traffic.judgement(index):
                feedback.give(session, OPERATOR, record["completion_id"], [said])
    return took


def read_filled(log: Path) -> list[Filled]:
    """What earlier runs stored; a line torn by a kill is stored again, which changes nothing."""
    chunks = []
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            chunks.append(Filled(**json.loads(line)))
        except ValueError:
            log.write_text("".join(json.dumps(asdict(chunk)) + "\n" for chunk in chunks))
            break
    return chunks


def _report_filling(results: Results, case: str, chunks: Sequence[Filled]) -> None:
    if results.has(case):
        return
    begin = median(chunk.rate for chunk in chunks[:ENDS])
    end = median(chunk.rate for chunk in chunks[-ENDS:])
    results.add(case, "rows a second at the beginning", begin, "1/s")
    results.add(case, "rows a second at the end", end, "1/s", baseline=begin, aim=CAPTURE_AIM)
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
        rate = saturation["requests_per_second"] / 2
        results.add(case, "requests", rate, "1/s")
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in gateways}
        for number in range(options.rounds):
            for name, gateway in gateways.items():
                time.sleep(PAUSE_S)
                seen[name].append(open_loop(gateway, "json", rate, options.seconds, number))
    for name, rounds in seen.items():
        failures = sum(sum(one["failures"].values()) for one in rounds)
        results.add(case, f"{name}: failures", failures, "requests")
        for part in ("p50", "p95", "p99"):
            value = median(one["latency_ms"][part] for one in rounds)
            baseline = median(one["latency_ms"][part] for one in seen["small"])
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
