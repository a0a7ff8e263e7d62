"""Several gateways on one real Valkey: limits are shared, changed keys are told; and without it each goes on."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import pytest

from server.app import create_app
from server.core.errors import RateLimited
from server.core.security import Scope
from server.core.settings import EngineSettings, Settings, SwapSettings
from server.db.session import Database
from server.http import KeyRing, Limiter, open_valkey
from server.services import keys
from server.services.bootstrap import ensure_line
from server.services.keys import Limits, Principal
from tests.conftest import BASE_HASH, RecordingQueue
from tests.support.fake_engine import FakeEngine, serve
from tests.support.servers import free_port, running_valkey

pytestmark = pytest.mark.integration

SECRET = "el_known_to_both_gateways"
AT_ONCE_S = 0.5
"""Far below the second after which a key is looked up anew in any case; usually it is milliseconds."""


@pytest.fixture
def valkey_url(tmp_path: Path) -> Iterator[str]:
    with running_valkey(tmp_path) as url:
        yield url


@pytest.fixture
async def database(database: Database) -> AsyncIterator[Database]:
    yield database
    await database.close()


def stopped_clock() -> float:
    """A remembered key never grows old by it, so only a message can make it forgotten."""
    return 60_000_000.0


def principal(**limits: int) -> Principal:
    return Principal("key_1", "k", frozenset({Scope.CHAT}), limits=Limits(**limits))


def admitted(limiter: Limiter, who: Principal, tries: int) -> int:
    passed = 0
    for _ in range(tries):
        try:
            limiter.admit(who)
        except RateLimited:
            continue
        passed += 1
    return passed


async def fresh_headers(limiter: Limiter, who: Principal) -> dict[str, str]:
    """What a gateway tells a client that came a moment ago, too: what is asked for is exchanged."""
    limiter.headers(who)
    await limiter.sync()
    return limiter.headers(who)


@asynccontextmanager
async def limiters(url: str, database: Database, count: int = 2) -> AsyncIterator[list[Limiter]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            valkey = open_valkey(url)
            stack.push_async_callback(valkey.aclose)
            made.append(Limiter(database, valkey, clock=stopped_clock))
        yield made


@asynccontextmanager
async def key_rings(url: str, database: Database, count: int = 2) -> AsyncIterator[list[KeyRing]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            valkey = open_valkey(url)
            stack.push_async_callback(valkey.aclose)
            ring = KeyRing(database, valkey, clock=stopped_clock)
            await ring.start()
            stack.push_async_callback(ring.close)
            made.append(ring)
        yield made


async def test_two_gateways_admit_together_what_one_may(
    valkey_url: str, database: Database
) -> None:
    who = principal(requests_per_minute=10, tokens_per_minute=1000)
    async with limiters(valkey_url, database) as (first, second):
        assert admitted(first, who, 4) == 4
        first.spend(who, 100)
        second.admit(who)
        second.spend(who, 20)
        for one in (first, second):
            await one.sync()

        for one in (first, second):
            headers = await fresh_headers(one, who)
            assert headers["x-ratelimit-remaining-requests"] == "5"
            assert headers["x-ratelimit-remaining-tokens"] == "880"
        assert admitted(second, who, 20) == 5
        await second.sync()
        await fresh_headers(first, who)
        assert admitted(first, who, 20) == 0


async def test_counting_in_turns_counts_everything_once(
    valkey_url: str, database: Database
) -> None:
    who = principal(requests_per_minute=1000)
    async with limiters(valkey_url, database, 3) as gateways:
        for round_number in range(5):
            for one in gateways:
                assert admitted(one, who, round_number) == round_number
                await one.sync()
        found = [await fresh_headers(one, who) for one in gateways]

    left = {headers["x-ratelimit-remaining-requests"] for headers in found}
    assert left == {str(1000 - 3 * (0 + 1 + 2 + 3 + 4))}


async def test_what_was_admitted_during_an_exchange_is_not_lost(
    valkey_url: str, database: Database
) -> None:
    who = principal(requests_per_minute=1000)
    async with limiters(valkey_url, database, 1) as (one,):
        for _ in range(10):
            exchange = asyncio.create_task(one.sync())
            # Not until it is done: during a slow exchange more would come than may.
            for _ in range(20):
                one.admit(who)
                await asyncio.sleep(0)
            await exchange
        before = one.headers(who)

        assert before["x-ratelimit-remaining-requests"] == str(1000 - 10 * 20)
        assert await fresh_headers(one, who) == before


async def test_many_keys_are_exchanged_at_once(valkey_url: str, database: Database) -> None:
    people = [
        Principal(f"key_{n}", "k", frozenset(), limits=Limits(requests_per_minute=10))
        for n in range(2000)
    ]
    async with limiters(valkey_url, database) as (first, second):
        for who in people:
            first.admit(who)
        await first.sync()

        for who in (people[0], people[-1]):
            headers = await fresh_headers(second, who)
            assert headers["x-ratelimit-remaining-requests"] == "9"


async def test_without_valkey_each_gateway_counts_alone_and_adds_up_later(
    tmp_path: Path, database: Database
) -> None:
    who, port = principal(requests_per_minute=6), free_port()
    with running_valkey(tmp_path, port) as url:
        async with limiters(url, database) as gateways:
            for one in gateways:
                one.admit(who)
                await one.sync()
    async with limiters(url, database) as (first, second):
        for one in (first, second):
            began = time.monotonic()
            assert admitted(one, who, 3) == 3
            await one.sync()  # raises nothing, and waits for nobody
            assert time.monotonic() - began < 2

        with running_valkey(tmp_path, port):
            for one in (first, second):
                await one.sync()
            for one in (first, second):
                await fresh_headers(one, who)

            assert admitted(first, who, 5) == admitted(second, who, 5) == 0


async def test_a_limiter_at_work_survives_valkey(tmp_path: Path, database: Database) -> None:
    who = principal(requests_per_minute=100)
    with running_valkey(tmp_path) as url:
        valkey = open_valkey(url)
        limiter = Limiter(database, valkey)
        await limiter.start()
        limiter.admit(who)
        await asyncio.sleep(0.6)
    assert admitted(limiter, who, 50) == 50
    await asyncio.sleep(0.6)
    assert admitted(limiter, who, 100) == 49
    await limiter.close()
    await valkey.aclose()


async def test_a_revoked_key_is_forgotten_by_every_gateway_at_once(
    valkey_url: str, database: Database
) -> None:
    key_id = store_key(database)
    async with key_rings(valkey_url, database) as (first, second):
        for ring in (first, second):
            await heard(ring, valkey_url)
            assert await ring.authenticate(SECRET) is not None
        await database.run(keys.revoke_key, key_id)
        assert await second.authenticate(SECRET) is not None  # nobody has told it

        await first.changed(key_id)

        assert await first.authenticate(SECRET) is None
        await within(AT_ONCE_S, lambda: is_closed(second))


async def test_a_changed_limit_is_known_to_every_gateway_at_once(
    valkey_url: str, database: Database
) -> None:
    key_id = store_key(database)
    async with key_rings(valkey_url, database) as (first, second):
        for ring in (first, second):
            await heard(ring, valkey_url)
            await ring.authenticate(SECRET)
        await database.run(keys.change_key, key_id, {"token_budget": 5})

        await first.changed(key_id)

        async def knows() -> bool:
            who = await second.authenticate(SECRET)
            return who is not None and who.limits.token_budget == 5

        await within(AT_ONCE_S, knows)


async def test_a_key_that_was_read_before_the_change_is_not_remembered(
    database: Database,
) -> None:
    key_id = store_key(database)
    ring = KeyRing(database, clock=stopped_clock)
    read = database.read

    async def slow_read(*args: object) -> object:
        found = await read(*args)  # type: ignore[arg-type]
        await database.run(keys.revoke_key, key_id)
        ring.forget(key_id)
        return found

    database.read = slow_read  # type: ignore[method-assign,assignment]
    await ring.authenticate(SECRET)
    database.read = read  # type: ignore[method-assign]

    assert await ring.authenticate(SECRET) is None


async def test_without_valkey_a_key_is_closed_where_it_was_revoked(database: Database) -> None:
    key_id = store_key(database)
    async with key_rings(f"redis://127.0.0.1:{free_port()}/0", database, 1) as (ring,):
        assert await ring.authenticate(SECRET) is not None
        await database.run(keys.revoke_key, key_id)

        await ring.changed(key_id)

        assert await ring.authenticate(SECRET) is None


async def test_a_gateway_listens_again_when_valkey_is_back(
    tmp_path: Path, database: Database
) -> None:
    key_id, port = store_key(database), free_port()
    with running_valkey(tmp_path, port) as url:
        valkey = open_valkey(url)
        ring = KeyRing(database, valkey, clock=stopped_clock)
        await ring.start()
        await heard(ring, url)
    assert await ring.authenticate(SECRET) is not None
    with running_valkey(tmp_path, port) as url:
        await database.run(keys.revoke_key, key_id)
        other = open_valkey(url)

        async def told() -> bool:
            await other.publish("everlearn:keys-changed", key_id)
            return await is_closed(ring)

        await within(10, told)
        await other.aclose()
    await ring.close()
    await valkey.aclose()


def test_two_servers_share_limits_and_revocations_and_outlive_valkey(
    tmp_path: Path, settings: Settings, database: Database
) -> None:
    with serve(FakeEngine().app()) as upstream:
        with (
            running_valkey(tmp_path) as url,
            gateways(settings, database, upstream.url, url) as (
                first,
                second,
            ),
        ):
            limited = mint(first, requests_per_minute=10)
            closed = mint(first)
            assert [chat(second, limited["key"]) for _ in range(10)] == [200] * 10
            assert chat(second, closed["key"]) == 200
            until(lambda: chat(first, limited["key"]) == 429)

            first.delete(f"/api/v1/keys/{closed['id']}")

            began = time.monotonic()
            until(lambda: chat(second, closed["key"]) == 401)
            assert time.monotonic() - began < AT_ONCE_S
            still_good = mint(second)
            # The servers outlive Valkey by a few requests below.
            stop = running_valkey_of(url)
            stop()
            for gateway in (first, second):
                assert [chat(gateway, still_good["key"]) for _ in range(5)] == [200] * 5
                assert chat(gateway, limited["key"]) == 429
            answer = first.delete(f"/api/v1/keys/{still_good['id']}")
            assert answer.status_code == 200
            assert chat(first, still_good["key"]) == 401
            until(lambda: chat(second, still_good["key"]) == 401)


def running_valkey_of(url: str) -> Callable[[], None]:
    """What ends the server behind ``url``, as an operator's mistake would."""

    def stop() -> None:
        port = httpx2.URL(url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"SHUTDOWN NOSAVE\r\n")
            connection.recv(100)

    return stop


@contextmanager
def gateways(
    settings: Settings, database: Database, engine_url: str, valkey_url: str
) -> Iterator[tuple[httpx2.Client, httpx2.Client]]:
    settings = settings.model_copy(
        update={
            "database_url": database.url.render_as_string(hide_password=False),
            "redis_url": valkey_url,
            "engine": EngineSettings(url=engine_url),
            "swap": SwapSettings(refresh_s=0.05),
        }
    )
    with database.unit_of_work() as session:
        ensure_line(session, settings, base_path=settings.home_path, base_hash=BASE_HASH)
        keys.add_key(session, "operator", ["admin"], secret=SECRET)
    homes = [settings.model_copy(update={"home": settings.home_path / name}) for name in ("a", "b")]
    with (
        serve(create_app(homes[0], queue=RecordingQueue())) as first,
        serve(create_app(homes[1], queue=RecordingQueue())) as second,
        httpx2.Client(base_url=first.url, headers=bearer(SECRET), timeout=30) as one,
        httpx2.Client(base_url=second.url, headers=bearer(SECRET), timeout=30) as other,
    ):
        for client in (one, other):
            until(lambda client=client: client.get("/readyz").status_code == 200)  # type: ignore[misc]
        yield one, other


def mint(client: httpx2.Client, **limits: int) -> dict[str, str]:
    body = {"name": "k", "scopes": ["chat"], **limits}
    answer: dict[str, str] = client.post("/api/v1/keys", json=body).json()
    return answer


def chat(client: httpx2.Client, key: str) -> int:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]}
    return client.post("/v1/chat/completions", json=body, headers=bearer(key)).status_code


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def store_key(database: Database) -> str:
    with database.unit_of_work() as session:
        return keys.add_key(session, "k", ["chat"], secret=SECRET).id


async def is_closed(ring: KeyRing) -> bool:
    return await ring.authenticate(SECRET) is None


async def heard(ring: KeyRing, url: str) -> None:
    """Wait until a ring listens: a message makes it count a change."""
    valkey = open_valkey(url)

    async def counted() -> bool:
        await valkey.publish("everlearn:keys-changed", "key_nobody")
        return ring._changes > 0

    await within(5, counted)
    await asyncio.sleep(0.05)  # for the messages that are still on their way
    await valkey.aclose()


async def within(timeout_s: float, condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, "timed out"
        await asyncio.sleep(0.01)


def until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
