"""Orders to an engine, the proof and the probe, over a real socket and the fake engine."""

import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from server.core.errors import (
    AdapterNotProven,
    AdapterRefused,
    EngineBroken,
    EngineError,
    EngineUnavailable,
    EngineUnsafe,
    SetupError,
    WeightsNotHeld,
)
from server.core.settings import EngineSettings
from server.engine.client import EngineClient
from server.engine.control import EngineControl, open_control
from server.engine.probe import check_engine
from tests.support.fake_engine import FakeEngine, serve

BASE = "smollm2@base"
V1 = "smollm2@v1.11111111"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def url(engine: FakeEngine, request: pytest.FixtureRequest) -> Iterator[str]:
    for field, value in getattr(request, "param", {}).items():
        setattr(engine, field, value)
    with serve(engine.app()) as served:
        yield served.url


@pytest.fixture
async def control(url: str) -> AsyncIterator[EngineControl]:
    settings = EngineSettings(connect_timeout_s=1, load_timeout_s=1)
    async with open_control(settings, url) as control:
        yield control


async def test_loading_twice_is_fine(engine: FakeEngine, control: EngineControl) -> None:
    await control.load_adapter(V1, "/a/1")
    await control.load_adapter(V1, "/a/1")

    listed = await control.models()
    assert [(m.name, m.root, m.parent) for m in listed] == [
        (BASE, "/models/base", None),
        (V1, "/a/1", BASE),
    ]
    assert engine.loads == [V1]


async def test_other_files_under_a_taken_name_are_refused(control: EngineControl) -> None:
    await control.load_adapter(V1, "/a/1")

    with pytest.raises(AdapterRefused, match=r"holds /a/1 .* not /a/other"):
        await control.load_adapter(V1, "/a/other")


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_a_refused_load_gives_the_engines_reason(
    engine: FakeEngine, control: EngineControl, status: int
) -> None:
    engine.refuses_load = status

    with pytest.raises(AdapterRefused, match="rank 32"):
        await control.load_adapter(V1, "/a/1")


async def test_a_load_that_takes_too_long_is_unavailable(
    engine: FakeEngine, control: EngineControl
) -> None:
    engine.load_s = 3

    with pytest.raises(EngineUnavailable, match="in time"):
        await control.load_adapter(V1, "/a/1")


async def test_unloading_what_is_not_there_is_fine(
    engine: FakeEngine, control: EngineControl
) -> None:
    await control.load_adapter(V1, "/a/1")
    await control.unload_adapter(V1)
    await control.unload_adapter(V1)

    assert engine.unloads == [V1]


async def test_chat_returns_the_text_of_the_weights_named(control: EngineControl) -> None:
    text = await control.chat(BASE, {"messages": [{"role": "user", "content": "Hi"}]})

    assert text == f"{BASE} 1 2 3 4 5"
    with pytest.raises(WeightsNotHeld, match="does not exist"):
        await control.chat(V1, {"messages": [{"role": "user", "content": "Hi"}]})


async def test_a_request_that_is_wrong_is_told_from_an_engine_that_is_broken(
    engine: FakeEngine, control: EngineControl
) -> None:
    question = {"messages": [{"role": "user", "content": "Hi"}]}
    with pytest.raises(EngineError) as wrong:
        await control.chat(BASE, {**question, "temperature": -1})
    engine.refuses_chat = 500
    with pytest.raises(EngineBroken, match="the engine is dead"):
        await control.chat(BASE, question)

    assert not isinstance(wrong.value, EngineBroken | WeightsNotHeld)


async def test_an_adapter_that_answers_is_proven(control: EngineControl) -> None:
    await control.load_adapter(V1, "/a/1")

    difference = await control.prove_adapter(V1, BASE)

    assert difference == pytest.approx(0.2)


async def test_an_adapter_that_is_not_listed_is_not_proven(control: EngineControl) -> None:
    with pytest.raises(AdapterNotProven, match="not in the engine's list"):
        await control.prove_adapter(V1, BASE)


async def test_an_adapter_that_changes_nothing_is_not_proven(
    engine: FakeEngine, control: EngineControl
) -> None:
    engine.ignores_adapters = True
    await control.load_adapter(V1, "/a/1")

    with pytest.raises(AdapterNotProven, match="as if it were not there"):
        await control.prove_adapter(V1, BASE)


async def test_a_good_engine_passes_the_probe(control: EngineControl) -> None:
    await check_engine(
        control, base_engine_name=BASE, adapters_needed=3, trained_rank=16, max_lora_rank=16
    )


async def test_an_engine_that_asks_for_a_key_passes_with_it_and_only_with_it(
    engine: FakeEngine, url: str
) -> None:
    engine.api_key = "k3y"
    async with open_control(EngineSettings(api_key=SecretStr("k3y")), url) as control:
        await check_engine(control, base_engine_name=BASE, adapters_needed=3)
        await control.load_adapter(V1, "/a/1")
        await control.prove_adapter(V1, BASE)
        await control.unload_adapter(V1)
    async with open_control(EngineSettings(), url) as control:
        await control.health()
        with pytest.raises(EngineError, match="401"):
            await control.load_adapter(V1, "/a/1")
    assert engine.loads == [V1]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ({"version": "0.30.2"}, r"vLLM 0\.30\.2.*Upgrade"),
        ({"version": "0.9.0"}, "Upgrade"),
        ({"version": "dev"}, r"0\.31 or newer"),
        ({"has_lora": False}, "--enable-lora"),
        ({"allows_updates": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"max_loras": 2}, r"2 LoRA slots, and 3 .*--max-loras 3"),
        ({"base": "other"}, "called other, not smollm2@base.*--served-model-name smollm2@base"),
    ],
    indirect=["url"],
)
async def test_an_unsafe_engine_is_refused_with_the_remedy(
    control: EngineControl, says: str
) -> None:
    with pytest.raises(EngineUnsafe, match=says):
        await check_engine(control, base_engine_name=BASE, adapters_needed=3)


async def test_a_rank_beyond_the_engines_is_refused(control: EngineControl) -> None:
    with pytest.raises(EngineUnsafe, match="EVERLEARN_ENGINE__MAX_LORA_RANK"):
        await check_engine(
            control, base_engine_name=BASE, adapters_needed=3, trained_rank=32, max_lora_rank=16
        )


async def test_without_an_address_there_is_no_control() -> None:
    with pytest.raises(SetupError, match="EVERLEARN_ENGINE__URL"):
        async with open_control(EngineSettings()):
            pass


async def test_a_refused_connection_is_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with open_control(EngineSettings(), f"http://127.0.0.1:{port}") as control:
            with pytest.raises(EngineUnavailable, match="connection refused"):
                await control.health()


ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
def dropper() -> Iterator[tuple[str, list[int]]]:
    """A server that answers once per connection and hangs up at the second request on it."""
    served: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_connections() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                for _ in range(2):
                    if not connection.recv(65536):
                        break
                    served.append(len(served))
                    if served[-1] in (0, 2):
                        connection.sendall(ANSWER)
                    else:
                        break

    thread = threading.Thread(target=serve_connections, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", served
    listener.close()


async def test_a_kept_connection_that_was_closed_is_tried_once_more(
    dropper: tuple[str, list[int]],
) -> None:
    url, served = dropper
    async with EngineClient(EngineSettings(), url) as client:
        for _ in range(2):
            async with client.request("POST", "/", body={}) as answer:
                assert await answer.read() == b"{}"

    assert len(served) == 3


async def test_a_fresh_connection_that_breaks_is_not_tried_again(
    dropper: tuple[str, list[int]],
) -> None:
    url, served = dropper
    served.append(0)
    async with EngineClient(EngineSettings(), url) as client:
        with pytest.raises(EngineUnavailable):
            async with client.request("POST", "/", body={}):
                pass

    assert len(served) == 2
