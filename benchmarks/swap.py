"""`make bench-swap`: versions are swapped under load, and every reply is checked.

Two versions with different weights, streams that never stop, and orders that go back and forth
between them: promotion to the second, rollback to the first. The same through Everlearn and, in the
same run, in the two ways that there are without it, where the versions share one name of the
engine: hold every request back, wait for those under way, unload, load, let go; or just unload and
load. Real vLLM serves the tests' tiny model; the stub shows the gateway at a higher rate.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop
from sqlalchemy.orm import Session

from benchmarks import rig, versions
from benchmarks.load import request_bytes
from benchmarks.real_engine import TINY_MODEL, start_engine
from benchmarks.results import Aim, Results
from benchmarks.rig import CORES, MODEL, Contender, Cores
from benchmarks.stub import CHUNKS, word_of
from benchmarks.swap_load import (
    Answer,
    Caller,
    Checker,
    Load,
    Order,
    Saying,
    Sayings,
    Timeline,
    phases,
    read_stream,
    summary_ms,
)
from server.core.settings import Settings
from server.embedded.preflight import check_libraries, free_port
from server.engine.launch import require_engine
from server.services import keys, registry

USUAL, CARELESS = "usual-vllm", "careless-vllm"
EVERLEARN, EVERLEARN_STUB = "everlearn-vllm", "everlearn-stub"
CASES = (EVERLEARN, USUAL, CARELESS, EVERLEARN_STUB)
"""In this order: the careless way has been seen to kill the engine, so it comes last of those on vLLM."""

SEED = 0
TOKENS = (16, 21, 26, 31, 36, 41, 46)
"""Of the tiny model's replies, question by question; replies of one length would begin all at once."""

PAUSE_S = 0.004
"""Of the stub between two chunks: 64 streams are then 16,000 chunks a second, about half of what the
gateway can relay, so that what is measured is not the queue of an overloaded one."""

WARM_UP_S = 5.0
PERIOD_S = {EVERLEARN: 0.3, EVERLEARN_STUB: 0.1, USUAL: 1.0, CARELESS: 1.0}
"""From one order to the next, where the one before is over by then."""

FEWER = {USUAL: 25, CARELESS: 25, EVERLEARN_STUB: 2}
"""One in so many of the swaps: each takes seconds, or they soon show what they do."""

GAPS_OF_EVERY = {EVERLEARN_STUB: 16}
LIVE = "live"
"""The one name that the versions share in the ways without Everlearn."""

NONE = Aim(0, is_at_least=False, of_ratio=False)
AIMS = {
    "first reply": Aim(100, is_at_least=False, of_ratio=False),
    "rollback": Aim(50, is_at_least=False, of_ratio=False),
    "gap": Aim(1.2, is_at_least=False),
}
"""Of Everlearn, for the 99th percentile."""

CONTEXT = (
    "You are a helpful assistant. You answer in short and plain sentences, and you say so when you "
    "do not know. The harbour of the town has a lighthouse with a white tower. The keeper lives in "
    "the small house beside it with two cats. On market days the people come down from the hills "
    "with bread, salt, apples and wool, and boats bring fish. The lamp burns all "
    "night. "
)
"""Before every question: longer than a block of the engine's cache, whose keys must not be mixed up."""

QUESTIONS = (
    "Tell me about cats.",
    "Tell me about the sea.",
    "Who are you?",
    "What can you do?",
    "Tell me about rain.",
    "Tell me a story.",
    "Write a short poem.",
    "Where is the lighthouse?",
    "Who keeps the lamp?",
    "What do the boats bring?",
    "Tell me about dogs.",
    "How are you?",
    "Good morning",
    "Tell me about the moon.",
    "What is sold on market days?",
    "When does the lamp burn?",
)
LEAST_SURE = 20
"""Characters of a reply that must be the same whatever else is in the batch."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine and two sets of weights for it."""

    port: int
    files: Mapping[int, Path]
    """By version, PEFT's two files."""
    cores: Cores

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Way(ABC):
    """How versions are served and swapped."""

    port: int
    key: str
    model: str
    """What clients ask for."""

    @abstractmethod
    async def swap(self, to: int, load: Load, order: Order) -> None:
        """Bring version ``to`` into service; fills the order in."""


class ThroughEverlearn(Way):
    """Promotion to the second version, rollback to the first."""

    def __init__(self, contender: Contender) -> None:
        self.port, self.key, self.model = contender.port, contender.key, contender.model
        self._caller = Caller(self.port)

    async def swap(self, to: int, load: Load, order: Order) -> None:
        path, body = ("rollback", {}) if to == 1 else ("promote", {"version": f"v{to}"})
        answer = await self._caller.ask(
            _post(self.port, f"/api/v1/adapters/{self.model}/{path}", body, self.key)
        )
        order.error = _problem(answer)


class OneName(Way):
    """Both versions under one name of the engine, which is asked directly.

    Args:
        waits: whether requests are held back until the new weights are there.
    """

    def __init__(self, engine: Engine, *, waits: bool) -> None:
        self.port, self.key, self.model = engine.port, "none", LIVE
        self._files = engine.files
        self._waits = waits
        self._caller = Caller(self.port)

    async def swap(self, to: int, load: Load, order: Order) -> None:
        if self._waits:
            load.hold()
            await load.idle()
        try:
            unloaded = await self._order("unload", {"lora_name": LIVE})
            loaded = await self.begin(to)
            order.error = unloaded or loaded
            order.waited = load.waiting
        finally:
            load.release()

    async def begin(self, version: int) -> str:
        """Load the version under the one name."""
        path = str(self._files[version])
        return await self._order("load", {"lora_name": LIVE, "lora_path": path})

    async def end(self) -> None:
        await self._order("unload", {"lora_name": LIVE})

    async def _order(self, kind: str, body: Mapping[str, str]) -> str:
        request = _post(self.port, f"/v1/{kind}_lora_adapter", body, self.key)
        return _problem(await self._caller.ask(request))


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # stop what was started
    cores = rig.share_out(len(CORES) - 1)
    setup = (
        f"{options.streams} streams, {options.seconds:g} s before and after; engine (stub: gateway) "
        f"on {len(cores.measured)} cores, the rest on another"
    )
    results = Results("swap", setup=setup, seed=SEED, again=options.again)
    wanted = [case for case in CASES if case in options.only and not results.has(case)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-swap-")))
        files = {n: versions.write_lora(folder / f"v{n}", TINY_MODEL, SEED + n) for n in (1, 2)}
        on_vllm = [case for case in wanted if case != EVERLEARN_STUB]
        if on_vllm:
            _measure_vllm(results, on_vllm, files, folder / "vllm", cores, options)
        if EVERLEARN_STUB in wanted:
            _measure_stub(results, files, folder / "stub", cores, options)
    return 0


def _measure_vllm(
    results: Results,
    cases: Sequence[str],
    files: Mapping[int, Path],
    folder: Path,
    cores: Cores,
    options: argparse.Namespace,
) -> None:
    if require_engine().is_cpu:
        check_libraries()
    folder.mkdir()
    with ExitStack() as stack:
        engine = Engine(start_engine(stack, folder, cores.measured), files, cores)
        questions, sayings = uvloop.run(_listen(engine, options.streams))
        for case in cases:
            if case == EVERLEARN:
                _through_everlearn(
                    results, case, engine, questions, sayings, folder, cores.others, options
                )
                continue
            way = OneName(engine, waits=case == USUAL)
            checker = Checker(sayings, None, {1: LIVE, 2: LIVE})
            uvloop.run(_run(results, case, way, questions, checker, options))


def _measure_stub(
    results: Results,
    files: Mapping[int, Path],
    folder: Path,
    cores: Cores,
    options: argparse.Namespace,
) -> None:
    folder.mkdir()
    port = free_port()
    with rig.running([sys.executable, "-m", "benchmarks.stub", str(port), str(PAUSE_S)]):
        sayings = {
            number: [Saying(text := word_of(f"v{number:04d}") * CHUNKS, len(text))]
            for number in files
        }
        engine = Engine(port, files, cores)
        _through_everlearn(
            results,
            EVERLEARN_STUB,
            engine,
            QUESTIONS[:1],
            sayings,
            folder,
            cores.measured[:1],
            options,
        )


def _through_everlearn(
    results: Results,
    case: str,
    engine: Engine,
    questions: Sequence[str],
    sayings: Sayings,
    folder: Path,
    cores: Sequence[int],
    options: argparse.Namespace,
) -> None:
    models: dict[int, str] = {}

    def fill(session: Session, settings: Settings) -> str:
        adapter = registry.get_adapter(session, MODEL)
        for number, trained in engine.files.items():
            models[number] = versions.register(session, settings, adapter, trained)
        versions.serve(session, adapter, 1)
        return keys.create_key(session, "bench", ["admin"], limits=rig.NEVER_REACHED)[1]

    with rig.everlearn(folder, engine.url, cores, fill=fill) as contender:
        names = {number: registry.version_name(MODEL, number) for number in models}
        checker = Checker(sayings, names, models)
        way = ThroughEverlearn(contender)
        uvloop.run(_run(results, case, way, questions, checker, options))


async def _listen(engine: Engine, streams: int) -> tuple[list[str], Sayings]:
    """What each version says to each question, alone and in batches of any size.

    Gives the questions to which the two say different things, with what they say.

    Raises:
        RuntimeError: there is hardly one; random weights of other strength are needed.
    """
    heard: dict[int, list[list[str]]] = {}
    for number, path in engine.files.items():
        way = OneName(engine, waits=False)
        way.model = f"heard-v{number}"
        order = {"lora_name": way.model, "lora_path": str(path)}
        caller = Caller(engine.port)
        loaded = await caller.ask(_post(engine.port, "/v1/load_lora_adapter", order, "none"))
        if problem := _problem(loaded):
            raise RuntimeError(f"the engine does not load version {number}: {problem}")
        heard[number] = await _said(way, streams)
        await caller.ask(
            _post(engine.port, "/v1/unload_lora_adapter", {"lora_name": way.model}, "none")
        )
        caller.close()
    sayings = {number: [_saying(texts) for texts in heard[number]] for number in heard}
    kept = [
        place
        for place in range(len(QUESTIONS))
        if all(sayings[number][place].sure >= LEAST_SURE for number in sayings)
        and not sayings[1][place].fits(sayings[2][place].text)
        and not sayings[2][place].fits(sayings[1][place].text)
    ]
    if len(kept) < 4:
        raise RuntimeError(f"only {len(kept)} questions tell the versions apart: {sayings}")
    return (
        [QUESTIONS[place] for place in kept],
        {number: [sayings[number][place] for place in kept] for number in sayings},
    )


async def _said(way: Way, streams: int) -> list[list[str]]:
    """By question, every text that was heard: asked alone twice, then four rounds of all streams."""
    requests = _requests(way, QUESTIONS)
    heard: list[list[str]] = [[] for _ in QUESTIONS]

    async def ask(caller: Caller, place: int) -> None:
        answer = await caller.ask(requests[place], place)
        if answer.status != 200:
            raise RuntimeError(f"the engine answers {_problem(answer)}")
        heard[place].append(read_stream(b"".join(answer.parts)).text)

    callers = [Caller(way.port) for _ in range(streams)]
    for place in (*range(len(requests)), *range(len(requests))):
        await ask(callers[0], place)
    for turn in range(4):
        await asyncio.gather(
            *(
                ask(caller, (place * 7 + turn) % len(requests))
                for place, caller in enumerate(callers)
            )
        )
    for caller in callers:
        caller.close()
    return heard


def _saying(texts: Sequence[str]) -> Saying:
    letters = zip(*texts, strict=False)
    shortest = min(map(len, texts))
    sure = next((place for place, one in enumerate(letters) if len(set(one)) > 1), shortest)
    return Saying(texts[0], sure if len(set(texts)) > 1 else len(texts[0]))


async def _run(
    results: Results,
    case: str,
    way: Way,
    questions: Sequence[str],
    checker: Checker,
    options: argparse.Namespace,
) -> None:
    """One way under load: quiet, orders, quiet."""
    timeline = Timeline(initial=1)
    requests = _requests(way, questions)
    load = Load(way.port, requests, checker, timeline, gaps_of_every=GAPS_OF_EVERY.get(case, 1))
    if isinstance(way, OneName) and (problem := await way.begin(1)):
        raise RuntimeError(f"the engine does not load the first version: {problem}")
    clients = asyncio.create_task(load.run(options.streams))
    await asyncio.sleep(WARM_UP_S)
    counts_from = time.perf_counter()
    await asyncio.sleep(options.seconds)
    async with asyncio.TaskGroup() as probes:
        for number in range(max(2, options.swaps // FEWER.get(case, 1))):
            order = Order(to=2 - number % 2, sent_at=time.perf_counter())
            timeline.orders.append(order)
            await way.swap(order.to, load, order)
            order.returned_at = time.perf_counter()
            probes.create_task(_probe(way.port, load, order, number % len(requests)))
            await asyncio.sleep(max(0.0, order.sent_at + PERIOD_S[case] - time.perf_counter()))
    await asyncio.sleep(options.seconds + 0.3)
    load.stop()
    await clients
    if isinstance(way, OneName):
        await way.end()
    _write_down(results, case, load, timeline, counts_from)


async def _probe(port: int, load: Load, order: Order, prompt: int) -> None:
    """Ask when an order has returned; its version answers, unless another order was quicker."""
    caller = Caller(port)
    answer, finding = await load.ask(caller, prompt)
    if finding.version == order.to:
        order.next_at = answer.first_at
    caller.close()


def _write_down(
    results: Results,
    case: str,
    load: Load,
    timeline: Timeline,
    counts_from: float,
) -> None:
    is_ours = case in (EVERLEARN, EVERLEARN_STUB)
    orders = timeline.orders
    none = NONE if is_ours else None
    results.add(case, "swaps", len(orders), "orders")
    results.add(case, "failed orders", sum(bool(o.error) for o in orders), "orders", aim=none)
    results.add(case, "replies", load.replies, "replies")
    results.add(case, "checked by the whole text", load.whole_texts, "replies")
    results.add(case, "failed", sum(load.failures.values()), "replies", aim=none)
    results.add(case, "wrong", sum(load.wrong.values()), "replies", aim=none)
    for why, count in (*load.failures.items(), *load.wrong.items()):
        results.add(case, f"of these: {why}", count, "replies")
    results.add(case, "held back", sum(order.waited for order in orders), "requests")
    took = {to: [o.returned_at - o.sent_at for o in orders if o.to == to] for to in (1, 2)}
    _add_times(results, case, "promotion", took[2])
    _add_times(results, case, "rollback", took[1], AIMS["rollback"] if is_ours else None)
    aim = AIMS["first reply"] if is_ours else None
    never = float("inf")
    asked_next = [o.next_at - o.sent_at for o in orders if o.next_at < never]
    _add_times(results, case, "order to first reply, asked next", asked_next, aim, USUAL)
    any_client = [o.first_at - o.sent_at for o in orders if o.first_at < never]
    _add_times(results, case, "order to first reply, any client", any_client, None, USUAL)
    parts = phases(orders, counts_from)
    for what, spans in (("first byte", load.first_bytes), ("gap", load.gaps)):
        before: Mapping[str, float] = {}
        for phase, is_part in parts.items():
            times = summary_ms(spans.within(is_part))
            before = before or times
            for part, value in times.items():
                has_aim = is_ours and (what, phase, part) == ("gap", "during", "p99")
                results.add(
                    case,
                    f"{what} {phase}: {part}",
                    value,
                    "ms",
                    baseline=before.get(part),
                    aim=AIMS["gap"] if has_aim else None,
                )
    results.finish(case)


def _add_times(
    results: Results,
    case: str,
    name: str,
    seconds: Sequence[float],
    aim: Aim | None = None,
    compared: str | None = None,
) -> None:
    for part, value in summary_ms(seconds).items():
        metric = f"{name}: {part}"
        baseline = results.value(compared, metric) if compared and compared != case else None
        wanted = aim if part == "p99" else None
        results.add(case, metric, value, "ms", baseline=baseline, aim=wanted)


def _requests(way: Way, questions: Sequence[str]) -> list[bytes]:
    return [
        request_bytes(way.port, json.dumps(_body(way.model, question)).encode(), way.key)
        for question in questions
    ]


def _body(model: str, question: str) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": CONTEXT + question}],
        "stream": True,
        "max_tokens": TOKENS[QUESTIONS.index(question) % len(TOKENS)],
        "ignore_eos": True,
        "temperature": 0,
    }


def _post(port: int, path: str, body: Mapping[str, str], key: str) -> bytes:
    text = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text


def _problem(answer: Answer) -> str:
    """Why an order was not carried out; nothing if it was."""
    if answer.status == 200:
        return ""
    return f"{answer.status}: {b''.join(answer.parts)[:200].decode(errors='replace')}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap")
    parser.add_argument("--swaps", type=int, default=1000, help="through Everlearn, in each case")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument(
        "--seconds", type=float, default=10, help="without orders, before and after"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, metavar="CASE")
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
