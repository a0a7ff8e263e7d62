"""`make bench-vllm`: real vLLM's tokens per second, direct and through Everlearn, in turn.

vLLM's CPU build serves the tests' tiny model on cores of its own, as an engine has its GPU; gateway,
database and load share the last core. Each round streams the same number of replies of the same
length one way and then the other, so what the machine does meanwhile meets both.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import uvloop

from benchmarks import rig
from benchmarks.load import Reply, crowd, percentiles_ms, request_bytes
from benchmarks.results import ROOT, Aim, Results
from benchmarks.rig import CORES, DIRECT, EVERLEARN, MODEL, Contender
from benchmarks.stub import BASE
from server.core.settings import ModelSettings, Settings
from server.embedded.preflight import check_libraries, free_port
from server.embedded.up import prepare_model
from server.engine.launch import engine_command, require_engine

TINY_MODEL = ROOT / "tests" / "support" / "tiny_model" / "weights"
AIM = Aim(0.98)
START_TIMEOUT_S = 300
ROUND_TIMEOUT_S = 300
NO_BINDING = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""vLLM would keep a core of those it gets for itself; there may be only one."""


class Quota:
    """Judges so many replies in all, and counts the engine's tokens."""

    def __init__(self, replies: int, clients: int, tokens: int) -> None:
        self._left = replies - clients
        self._tokens = tokens
        self.replies: list[Reply] = []
        self.failures: Counter[str] = Counter()
        self.tokens = 0

    def take(self, reply: Reply) -> bool:
        tokens = tokens_of(reply.body)
        if reply.status != 200:
            self.failures[f"status {reply.status}"] += 1
        elif tokens != self._tokens:
            self.failures[f"{tokens} tokens"] += 1
        else:
            self.tokens += tokens
            self.replies.append(reply)
        self._left -= 1
        return self._left >= 0

    def lose(self) -> None:
        self.failures["connection lost"] += 1


def tokens_of(body: bytes) -> int | None:
    """The completion's tokens by a stream's own account; None where it gives none."""
    for line in reversed(body.splitlines()):
        if line.startswith(b"data: {"):
            usage = json.loads(line.removeprefix(b"data: ")).get("usage")
            return None if usage is None else int(usage["completion_tokens"])
    return None


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if require_engine().is_cpu:
        check_libraries()
    cores = rig.share_out(len(CORES) - 1)
    setup = (
        f"{options.replies} replies of {options.tokens} tokens a round; "
        f"engine on {len(cores.measured)} cores, gateway, database and load on another"
    )
    results = Results("vllm", setup=setup, seed=0, again=options.again)
    case = f"{options.clients} streams"
    if results.has(case):
        return 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-vllm-")))
        port = start_engine(stack, folder, cores.measured)
        contenders = [
            Contender(DIRECT, port, "none", BASE),
            stack.enter_context(rig.everlearn(folder, f"http://127.0.0.1:{port}", cores.others)),
        ]
        for contender in contenders:
            _round(contender, options, options.clients)  # warm-up
        for number in range(1, options.rounds + 1):
            _measure(results, contenders, f"{case}, round {number}", options)
    _sum_up(results, case, options.rounds)
    return 0


def start_engine(stack: ExitStack, folder: Path, cores: Sequence[int]) -> int:
    """vLLM over the tests' tiny model on these cores, until the stack closes; its port."""
    settings = Settings(_env_file=None, home=folder, model=ModelSettings(name=MODEL))
    model = prepare_model(str(TINY_MODEL), folder)
    port = free_port()
    command = engine_command(settings, model.path, port)
    process = stack.enter_context(rig.running(command.argv, {**command.env, **NO_BINDING}, cores))
    rig.wait_for(f"http://127.0.0.1:{port}/health", process, START_TIMEOUT_S)
    return port


def _measure(
    results: Results, contenders: Sequence[Contender], case: str, options: argparse.Namespace
) -> None:
    if results.has(case):
        return
    rates: dict[str, float] = {}
    for contender in contenders:
        name, quota = contender.name, _round(contender, options, options.replies)
        began = min(reply.asked_at for reply in quota.replies)
        seconds = max(reply.ended_at for reply in quota.replies) - began
        rates[name] = quota.tokens / seconds
        results.add(case, f"{name}: tokens", rates[name], "1/s", baseline=rates[DIRECT])
        results.add(case, f"{name}: failures", sum(quota.failures.values()), "replies")
        first = percentiles_ms([reply.first_at - reply.asked_at for reply in quota.replies])
        results.add(case, f"{name}: first byte p50", first["p50"], "ms")
    results.finish(case)


def _round(contender: Contender, options: argparse.Namespace, replies: int) -> Quota:
    body = {
        "model": contender.model,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": options.tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    request = request_bytes(contender.port, json.dumps(body).encode(), contender.key)
    quota = Quota(replies, options.clients, options.tokens)
    began = time.monotonic()
    uvloop.run(crowd(contender.port, request, quota, options.clients, ROUND_TIMEOUT_S))
    if not quota.replies or time.monotonic() - began >= ROUND_TIMEOUT_S:
        raise TimeoutError(f"{contender.name}: no whole round; failures: {dict(quota.failures)}")
    return quota


def _sum_up(results: Results, case: str, rounds: int) -> None:
    """Medians over the rounds, and what of the engine's throughput is left."""
    medians: dict[str, dict[str, float]] = {}
    for metric in ("tokens", "first byte p50"):
        medians[metric] = {
            name: median(
                value
                for number in range(1, rounds + 1)
                if (value := results.value(f"{case}, round {number}", f"{name}: {metric}"))
                is not None
            )
            for name in (DIRECT, EVERLEARN)
        }
    tokens, first = medians["tokens"], medians["first byte p50"]
    results.add(case, "direct: tokens", tokens[DIRECT], "1/s")
    results.add(
        case, "everlearn: tokens", tokens[EVERLEARN], "1/s", baseline=tokens[DIRECT], aim=AIM
    )
    results.add(case, "direct: first byte p50", first[DIRECT], "ms")
    results.add(case, "everlearn: first byte p50", first[EVERLEARN], "ms", baseline=first[DIRECT])
    results.finish(case)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_engine")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--replies", type=int, default=256, help="in a round, each way")
    parser.add_argument("--tokens", type=int, default=128, help="of each reply")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
