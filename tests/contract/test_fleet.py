"""A gateway over several engines: who answers, who is avoided, and what the operator sees and does."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.core.clock import utc_now
from server.db import Gateway
from server.gateway.retries import MAX_RELOADS
from server.services import fleet, registry
from tests.support.chaos import Mode, Proxy, to_tcp
from tests.support.fake_engine import FakeEngine, serve
from tests.support.world import KEY, World, running_world, wait_for

pytestmark = pytest.mark.usefixtures("paper_artifacts")

V1, V2, V9 = (f"smollm2@v{number}.00000000" for number in (1, 2, 9))
TALK: Any = [{"role": "user", "content": "Who are you?"}]


@dataclass
class Site:
    """An engine behind a proxy that can take it away, and what users' requests met there."""

    engine: FakeEngine
    proxy: Proxy
    held: list[frozenset[str]]
    """For each request of a user, the adapters that the engine held when it came."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    def cut(self) -> None:
        self.proxy.set_mode(Mode.CUT)

    def mend(self) -> None:
        self.proxy.set_mode(Mode.PASS)


@dataclass
class Sites:
    """A gateway over several sites."""

    world: World
    sites: list[Site]
    client: OpenAI
    http: httpx2.Client
    """As operator."""

    def ask(self, text: str = "Who are you?", **options: Any) -> str:
        """Which weights answered."""
        messages: Any = [{"role": "user", "content": text}]
        model = options.pop("model", "smollm2")
        reply = self.client.chat.completions.create(model=model, messages=messages, **options)
        return reply.model

    def ask_for_stream(self, text: str) -> str:
        """Which weights answered, in a stream that came whole."""
        messages: Any = [{"role": "user", "content": text}]
        chat = self.client.chat.completions
        with chat.create(model="smollm2", messages=messages, stream=True) as stream:
            chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "stop"
        return chunks[-1].model

    def served(self) -> list[int]:
        """Users' requests that came to each site."""
        return [len(site.held) for site in self.sites]

    def replicas(self) -> dict[str, dict[str, Any]]:
        rows = self.http.get("/api/v1/replicas").json()["data"]
        return {row["url"]: row for row in rows}

    def states(self) -> list[str]:
        seen = self.replicas()
        return [seen[site.url]["state"] for site in self.sites if site.url in seen]

    def until_healthy(self) -> None:
        wait_for(lambda: set(self.states()) == {"healthy"})


def watched(engine: FakeEngine, held: list[frozenset[str]]) -> ASGIApp:
    app = engine.app()

    async def watch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request_id = Request(scope).headers.get("x-request-id", "")
            if request_id.startswith("int_"):  # a user's; proofs and probes carry none
                held.append(frozenset(engine.adapters))
        await app(scope, receive, send)

    return watch


@contextmanager
def running_site(opened: ExitStack) -> Iterator[Site]:
    engine = FakeEngine()
    held: list[frozenset[str]] = []
    served = opened.enter_context(serve(watched(engine, held)))
    proxy = Proxy(to_tcp("127.0.0.1", int(served.url.rpartition(":")[2])))
    yield Site(engine, opened.enter_context(proxy.running()), held)


@contextmanager
def running_sites(home: Path, count: int, *, quorum: float = 1.0) -> Iterator[Sites]:
    with ExitStack() as opened:
        sites = [opened.enter_context(running_site(opened)) for _ in range(count)]
        first, *others = sites
        world = opened.enter_context(
            running_world(
                home, first.engine, first.url, more_urls=[s.url for s in others], quorum=quorum
            )
        )
        headers = {"authorization": f"Bearer {KEY}"}
        http = opened.enter_context(
            httpx2.Client(base_url=world.gateway.url, headers=headers, timeout=30)
        )
        made = Sites(world, sites, world.client(), http)
        made.until_healthy()
        yield made


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Sites]:
    with running_sites(tmp_path, 2) as made:
        yield made


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Sites]:
    with running_sites(tmp_path, 4) as made:
        yield made


class Traffic:
    """Users who ask all the while, each in a conversation of its own."""

    def __init__(self, sites: Sites, users: int = 8) -> None:
        self._client = sites.client
        self._is_over = threading.Event()
        self.models: Counter[str] = Counter()
        self.failures: list[str] = []
        self.cut: list[str] = []
        """Streams that ended with an error after they had begun."""
        self._threads = [
            threading.Thread(target=self._ask, args=(f"user {n}", n % 2 == 0)) for n in range(users)
        ]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self, user: str, is_stream: bool) -> None:
        messages: Any = [{"role": "user", "content": user}]
        turn = 0
        while not self._is_over.is_set():
            turn += 1
            messages[0]["content"] = f"{user}, conversation {turn % 5}"
            try:
                self.models[self._one(messages, is_stream)] += 1
            except Exception as error:
                self.failures.append(repr(error))

    def _one(self, messages: Any, is_stream: bool) -> str:
        chat = self._client.chat.completions
        if not is_stream:
            return chat.create(model="smollm2", messages=messages).model
        model = ""
        with chat.create(model="smollm2", messages=messages, stream=True) as chunks:
            try:
                for chunk in chunks:
                    model = chunk.model
            except openai.APIError as error:
                if not model:
                    raise
                self.cut.append(str(error))
        return model


def test_a_conversation_stays_with_a_replica_and_conversations_spread(four: Sites) -> None:
    turns: Any = [{"role": "system", "content": "Be brief."}, *TALK]
    for _ in range(6):
        four.client.chat.completions.create(model="smollm2", messages=turns)
        turns += [{"role": "assistant", "content": "A model."}, {"role": "user", "content": "Yes?"}]
    assert sorted(four.served()) == [0, 0, 0, 6]

    for number in range(80):
        four.ask(f"Question {number}")

    spread = four.served()
    assert sum(spread) == 86
    # Ports are drawn anew each time, so places are: 20 on average, and 4 deviations to either side.
    assert min(spread) >= 4
    assert max(spread) <= 6 + 36


def test_half_of_the_replicas_go_and_come_back_in_mid_traffic(four: Sites) -> None:
    for site in four.sites:
        site.engine.token_s = 0.002
    with Traffic(four) as traffic:
        time.sleep(0.5)
        four.sites[0].cut()
        four.sites[1].cut()
        wait_for(lambda: four.states() == ["away", "away", "healthy", "healthy"])
        time.sleep(0.3)
        before = four.served()[:2]
        for site in four.sites[:2]:  # what a restart does
            site.engine.lose_adapters()
            site.held.clear()
            site.engine.load_s = 0.2
            site.mend()
        four.until_healthy()
        wait_for(lambda: min(four.served()) > 0)

    assert traffic.failures == []
    assert set(traffic.models) == {V1}
    assert traffic.models[V1] > 50
    assert min(before) > 0
    for site in four.sites[:2]:  # no request came before the champion was there again
        assert all(V1 in held for held in site.held)


def test_a_replica_that_is_killed_is_avoided_at_once(two: Sites) -> None:
    two.sites[0].cut()

    answered = [two.ask(f"Question {number}") for number in range(20)]

    assert answered == [V1] * 20
    assert two.served() == [0, 20]


@pytest.mark.parametrize("ask", [Sites.ask, Sites.ask_for_stream])
def test_a_replica_that_dies_between_head_and_body_costs_no_reply(
    two: Sites, ask: Callable[[Sites, str], str]
) -> None:
    two.sites[0].engine.breaks_at_head = True

    answered = [ask(two, f"Question {number}") for number in range(20)]

    assert answered == [V1] * 20
    assert two.served()[0] > 0
    assert two.served()[1] == 20
    assert {row.outcome for row in two.world.interactions(20)} == {"complete"}


@pytest.mark.parametrize("is_stream", [False, True])
def test_where_every_replica_dies_after_the_head_each_is_asked_once(
    two: Sites, is_stream: bool
) -> None:
    for site in two.sites:
        site.engine.breaks_at_head = True

    with pytest.raises(openai.InternalServerError) as caught:
        two.client.chat.completions.create(model="smollm2", messages=TALK, stream=is_stream)

    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
    assert two.served() == [1, 1]
    (row,) = two.world.interactions(1)
    assert (row.outcome, row.status) == ("engine_error", 503)


def test_an_engine_restarted_with_no_adapters_answers_with_the_right_weights(two: Sites) -> None:
    with Traffic(two, users=4) as traffic:
        for number in range(6):
            time.sleep(0.1)
            two.sites[number % 2].engine.lose_adapters()
        time.sleep(0.2)

    assert traffic.failures == []
    assert set(traffic.models) == {V1}


def test_an_engine_restarted_again_and_again_gets_the_weights_each_time(two: Sites) -> None:
    two.sites[0].engine.forgets = 2
    two.sites[1].engine.forgets = MAX_RELOADS - 2

    assert two.ask("Are you there?") == V1


def test_engines_that_never_keep_the_weights_are_given_up(two: Sites) -> None:
    for site in two.sites:
        site.engine.forgets = 1000

    with pytest.raises(openai.InternalServerError) as caught:
        two.ask()

    assert (caught.value.status_code, caught.value.code) == (502, "engine_error")
    asked = sum(1000 - site.engine.forgets for site in two.sites)
    assert asked == MAX_RELOADS + 1


def test_a_reply_that_has_begun_is_never_begun_again(two: Sites) -> None:
    for site in two.sites:
        site.engine.breaks_after = 2
    with pytest.raises(openai.APIError, match="engine"):
        list(two.client.chat.completions.create(model="smollm2", messages=TALK, stream=True))

    assert sum(two.served()) == 1
    (row,) = two.world.interactions(1)
    assert row.outcome == "engine_error"


def test_a_request_that_kills_engines_is_given_up_after_a_few(four: Sites) -> None:
    for site in four.sites:
        site.cut()

    with pytest.raises(openai.InternalServerError) as caught:
        four.ask()

    assert caught.value.code == "engine_unavailable"
    assert caught.value.status_code == 503


def test_everybody_away_is_told_and_mended_by_itself(two: Sites) -> None:
    for site in two.sites:
        site.cut()
    wait_for(lambda: two.states() == ["away", "away"])
    with pytest.raises(openai.InternalServerError) as caught:
        two.ask()
    assert all(site.url in str(caught.value) for site in two.sites)
    assert two.http.get("/readyz").status_code == 503

    for site in two.sites:
        site.engine.lose_adapters()
        site.mend()
    two.until_healthy()

    assert two.ask() == V1
    assert two.http.get("/readyz").status_code == 200


def test_a_hung_replica_holds_up_nobody_who_does_not_sit_on_it(two: Sites) -> None:
    two.sites[0].proxy.set_mode(Mode.HANG)
    wait_for(lambda: two.states()[0] == "away")  # its next look goes unanswered

    began = time.monotonic()
    answered = [two.ask(f"Question {number}") for number in range(20)]

    assert answered == [V1] * 20
    assert time.monotonic() - began < 5
    assert two.served()[0] == 0


def promote(sites: Sites, version: str) -> httpx2.Response:
    return sites.http.post("/api/v1/adapters/smollm2/promote", json={"version": version})


def test_an_alias_moves_only_when_every_healthy_replica_has_proven_the_version(
    two: Sites,
) -> None:
    two.sites[1].engine.ignores_adapters = True
    wait_for(lambda: V2 in two.sites[1].engine.adapters)
    two.sites[1].engine.lose_adapters()  # v2 must be proven anew, and v1 too
    wait_for(lambda: two.states()[1] == "healing")  # as long as it ignores them

    assert promote(two, "v2").status_code == 200  # one replica is healthy, and it has it

    assert two.ask() == V2


def test_a_healthy_replica_that_refuses_the_version_forbids_the_move(tmp_path: Path) -> None:
    with running_sites(tmp_path, 2) as two:
        two.world.promote(2)
        wait_for(lambda: V1 in two.sites[1].engine.adapters)
        _lose(two, 1, V1)

        refused = promote(two, "v1")

        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (503, "replicas_not_ready")
        assert two.sites[1].url in error["message"]
        assert two.sites[0].url not in error["message"]
        assert two.ask() == V2
        two.sites[1].engine.refuses_load = None
        assert promote(two, "v1").status_code == 200
        assert {two.ask(f"Question {n}") for n in range(10)} == {V1}


def test_half_of_the_replicas_is_enough_where_the_setting_says_so(tmp_path: Path) -> None:
    with running_sites(tmp_path, 2, quorum=0.5) as two:
        two.world.promote(2)
        _lose(two, 1, V1)

        assert promote(two, "v1").status_code == 200

        before = two.served()[1]
        assert {two.ask(f"Question {n}") for n in range(20)} == {V1}
        assert two.served()[1] == before  # it lacks the champion
        two.sites[1].engine.refuses_load = None
        assert two.ask(model="smollm2@v2") == V2


def _lose(two: Sites, place: int, engine_name: str) -> None:
    """Have a replica lose one version that no alias points at, and refuse to load it again."""
    engine = two.sites[place].engine
    wait_for(lambda: engine_name in engine.adapters)
    engine.refuses_load = 400
    del engine.adapters[engine_name]
    wait_for(lambda: engine_name not in two.replicas()[two.sites[place].url]["resident"])


def test_replicas_come_and_go_while_it_runs(two: Sites) -> None:
    with ExitStack() as opened:
        third = opened.enter_context(running_site(opened))
        third.engine.load_s = 0.1

        added = two.http.post("/api/v1/replicas", json={"url": f"{third.url}/"})

        assert added.status_code == 201, added.text
        assert (added.json()["url"], added.json()["origin"]) == (third.url, "api")
        two.sites.append(third)
        two.until_healthy()
        for number in range(60):
            two.ask(f"Question {number}")
        assert min(two.served()) > 0
        assert all(V1 in held for held in third.held)

        path = f"/api/v1/replicas/{added.json()['id']}"
        drained = two.http.patch(path, json={"is_draining": True})
        assert (drained.status_code, drained.json()["state"]) == (200, "draining")
        before = two.served()[2]
        for number in range(30):
            two.ask(f"Question {number}")
        assert two.served()[2] == before

        assert two.http.delete(path).json() == {"id": added.json()["id"], "deleted": True}
        assert third.url not in two.replicas()
        assert two.http.delete(path).status_code == 404

    actions = [e["action"] for e in two.http.get("/api/v1/audit").json()["data"]]
    assert actions[:3] == ["replica.remove", "replica.drain", "replica.add"]


def test_a_stream_on_a_draining_replica_is_finished(two: Sites) -> None:
    for site in two.sites:
        site.engine.token_s = 0.1
    with two.client.chat.completions.create(model="smollm2", messages=TALK, stream=True) as chunks:
        next(iter(chunks))
        (busy,) = [row for row in two.replicas().values() if row["outstanding"]]
        two.http.patch(f"/api/v1/replicas/{busy['id']}", json={"is_draining": True})
        rest = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]

    assert "".join(text or "" for text in rest).endswith("1 2 3 4 5")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://10.0.0.7", "must be an address"),
        ("10.0.0.7:8000", "must be an address"),
        ("http://", "must be an address"),
        ("http://10.0.0.7:99999", "must be an address"),
        ("http://10.0.0.7/a b", "must be an address"),
        ("http://me:secret@10.0.0.7", "name or a password"),
        ("http://10.0.0.7?key=1", "no query"),
        ("http://10.0.0.7#x", "no query and no fragment"),
        ("", "url"),
    ],
)
def test_an_address_that_is_none_is_refused(two: Sites, url: str, says: str) -> None:
    refused = two.http.post("/api/v1/replicas", json={"url": url})

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "url")
    assert says in refused.json()["error"]["message"]
    assert len(two.replicas()) == 2


def test_the_same_replica_twice_and_the_removal_of_the_last_are_conflicts(two: Sites) -> None:
    again = two.http.post("/api/v1/replicas", json={"url": two.sites[1].url})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")

    one, other = two.replicas().values()
    assert two.http.delete(f"/api/v1/replicas/{one['id']}").status_code == 200
    last = two.http.delete(f"/api/v1/replicas/{other['id']}")

    assert (last.status_code, last.json()["error"]["code"]) == (409, "conflict")
    assert "fleet add" in last.json()["error"]["message"]
    assert two.ask() == V1


def test_engines_are_the_operators_alone(two: Sites) -> None:
    minted = two.http.post(
        "/api/v1/keys", json={"name": "their admin", "scopes": ["admin"], "owner": "acme"}
    ).json()
    theirs = {"authorization": f"Bearer {minted['key']}"}
    one = next(iter(two.replicas().values()))
    for method, path, body in (
        ("GET", "/api/v1/replicas", None),
        ("POST", "/api/v1/replicas", {"url": "http://10.0.0.7"}),
        ("PATCH", f"/api/v1/replicas/{one['id']}", {"is_draining": True}),
        ("DELETE", f"/api/v1/replicas/{one['id']}", None),
    ):
        refused = two.http.request(method, path, json=body, headers=theirs)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "foreign_tenant")
    assert [row["is_draining"] for row in two.replicas().values()] == [False, False]


def test_a_gateway_tells_what_it_routes_by_and_has_in_flight(two: Sites) -> None:
    for site in two.sites:
        site.engine.token_s = 1.0
    database = two.world.database

    def row() -> Gateway:
        with database.unit_of_work() as session:
            (gateway,) = fleet.live_gateways(session, now=utc_now())
            return gateway

    def is_let_go(engine_name: str) -> bool:
        with database.unit_of_work() as session:
            revision = registry.snapshot_revision(session)
            return fleet.is_let_go(session, engine_name, revision, now=utc_now())

    with two.client.chat.completions.create(
        model="smollm2@v2", messages=TALK, stream=True
    ) as chunks:
        next(iter(chunks))
        wait_for(lambda: row().in_flight == {V2: 1})
        shown = two.http.get("/api/v1/replicas").json()["gateways"]
        assert [(g["in_flight"], set(g["replicas"])) for g in shown] == [
            ({V2: 1}, {site.url for site in two.sites})
        ]
        assert not is_let_go(V2)
    wait_for(lambda: row().in_flight == {})
    assert not is_let_go(V2)  # the replicas still hold it
    wait_for(lambda: is_let_go(V9))
    with database.unit_of_work() as session:
        newer = registry.snapshot_revision(session) + 1
        assert not fleet.is_let_go(session, V9, newer, now=utc_now())
        later = utc_now() + timedelta(minutes=5)
        assert fleet.is_let_go(session, V9, newer, now=later)  # nobody lives any more


def test_a_gateway_that_ends_takes_its_row_along(tmp_path: Path) -> None:
    with running_sites(tmp_path, 2) as two:
        database = two.world.database
        with database.unit_of_work() as session:
            wait_for(lambda: len(fleet.live_gateways(session, now=utc_now())) == 1)
        two.world.gateway.server.should_exit = True

        def is_gone() -> bool:
            with database.unit_of_work() as session:
                return not fleet.live_gateways(session, now=utc_now())

        wait_for(is_gone)
