"""`make bench-courtesy`: what users wait for their first token while an on-policy run is going.

Real vLLM serves the tests' tiny model through the whole gateway. Users come as a Poisson process and
stream short replies. In turn, round after round: no learning, learning as it is, and learning that
makes no room for users, neither at the engine nor on the processor. A run samples, trains, and has
the engine serve what it trained, step by step and without a pause.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import uvloop

from benchmarks import rig
from benchmarks.learner import LEARNT
from benchmarks.load import percentiles_ms, request_bytes
from benchmarks.real_engine import TINY_MODEL, start_engine
from benchmarks.results import Aim, Results
from benchmarks.rig import CORES, Contender
from benchmarks.stats import arrivals
from benchmarks.swap import CONTEXT, QUESTIONS
from benchmarks.swap_load import Answer, Caller
from server.core.settings import LearningSettings
from server.embedded.preflight import check_libraries
from server.engine.launch import require_engine

ALONE, POLITE, RUDE = "no learning", "learning", "learning that makes no room"
MOST = LearningSettings().rollout_concurrency
POLITENESS = {
    POLITE: (LearningSettings().rollouts_beside_users, LearningSettings().nice),
    RUDE: (MOST, 0),
}
"""Rollouts beside users, and niceness."""
AIM = Aim(1.1, is_at_least=False)
SEED = 0
TOKENS = 24
WARM_UP_S = 3.0
"""From a user's first request on, in each turn: by then learning knows that there are users."""
LEARNER_TIMEOUT_S = 120


@dataclass(slots=True)
class Turn:
    """What users saw in one turn, in seconds."""

    first_tokens: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failed: int = 0

    def take(self, answer: Answer) -> None:
        if answer.status != 200 or not answer.is_whole or not answer.times:
            self.failed += 1
            return
        self.first_tokens.append(answer.first_at - answer.asked_at)
        self.whole.append(answer.times[-1] - answer.asked_at)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if require_engine().is_cpu:
        check_libraries()
    cores = rig.share_out(len(CORES) - 1)
    setup = (
        f"{options.seconds:g} s a turn; {options.rate:g} users' requests/s of {TOKENS} tokens; up to "
        f"{MOST} rollouts; engine on {len(cores.measured)} cores, the rest on another"
    )
    results = Results("courtesy", setup=setup, seed=SEED, again=options.again)
    case = "first token"
    if results.has(case):
        return 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-courtesy-")))
        engine_port = start_engine(stack, folder, cores.measured)
        url = f"http://127.0.0.1:{engine_port}"
        gateway = stack.enter_context(rig.everlearn(folder, url, cores.others))
        for number in range(1, options.rounds + 1):
            _measure(results, f"{case}, round {number}", gateway, url, folder, options, number)
    _sum_up(results, case, options.rounds)
    return 0


def _measure(
    results: Results,
    case: str,
    gateway: Contender,
    engine_url: str,
    folder: Path,
    options: argparse.Namespace,
    number: int,
) -> None:
    if results.has(case):
        return
    baselines: dict[str, float] = {}
    for name in (ALONE, POLITE, RUDE):
        place = folder / f"run-{number}-{name.replace(' ', '-')}"
        with nullcontext() if name == ALONE else _learner(engine_url, place, *POLITENESS[name]):
            before = _learnt(place)
            turn = uvloop.run(_turn(gateway, options, seed=number))
            learnt = {what: done - before[what] for what, done in _learnt(place).items()}
        for what, spans in (("first token", turn.first_tokens), ("whole reply", turn.whole)):
            for part, value in percentiles_ms(spans).items():
                metric = f"{what} {part}"
                baselines.setdefault(metric, value)
                results.add(case, f"{name}: {metric}", value, "ms", baseline=baselines.get(metric))
        results.add(case, f"{name}: failed", turn.failed, "replies")
        for what, done in learnt.items():
            results.add(case, f"{name}: {what}", done, "in the turn")
    results.finish(case)


@contextmanager
def _learner(engine_url: str, place: Path, beside: int, nice: int) -> Iterator[None]:
    """A run that has trained its first step; ended at the end."""
    place.mkdir()
    command = [sys.executable, "-m", "benchmarks.learner", engine_url, str(TINY_MODEL), str(place)]
    with rig.running([*command, str(beside), str(nice)]) as process:
        deadline = time.monotonic() + LEARNER_TIMEOUT_S
        while not _learnt(place).get("steps"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the learner does not learn")
            time.sleep(0.2)
        yield


def _learnt(place: Path) -> dict[str, float]:
    """What a run has done since its start; nothing where there is none."""
    path = place / LEARNT
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1]) if whole else {}


async def _turn(gateway: Contender, options: argparse.Namespace, *, seed: int) -> Turn:
    turn = Turn()
    requests = [_request(gateway, question) for question in QUESTIONS]
    began = time.perf_counter()
    idle: list[Caller] = []

    async def ask(place: int, due_at: float) -> None:
        await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
        caller = idle.pop() if idle else Caller(gateway.port)
        answer = await caller.ask(requests[place % len(requests)], asked_at=due_at)
        idle.append(caller)
        if due_at >= began + WARM_UP_S:
            turn.take(answer)

    moments = arrivals(options.rate, WARM_UP_S + options.seconds, seed)
    async with asyncio.TaskGroup() as users:
        for place, moment in enumerate(moments):
            users.create_task(ask(place, began + moment))
    for caller in idle:
        caller.close()
    if not turn.first_tokens:
        raise RuntimeError(f"no user was answered; {turn.failed} replies failed")
    return turn


def _request(gateway: Contender, question: str) -> bytes:
    body = {
        "model": gateway.model,
        "messages": [{"role": "user", "content": CONTEXT + question}],
        "stream": True,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
    }
    return request_bytes(gateway.port, json.dumps(body).encode(), gateway.key)


def _sum_up(results: Results, case: str, rounds: int) -> None:
    """Medians over the rounds, beside those without learning."""
    for metric in ("first token p50", "first token p95", "whole reply p50"):
        seen = {
            name: _median(results, case, rounds, f"{name}: {metric}")
            for name in (ALONE, *POLITENESS)
        }
        for name, value in seen.items():
            has_aim = name == POLITE and metric == "first token p95"
            results.add(
                case,
                f"{name}: {metric}",
                value,
                "ms",
                baseline=seen[ALONE],
                aim=AIM if has_aim else None,
            )
    results.finish(case)


def _median(results: Results, case: str, rounds: int, metric: str) -> float:
    values: Sequence[float | None] = [
        results.value(f"{case}, round {number}", metric) for number in range(1, rounds + 1)
    ]
    return median(value for value in values if value is not None)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.courtesy")
    parser.add_argument("--seconds", type=float, default=60, help="of each turn; three a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2, help="users' requests a second")
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
