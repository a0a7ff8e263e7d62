"""`make bench-gateway`: what a gateway adds to its engine, side by side in one run.

The same load, the same upstream, three ways to it: direct, through Everlearn (real database, real
Valkey, a key with limits, capture on), through LiteLLM's proxy in an environment of its own. The
gateway has a core to itself where there are two; load and upstream share the other. First with
clients that ask without a pause, then with requests that come by chance at half of what was reached.

Not measured here: LiteLLM with its database, whose client's engine is downloaded at first use.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import rig
from benchmarks.load import WARM_UP_S
from benchmarks.results import ROOT, Aim, Results
from benchmarks.rig import CORES, DIRECT, EVERLEARN, LITELLM, Contender
from benchmarks.stub import BASE
from server.embedded.preflight import free_port

SEED = 0
PARTS = ("p50", "p95", "p99")

AIMS = {"json": Aim(25), "stream": Aim(40)}
"""Times LiteLLM's requests per second."""

ADDED_MS = {
    "p50": Aim(1, is_at_least=False, of_ratio=False),
    "p99": Aim(5, is_at_least=False, of_ratio=False),
}
"""What Everlearn may add at half of its saturation."""

LATENESS_MS = Aim(1, is_at_least=False, of_ratio=False)
"""p99 of how late the open loop may send; beyond it, it shares its core with too much."""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    cores = rig.share_out(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gateway-")))
        stub_port = free_port()
        stub_url = f"http://127.0.0.1:{stub_port}"
        stack.enter_context(rig.running([sys.executable, "-m", "benchmarks.stub", str(stub_port)]))
        contenders = [Contender(DIRECT, stub_port, "none", BASE)]
        if EVERLEARN in options.only:
            contenders.append(stack.enter_context(rig.everlearn(folder, stub_url, cores.measured)))
        if LITELLM in options.only:
            contenders.append(stack.enter_context(rig.litellm(folder, stub_url, cores.measured)))
        setup = (
            f"{options.seconds:g} s a case, {options.rounds} rounds of {options.open_seconds:g} s "
            "at half of saturation; "
            f"{_words(cores)}; LiteLLM without a database"
        )
        results = Results("gateway", setup=setup, seed=SEED, again=options.again)
        for kind in options.kinds:
            for clients in options.clients:
                _measure(results, contenders, kind, clients, options.seconds)
            rates = {
                one.name: _saturation(results, kind, options.clients, one.name) / 2
                for one in contenders
            }
            _measure_half(results, contenders, kind, rates, options)
        _measure_memory(results, contenders, options.memory_requests)
    return 0


def _measure(
    results: Results, contenders: Sequence[Contender], kind: str, clients: int, seconds: float
) -> None:
    """One kind of request at one number of clients, every contender in turn."""
    case = _case(kind, clients)
    if results.has(case):
        return
    rates: dict[str, float] = {}
    sustained: dict[str, float] = {}
    times: dict[str, Mapping[str, float]] = {}
    for contender in contenders:
        before = rig.used(contender.process)
        seen = closed_loop(contender, kind, clients, seconds)
        after = rig.used(contender.process)
        name = contender.name
        rates[name], times[name] = seen["requests_per_second"], seen["latency_ms"]
        sustained[name] = seen["sustained_per_second"]
        results.add(case, f"{name}: requests", rates[name], "1/s", baseline=rates.get(DIRECT))
        results.add(case, f"{name}: sustained requests", sustained[name], "1/s")
        results.add(case, f"{name}: failures", sum(seen["failures"].values()), "requests")
        for part in PARTS:
            if part in times[name]:
                direct = times[DIRECT].get(part)
                results.add(case, f"{name}: {part}", times[name][part], "ms", baseline=direct)
        if "p50" in seen["first_byte_ms"]:
            first = seen["first_byte_ms"]["p50"]
            results.add(case, f"{name}: first byte p50", first, "ms")
        if contender.process is not None and seen["all_requests"]:
            cpu_ms = 1000 * (after.cpu_s - before.cpu_s) / seen["all_requests"]
            results.add(case, f"{name}: CPU of a request", cpu_ms, "ms")
    for words, compared in (("requests", rates), ("sustained requests", sustained)):
        if EVERLEARN in compared and compared.get(LITELLM):
            results.add(
                case,
                f"everlearn: {words} against LiteLLM",
                compared[EVERLEARN],
                "1/s",
                baseline=compared[LITELLM],
                aim=AIMS[kind],
            )
    results.finish(case)


def _measure_half(
    results: Results,
    contenders: Sequence[Contender],
    kind: str,
    half_rates: Mapping[str, float],
    options: argparse.Namespace,
) -> None:
    """Requests that come by chance, at half of the gateway's saturation: what they wait for.

    The direct way gets Everlearn's rate, so that the difference is what Everlearn adds. Figures are
    medians over rounds in which all have their turn.
    """
    case = f"{kind}, half of saturation"
    if results.has(case) or not half_rates.get(EVERLEARN):
        return
    rates = {**half_rates, DIRECT: half_rates[EVERLEARN]}
    asked = [contender for contender in contenders if rates[contender.name]]
    seen: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in asked}
    for number in range(options.rounds):
        for contender in asked:
            rate = rates[contender.name]
            seen[contender.name].append(
                open_loop(contender, kind, rate, options.open_seconds, SEED + number)
            )
    for name, rounds in seen.items():
        requests = median(one["requests_per_second"] for one in rounds)
        failures = sum(sum(one["failures"].values()) for one in rounds)
        late = middle(rounds, "lateness_ms", "p99")
        results.add(case, f"{name}: requests", requests, "1/s", baseline=rates[name])
        results.add(case, f"{name}: failures", failures, "requests")
        results.add(case, f"{name}: sent late p99", late, "ms", aim=LATENESS_MS)
        for what, words in (("latency_ms", ""), ("first_byte_ms", "first byte ")):
            for part in PARTS:
                value, direct = middle(rounds, what, part), middle(seen[DIRECT], what, part)
                results.add(case, f"{name}: {words}{part}", value, "ms", baseline=direct)
        if name == DIRECT:
            continue
        for part in PARTS:
            added = middle(rounds, "latency_ms", part) - middle(seen[DIRECT], "latency_ms", part)
            aim = ADDED_MS.get(part) if name == EVERLEARN else None
            results.add(case, f"{name}: added {part}", added, "ms", aim=aim)
    results.finish(case)


def middle(rounds: Sequence[Mapping[str, Any]], what: str, part: str) -> float:
    """The median over rounds of one percentile; NaN where nothing was answered."""
    values = [one[what][part] for one in rounds if part in one[what]]
    return median(values) if values else math.nan


def _saturation(results: Results, kind: str, clients: Sequence[int], name: str) -> float:
    """The best sustained rate of this run, or of the one that it goes on with."""
    metric = f"{name}: sustained requests"
    rates = (results.value(_case(kind, count), metric) for count in clients)
    return max((rate for rate in rates if rate is not None), default=0.0)


def _measure_memory(results: Results, contenders: Sequence[Contender], requests: int) -> None:
    """Resident memory before and after many requests."""
    case = f"memory, {requests} requests"
    everlearn = next((one for one in contenders if one.name == EVERLEARN), None)
    if everlearn is None or requests == 0 or results.has(case):
        return
    before, done = rig.used(everlearn.process).rss_bytes, 0
    while done < requests:
        done += closed_loop(everlearn, "json", 64, 10)["all_requests"]
    after = rig.used(everlearn.process).rss_bytes
    mib = 1024 * 1024
    aim = Aim(1.1, is_at_least=False)
    results.add(case, "everlearn: RSS", after / mib, "MiB", baseline=before / mib, aim=aim)
    results.finish(case)


def closed_loop(contender: Contender, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    """What ``benchmarks.load`` reports, from a process of its own, and the sustained rate.

    A gateway answers first and ships what it captured afterwards, so for a while it answers more
    than it could for long; the sustained rate counts the time until all is in the database.
    """
    seen = _load("benchmarks.load", contender, kind, clients, seconds)
    took_s = WARM_UP_S + seconds
    share = took_s / (took_s + rig.wait_until_shipped(contender))
    return {**seen, "sustained_per_second": seen["requests_per_second"] * share}


def open_loop(
    contender: Contender, kind: str, rate: float, seconds: float, seed: int = SEED
) -> dict[str, Any]:
    """What ``benchmarks.open_loop`` reports, from a process of its own; returns when all is shipped."""
    seen = _load("benchmarks.open_loop", contender, kind, rate, seconds, seed)
    rig.wait_until_shipped(contender)
    return seen


def _load(module: str, contender: Contender, kind: str, *numbers: float) -> dict[str, Any]:
    body = {
        "model": contender.model,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "stream": kind == "stream",
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(body, file)
        file.flush()
        command = [sys.executable, "-m", module, str(contender.port), file.name, contender.key]
        command += [str(number) for number in numbers]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def _case(kind: str, clients: int) -> str:
    return f"{kind}, {clients} clients"


def _words(cores: rig.Cores) -> str:
    if len(CORES) == 1:
        return "one core for all"
    return f"gateways on one core in turn, load, upstream and database on {len(cores.others)}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--open-seconds", type=float, default=10, help="of a round at half load")
    parser.add_argument("--rounds", type=int, default=5, help="at half load")
    parser.add_argument("--clients", type=numbers, default=[16, 64, 256])
    parser.add_argument("--kinds", type=words, default=["json", "stream"])
    parser.add_argument("--only", type=words, default=[EVERLEARN, LITELLM])
    parser.add_argument("--memory-requests", type=int, default=100_000)
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
