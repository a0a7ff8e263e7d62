"""What has gone wrong in other people's servers, tried on ours; ``docs/traps.md`` is the list.

The gateway is real, the engine is the fake one with one fault at a time.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from openai import OpenAI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters import artifact
from server.core.errors import AdapterRefused
from server.core.settings import EngineSettings
from server.db import AdapterVersion, VersionStatus
from server.engine.control import open_control
from server.engine.residency import UNLOAD_GRACE_S, Residency
from server.engine.routing import AdapterRoutes, RoutingSnapshot, VersionRoute
from server.services import registry
from tests.support.chaos import Mode, Proxy
from tests.support.factories import make_version
from tests.support.fake_engine import Served
from tests.support.patient_engine import WARM_UP_TOKENS, PatientEngine
from tests.support.world import CHAT_KEY, KEY, World, ready, running_world, wait_for

V1, V2 = "smollm2@v1.00000000", "smollm2@v2.00000000"
HEADERS = {"authorization": f"Bearer {KEY}"}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Who?"}]},
    "/v1/completions": {"prompt": "Who?"},
    "/v1/responses": {"input": "Who?"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 9},
}

ENGINE_ORDERS = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/load_lora_adapter",
    "/sleep",
    "/wake_up",
    "/reset_prefix_cache",
    "/collective_rpc",
    "/update_weights",
    "/pause",
    "/v1/../v1/load_lora_adapter",
    "//v1/load_lora_adapter",
    "/v1/load_lora_adapter/",
    "/v1/%6coad_lora_adapter",
    "/v1/chat/completions/../../load_lora_adapter",
)
"""What vLLM takes orders under, with its development mode and without, and ways to disguise it."""

FOREIGN_NAMES = (
    "../../../../etc/passwd",
    "/etc/passwd",
    "smollm2/../../secret",
    "smollm2@../v1",
    "smollm2@v1/../../v2",
    "smollm2@v1.00000000/..",
    "smollm2@v01",
    "smollm2@v1\n",
    "SMOLLM2",
    " smollm2",
    "smollm2@v1.0000000G",
    "http://attacker.example/adapter",
    "hf://attacker/adapter",
    "x" * 100_000,
    "smollm2@" + "v1" * 1000,
    "\u0000",
    "%2e%2e%2f",
)
"""Paths, links and near misses, as clients have sent them to name what they may not have."""


@dataclass
class WatchedEngine(PatientEngine):
    """Remembers every path that it was asked for and every load order, word for word."""

    paths: set[str] = field(default_factory=set)
    orders: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> ASGIApp:
        inner = super().app()

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                self.paths.add(scope["path"])
            await inner(scope, receive, send)

        return watched

    async def _load(self, request: Request) -> Response:
        self.orders.append(await request.json())
        return await super()._load(request)


@pytest.fixture
def engine() -> WatchedEngine:
    return WatchedEngine()


def ask(client: OpenAI, model: str = "smollm2", **parameters: Any) -> Any:
    messages: Any = [{"role": "user", "content": "Who are you?"}]
    return client.chat.completions.create(model=model, messages=messages, **parameters)


def order(world: World, kind: str, **body: Any) -> httpx2.Response:
    """A promotion or a rollback of the only line."""
    url = f"{world.gateway.url}/api/v1/adapters/smollm2/{kind}"
    return httpx2.post(url, json=body, headers=HEADERS, timeout=30)


def champion(world: World) -> str:
    url = f"{world.gateway.url}/api/v1/adapters/smollm2"
    return str(httpx2.get(url, headers=HEADERS, timeout=30).json()["champion"])


def code_of(answer: httpx2.Response) -> str:
    return str(answer.json()["error"]["code"])


def all_loaded(world: World) -> None:
    """Wait until v1 and v2 are there and proven, and nothing else is due."""
    wait_for(lambda: {V1, V2} <= set(engine_of(world).adapters))
    wait_for(lambda: not engine_of(world).unproven)
    wait_for(lambda: ready(world.gateway.url))


def engine_of(world: World) -> WatchedEngine:
    assert isinstance(world.engine, WatchedEngine)
    return world.engine


def add_version(world: World) -> None:
    """v4, servable; the gateway sees it within a moment, and loads it."""
    with world.database.unit_of_work() as session:
        make_version(session, registry.get_adapter(session, "smollm2"))


def user_requests(world: World) -> list[dict[str, Any]]:
    """What the engine was asked beside proofs, which speak of other things."""
    return [body for body in world.engine.bodies if "Who" in str(body)]


# 2.1 Wrong weights


def test_the_same_number_trained_again_gets_another_name() -> None:
    trained = [AdapterVersion(number=7, digest=digest * 64) for digest in "ab"]

    names = [registry.engine_name("smollm2", version) for version in trained]

    assert names == ["smollm2@v7.aaaaaaaa", "smollm2@v7.bbbbbbbb"]


def test_a_forged_folder_under_our_name_never_answers(world: World) -> None:
    """Same name, other weights: what is cached under a name must be that name's for ever."""
    all_loaded(world)
    world.engine.adapters[V1] = "/forged"

    wait_for(lambda: world.engine.adapters.get(V1) != "/forged")

    assert world.engine.unloads.count(V1) == 1
    assert ask(world.client()).model == V1


def test_an_engine_that_answers_as_the_base_gets_nothing_promoted(world: World) -> None:
    all_loaded(world)
    world.engine.ignores_adapters = True
    add_version(world)

    answer = order(world, "promote", version="v4")

    assert (answer.status_code, code_of(answer)) == (502, "adapter_not_proven")
    assert "as if it were not there" in answer.json()["error"]["message"]
    assert champion(world) == "smollm2@v1"
    assert "smollm2@v4.00000000" not in world.engine.adapters
    assert ask(world.client()).model == V1


@pytest.mark.parametrize("model", ["smollm2", "smollm2@v1", "smollm2@champion"])
def test_a_missing_adapter_is_an_error_and_no_other_model_answers(world: World, model: str) -> None:
    all_loaded(world)
    world.engine.refuses_load = 400
    world.engine.lose_adapters()
    world.engine.bodies.clear()

    for is_stream in (False, True):
        answer = httpx2.post(
            f"{world.gateway.url}/v1/chat/completions",
            json={**BODIES["/v1/chat/completions"], "model": model, "stream": is_stream},
            headers=HEADERS,
            timeout=30,
        )
        assert (answer.status_code, code_of(answer)) == (502, "adapter_refused")

    assert user_requests(world) == []
    assert ask(world.client(), "smollm2@base").model == "smollm2@base"


@pytest.mark.parametrize("path", BODIES)
def test_streaming_or_not_every_endpoint_carries_the_adapter(world: World, path: str) -> None:
    names = (("smollm2", V1), ("smollm2@v2", V2), ("smollm2@base", "smollm2@base"))
    for (model, engine_name), is_stream in itertools.product(names, (False, True)):
        answer = httpx2.post(
            f"{world.gateway.url}{path}",
            json={**BODIES[path], "model": model, "stream": is_stream},
            headers=HEADERS,
            timeout=30,
        )
        assert answer.status_code == 200
        assert user_requests(world)[-1]["model"] == engine_name
        assert engine_name in answer.text
        assert answer.headers["x-everlearn-version"] == engine_name.partition(".")[0]


def test_a_request_without_a_model_reaches_no_engine(world: World) -> None:
    nobody: list[dict[str, Any]] = [{}, {"model": None}, {"model": ""}, {"model": 7}, {"model": []}]
    for (path, body), model in itertools.product(BODIES.items(), nobody):
        answer = httpx2.post(f"{world.gateway.url}{path}", json={**body, **model}, headers=HEADERS)
        assert answer.status_code in (400, 404), (path, model)

    assert user_requests(world) == []


def test_a_version_has_spoken_before_it_serves(world: World) -> None:
    """A slow first reply is nobody's: the proof has had it."""
    all_loaded(world)
    add_version(world)

    assert order(world, "promote", version="v4").status_code == 200

    warmed_up = [
        body["model"]
        for body in world.engine.bodies
        if body.get("max_tokens") == WARM_UP_TOKENS and body["model"] == "smollm2@v4.00000000"
    ]
    assert len(warmed_up) == 1
    assert user_requests(world) == []


# 2.2 Stalls, crashes, leaks


def test_a_load_that_fails_in_the_engine_leaves_the_others_served(world: World) -> None:
    all_loaded(world)
    world.engine.refuses_load = 500
    add_version(world)

    for _ in range(3):
        answer = order(world, "promote", version="v4")
        assert (answer.status_code, code_of(answer)) == (502, "adapter_refused")
        assert "LoRA rank 32" in answer.json()["error"]["message"]

    client = world.client()
    for model, engine_name in (("smollm2", V1), ("smollm2@v2", V2)):
        assert ask(client, model).model == engine_name
    assert champion(world) == "smollm2@v1"
    world.engine.refuses_load = None
    assert order(world, "promote", version="v4").status_code == 200
    assert ask(client).model == "smollm2@v4.00000000"


def test_a_slow_load_pauses_nobody(world: World) -> None:
    all_loaded(world)
    client, engine = world.client(), engine_of(world)
    with ThreadPoolExecutor(1) as pool:
        with engine.loads_held():
            add_version(world)
            promoting = pool.submit(order, world, "promote", version="v4")
            wait_for(lambda: engine.orders[-1]["lora_name"].startswith("smollm2@v4."))
            for _ in range(20):
                assert ask(client, "smollm2@v1").model == V1
            assert not promoting.done()
        while not promoting.done():
            assert ask(client, "smollm2@v1").model == V1

    assert promoting.result().status_code == 200, promoting.result().text


def begin(world: World, model: str, prompt: str) -> Any:
    """A stream that is held after its first token; the rest of it."""
    engine_of(world).hold(prompt)
    messages: Any = [{"role": "user", "content": prompt}]
    stream = world.client().chat.completions.create(model=model, messages=messages, stream=True)
    return next(stream).model, stream


def test_streams_in_flight_go_on_through_loads_and_moves(world: World) -> None:
    """To the last token on the version that they began on, and every one of them whole."""
    all_loaded(world)
    begun = []
    for number, version in enumerate(("v2", "base", "v1")):
        before = champion(world)
        begun.append((before, *begin(world, "smollm2", f"Who {number}")))
        engine_of(world).adapters.pop(V1 if version == "v1" else V2, None)  # it must load again
        assert order(world, "promote", version=version).status_code == 200

    assert [before for before, _, _ in begun] == ["smollm2@v1", "smollm2@v2", "smollm2@base"]
    for number, (before, first, stream) in enumerate(begun):
        engine_of(world).release(f"Who {number}")
        rest = list(stream)
        assert {chunk.model for chunk in rest} == {first}
        assert first.partition(".")[0] == before
        assert rest[-1].choices[0].finish_reason == "stop"


def test_what_is_in_use_is_unloaded_only_after_its_last_token(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_loaded(world)
    monkeypatch.setattr("server.engine.residency.UNLOAD_GRACE_S", 0.0)
    first, stream = begin(world, "smollm2@v2", "Who")

    with world.database.unit_of_work() as session:
        adapter = registry.get_adapter(session, "smollm2")
        version = registry.get_version(session, adapter, 2)
        assert version is not None
        registry.set_status(session, version, VersionStatus.RETIRED)
    time.sleep(0.5)  # ten rounds of the gateway

    assert world.engine.unloads == []
    engine_of(world).release("Who")
    assert {chunk.model for chunk in stream} == {first} == {V2}
    wait_for(lambda: V2 not in world.engine.adapters)
    assert world.engine.unloads == [V2]


async def test_files_stay_when_the_engine_lets_a_version_go(
    tmp_path: Path, engine: WatchedEngine, served_engine: Served
) -> None:
    """An engine that evicts a name still reads its folder when the name comes back."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("x")
    digest = artifact.digest(tmp_path)
    version = VersionRoute(1, V1, str(tmp_path), "servable", digest, is_resident=True)
    line = AdapterRoutes("smollm2", "smollm2@base", {}, {1: version})
    nobody = RoutingSnapshot(2, {"smollm2": AdapterRoutes("smollm2", "smollm2@base", {}, {})})
    now = [1000.0]
    async with open_control(EngineSettings(), served_engine.url) as control:
        residency = Residency(control, clock=lambda: now[0])
        await residency.ensure_loaded(version, line.base_engine_name)
        for _ in range(2):
            now[0] += UNLOAD_GRACE_S + 1
            await residency.observe()
            await residency.reconcile(nobody)
        assert engine.unloads == [V1]
        assert artifact.digest(tmp_path) == digest

        await residency.ensure_loaded(version, line.base_engine_name)
        assert engine.loads == [V1, V1]
        await residency.close()


async def test_files_that_are_gone_are_refused_before_the_engine_is_asked(
    tmp_path: Path, engine: WatchedEngine, served_engine: Served
) -> None:
    version = VersionRoute(1, V1, str(tmp_path / "gone"), "servable", "0" * 64, is_resident=True)
    async with open_control(EngineSettings(), served_engine.url) as control:
        residency = Residency(control)
        with pytest.raises(AdapterRefused, match="cannot be read"):
            await residency.ensure_loaded(version, "smollm2@base")
        await residency.close()

    assert engine.orders == []


def test_the_engine_gets_no_order_but_load_and_unload(world: World, engine: WatchedEngine) -> None:
    """Nothing is loaded in place, no cache is cleared, nothing sleeps or pauses."""
    all_loaded(world)
    for version in ("v2", "base", "v1"):
        assert order(world, "promote", version=version).status_code == 200
        ask(world.client())
        wait_for(lambda: not engine.unproven)
        engine.lose_adapters()
    assert order(world, "rollback", to="base").status_code == 200
    assert order(world, "promote", version="v2").status_code == 200

    assert {frozenset(given) for given in engine.orders if given} == {
        frozenset({"lora_name", "lora_path"})
    }
    assert engine.paths <= {
        "/health",
        "/version",
        "/metrics",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    }


def test_a_hung_engine_is_an_error_in_time_at_every_door(
    tmp_path: Path, paper_artifacts: None, engine: WatchedEngine, served_engine: Served
) -> None:
    port = int(served_engine.url.rpartition(":")[2])
    proxy = Proxy(lambda: asyncio.open_connection("127.0.0.1", port))
    with (
        proxy.running(),
        running_world(tmp_path, engine, f"http://127.0.0.1:{proxy.port}") as world,
        ThreadPoolExecutor(4) as pool,
    ):
        all_loaded(world)
        proxy.set_mode(Mode.HANG)
        began = time.monotonic()
        chat = f"{world.gateway.url}/v1/chat/completions"
        body = {**BODIES["/v1/chat/completions"], "model": "smollm2"}
        asked = [
            pool.submit(httpx2.post, chat, json=body, headers=HEADERS, timeout=30),
            pool.submit(
                httpx2.post, chat, json={**body, "stream": True}, headers=HEADERS, timeout=30
            ),
            pool.submit(order, world, "promote", version="v2"),
        ]
        codes = [(one.result().status_code, code_of(one.result())) for one in asked]

        assert codes == [(503, "engine_unavailable")] * 3
        assert time.monotonic() - began < 20  # each silence is bounded by 5 s here
        wait_for(lambda: not ready(world.gateway.url))
        assert champion(world) == "smollm2@v1"
        assert order(world, "promote", version="base").status_code == 200  # needs no engine

        proxy.set_mode(Mode.PASS)
        wait_for(lambda: ready(world.gateway.url), 20)
        assert order(world, "rollback").status_code == 409
        assert order(world, "promote", version="v1").status_code == 200
        assert ask(world.client()).model == V1


def test_a_rollback_loads_nothing(world: World) -> None:
    all_loaded(world)
    assert order(world, "promote", version="v2").status_code == 200
    loads, asked = len(world.engine.loads), len(world.engine.bodies)

    assert order(world, "rollback").status_code == 200

    assert (len(world.engine.loads), len(world.engine.bodies)) == (loads, asked)
    assert ask(world.client()).model == V1


def test_a_rollback_goes_to_what_served_before_also_when_that_was_the_base(world: World) -> None:
    all_loaded(world)
    for version in ("base", "v2"):
        assert order(world, "promote", version=version).status_code == 200

    assert order(world, "rollback").json()["to_version"] == "smollm2@base"
    assert ask(world.client()).model == "smollm2@base"


# 2.5 and rule 8: what strangers send


@pytest.fixture
def quiet_world(world: World) -> World:
    """Nothing is due at the engine any more: what comes now, a client has caused."""
    all_loaded(world)
    return world


@pytest.mark.parametrize("key", [None, "el_wrong", CHAT_KEY, KEY])
def test_the_engines_own_orders_are_out_of_reach(
    quiet_world: World, engine: WatchedEngine, key: str | None
) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    held, orders = dict(engine.adapters), len(engine.orders)

    body = {"lora_name": "evil", "lora_path": "/tmp/evil"}
    with httpx2.Client(base_url=quiet_world.gateway.url, headers=headers) as client:
        for path in ENGINE_ORDERS:
            for method in ("GET", "POST", "PUT"):
                answer = client.request(method, path, json=body)
                assert answer.status_code in (401, 404, 405), (method, path)

    assert engine.adapters == held
    assert len(engine.orders) == orders


def test_a_model_name_that_is_no_name_of_ours_stops_at_the_gateway(quiet_world: World) -> None:
    url = f"{quiet_world.gateway.url}/v1/chat/completions"
    for model in FOREIGN_NAMES:
        body = {**BODIES["/v1/chat/completions"], "model": model}
        answer = httpx2.post(url, json=body, headers=HEADERS)
        assert (answer.status_code, code_of(answer)) == (404, "model_not_found"), model[:100]

    assert user_requests(quiet_world) == []


async def test_ten_thousand_unknown_names_reach_no_engine(
    quiet_world: World, engine: WatchedEngine
) -> None:
    """vLLM keeps a lock for every name that it was ever asked for."""
    loads = len(engine.orders)
    url = f"{quiet_world.gateway.url}/v1/chat/completions"
    numbers: Iterator[int] = iter(range(10_000))
    statuses: set[int] = set()

    async def keep_asking(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            body = {**BODIES["/v1/chat/completions"], "model": f"smollm2@v{number + 100}"}
            async with session.post(url, json=body) as answer:
                statuses.add(answer.status)

    async with aiohttp.ClientSession(headers=HEADERS) as session:
        await asyncio.gather(*(keep_asking(session) for _ in range(16)))

    assert statuses == {404}
    assert user_requests(quiet_world) == []
    assert len(engine.orders) == loads
