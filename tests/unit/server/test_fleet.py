"""Several engines: each tended alone, healed before it is used, chosen by conversation and load."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.core.errors import AdapterRefused, EngineUnavailable, ReplicasNotReady
from server.core.settings import EngineSettings
from server.engine import control
from server.engine.fleet import Fleet, needed_for
from server.engine.replica import Probe, Replica, State
from server.engine.routing import AdapterRoutes, Route, RoutingSnapshot, VersionRoute
from tests.support.chaos import Mode, Proxy, to_tcp
from tests.support.fake_engine import FakeEngine, serve

BASE = "smollm2@base"


def name(number: int) -> str:
    return f"smollm2@v{number}.{number:08x}"


def version(number: int, *, is_resident: bool = True) -> VersionRoute:
    path, digest = f"/a/v{number}", f"{number:064x}"
    return VersionRoute(number, name(number), path, "servable", digest, is_resident)


def snapshot(*resident: int, champion: int | None = None) -> RoutingSnapshot:
    """One line whose versions up to 9 exist, some of them resident."""
    wanted = {*resident, champion}
    versions = {number: version(number, is_resident=number in wanted) for number in range(1, 10)}
    aliases = {"champion": champion}
    return RoutingSnapshot(1, {"smollm2": AdapterRoutes("smollm2", BASE, aliases, versions)})


def route(number: int | None = None) -> Route:
    if number is None:
        return Route("smollm2", BASE, BASE, None)
    return Route("smollm2", f"smollm2@v{number}", name(number), version(number))


@dataclass
class Wanted:
    """The routes, without a database."""

    snapshot: RoutingSnapshot | None
    is_away: bool = False

    async def refresh(self) -> None:
        if self.is_away:
            raise ConnectionError("the database is away")


@dataclass
class Rig:
    """A fleet over fake engines, which tests may also take away."""

    fleet: Fleet
    wanted: Wanted
    engines: list[FakeEngine]
    proxies: list[Proxy]
    urls: list[str]
    more: dict[str, Any] = field(default_factory=dict)

    def replica(self, place: int) -> Replica:
        return self.fleet.replicas[self.urls[place]]

    async def tend(self, *places: int) -> None:
        for place in places or range(len(self.urls)):
            await self.replica(place).tend(self.wanted)

    def states(self) -> list[State]:
        return [self.replica(place).state for place in range(len(self.urls))]

    def place_of(self, replica: Replica | None) -> int:
        assert replica is not None
        return self.urls.index(replica.url)

    def cut(self, place: int) -> None:
        self.proxies[place].set_mode(Mode.CUT)

    def mend(self, place: int) -> None:
        self.proxies[place].set_mode(Mode.PASS)


@asynccontextmanager
async def rig_of(
    count: int, wanted: RoutingSnapshot, *, quorum: float = 1.0, **options: Any
) -> AsyncIterator[Rig]:
    engines = [FakeEngine() for _ in range(count)]
    async with AsyncExitStack() as opened:
        proxies = []
        for engine in engines:
            served = opened.enter_context(serve(engine.app()))
            port = int(served.url.rpartition(":")[2])
            proxies.append(opened.enter_context(Proxy(to_tcp("127.0.0.1", port)).running()))
        urls = [f"http://127.0.0.1:{proxy.port}" for proxy in proxies]
        fields = {"connect_timeout_s": 1.0, "load_timeout_s": 5.0, **options}
        settings = EngineSettings(url=urls[0], more_urls=urls[1:], **fields)
        routes = Wanted(wanted)
        probe = Probe(settings, BASE, 16)
        fleet = Fleet(settings, probe, routes, refresh_s=0.05, quorum=quorum)
        try:
            yield Rig(fleet, routes, engines, proxies, urls)
        finally:
            await fleet.close()


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


pytestmark = pytest.mark.usefixtures("paper_artifacts")


# Healing.


async def test_a_new_replica_takes_requests_when_it_holds_what_aliases_point_at() -> None:
    async with rig_of(2, snapshot(2, champion=1)) as rig:
        assert rig.states() == [State.JOINING] * 2
        assert rig.fleet.pick(route()) is None

        await rig.tend()

        assert rig.states() == [State.HEALTHY] * 2
        for engine in rig.engines:
            assert engine.loads == [name(1), name(2)]  # the champion first
        assert rig.fleet.pick(route(1)) is not None


async def test_a_champion_that_cannot_be_loaded_keeps_only_that_replica_out() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        rig.engines[0].refuses_load = 500

        await rig.tend()

        assert rig.states() == [State.HEALING, State.HEALTHY]
        assert "LoRA rank 32" in str(rig.replica(0).error)
        picked = {rig.place_of(rig.fleet.pick(route(), b"%d" % n)) for n in range(50)}
        assert picked == {1}


async def test_any_other_version_that_cannot_be_loaded_keeps_no_replica_out() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        rig.engines[0].refuses_load = 500
        rig.wanted.snapshot = snapshot(3, champion=1)

        await rig.tend()

        assert rig.states() == [State.HEALTHY] * 2
        assert {rig.place_of(rig.fleet.pick(route(1), b"%d" % n)) for n in range(50)} == {0, 1}
        assert {rig.place_of(rig.fleet.pick(route(3), b"%d" % n)) for n in range(50)} == {1}


async def test_a_replica_that_was_away_is_healed_before_it_is_used() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        rig.cut(0)
        await rig.tend()
        assert rig.states() == [State.AWAY, State.HEALTHY]

        rig.engines[0].lose_adapters()
        rig.engines[0].refuses_load = 503
        rig.mend(0)
        await rig.tend()
        assert rig.states() == [State.HEALING, State.HEALTHY]
        assert rig.place_of(rig.fleet.pick(route(), b"x")) == 1

        rig.engines[0].refuses_load = None
        rig.replica(0).residency._failures.clear()  # the pause before the next try
        await rig.tend()
        assert rig.states() == [State.HEALTHY] * 2
        assert rig.engines[0].loads == [name(1)] * 2


async def test_a_replica_restarted_between_two_looks_is_probed_and_healed() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        rig.engines[0].lose_adapters()
        rig.engines[0].version = "0.25.1"  # and it is another engine now

        await rig.tend()

        assert rig.states() == [State.UNSAFE, State.HEALTHY]
        assert "0.25.1" in rig.replica(0).why()
        assert rig.engines[0].loads == [name(1)]  # not again


async def test_without_a_database_replicas_are_healed_by_the_last_routes_and_nothing_is_unloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.engine.residency.UNLOAD_GRACE_S", 0.0)
    async with rig_of(1, snapshot(2, champion=1)) as rig:
        await rig.tend()
        rig.wanted.is_away = True
        rig.engines[0].lose_adapters()
        rig.engines[0].adapters[name(7)] = "/a/v7"  # a version that came after our routes

        await rig.tend()

        assert set(rig.engines[0].adapters) == {name(1), name(2), name(7)}
        assert rig.states() == [State.HEALTHY]
        rig.wanted.is_away = False
        await rig.tend()
        assert rig.engines[0].unloads == [name(7)]


async def test_files_that_are_missing_are_refused_before_an_engine_hears_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # here the digest is of real files, and there are none
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()

        assert rig.states() == [State.HEALING] * 2
        assert "cannot be read" in rig.replica(0).why()
        assert [engine.loads for engine in rig.engines] == [[], []]
        with pytest.raises(AdapterRefused, match="cannot be read"):
            await rig.fleet.fetch(route(1), BASE)


async def test_full_slots_are_tried_again_later_and_hold_up_nothing_else() -> None:
    async with rig_of(1, snapshot(2, 3, 4, champion=1)) as rig:
        rig.engines[0].slots = 2

        await rig.tend()

        assert rig.engines[0].loads == [name(1), name(4)]
        assert rig.states() == [State.HEALTHY]
        assert "No free slots" in rig.replica(0).residency.why_not(name(3))
        rig.engines[0].slots = None
        await rig.tend()
        assert rig.engines[0].loads == [name(1), name(4)]  # not at once
        rig.replica(0).residency._failures.clear()
        await rig.tend()
        assert set(rig.engines[0].adapters) == {name(n) for n in (1, 2, 3, 4)}


async def test_a_smaller_engine_holds_what_is_wanted_most() -> None:
    async with rig_of(1, snapshot(2, 3, 4, champion=1), max_cpu_loras=3) as rig:
        await rig.tend()
        assert set(rig.engines[0].adapters) == {name(1), name(4), name(3)}

        rig.wanted.snapshot = snapshot(1, 3, 4, champion=2)
        await rig.tend()

        assert set(rig.engines[0].adapters) == {name(2), name(4), name(3)}
        assert rig.engines[0].unloads == [name(1)]


async def test_a_load_that_times_out_is_a_failure_of_that_replica_alone() -> None:
    async with rig_of(2, snapshot(3, champion=1), load_timeout_s=0.3) as rig:
        rig.engines[0].load_s = 1.0

        await rig.tend()

        assert rig.states() == [State.HEALING, State.HEALTHY]
        assert "no answer in time" in rig.replica(0).residency.why_not(name(1))
        assert "no answer in time" in rig.replica(0).residency.why_not(
            name(3)
        )  # tried all the same


async def test_a_hung_replica_does_not_hold_up_the_others() -> None:
    async with rig_of(3, snapshot(champion=1)) as rig:
        rig.proxies[0].set_mode(Mode.HANG)
        rig.fleet.start()

        await until(lambda: rig.states()[1:] == [State.HEALTHY] * 2, timeout_s=4)

        assert rig.states()[0] is State.JOINING
        rig.engines[1].lose_adapters()
        await until(lambda: rig.engines[1].loads == [name(1)] * 2, timeout_s=4)


async def test_the_loops_notice_by_themselves_who_goes_and_who_comes_back() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        rig.fleet.start()
        await until(lambda: rig.states() == [State.HEALTHY] * 2)

        rig.cut(0)
        await until(lambda: rig.states() == [State.AWAY, State.HEALTHY])
        rig.engines[0].lose_adapters()
        rig.mend(0)
        await until(lambda: rig.states() == [State.HEALTHY] * 2)

        assert rig.engines[0].loads == [name(1)] * 2


# Choosing.


async def test_a_conversation_stays_and_conversations_spread() -> None:
    async with rig_of(4, snapshot(champion=1)) as rig:
        await rig.tend()
        talks = [b"conversation %d" % number for number in range(400)]

        first = [rig.place_of(rig.fleet.pick(route(1), talk)) for talk in talks]
        again = [rig.place_of(rig.fleet.pick(route(1), talk)) for talk in talks]

        assert first == again
        counts = Counter(first)
        assert len(counts) == 4
        assert max(counts.values()) <= 2 * min(counts.values())


async def test_conversations_of_a_lost_replica_move_and_the_others_stay() -> None:
    async with rig_of(4, snapshot(champion=1)) as rig:
        await rig.tend()
        talks = [b"conversation %d" % number for number in range(200)]
        before = {talk: rig.place_of(rig.fleet.pick(route(1), talk)) for talk in talks}

        rig.replica(2).suspect(EngineUnavailable("gone"))
        after = {talk: rig.place_of(rig.fleet.pick(route(1), talk)) for talk in talks}

        moved = {talk for talk in talks if before[talk] != after[talk]}
        assert moved == {talk for talk in talks if before[talk] == 2}
        assert 2 not in after.values()


async def test_a_busy_favourite_is_passed_over() -> None:
    async with rig_of(4, snapshot(champion=1)) as rig:
        await rig.tend()

        for _ in range(40):  # one conversation that never ends
            picked = rig.fleet.pick(route(1), b"the same")
            assert picked is not None
            rig.fleet.lease(name(1)).__enter__().move_to(picked)

        loads = sorted(rig.replica(place).outstanding for place in range(4))
        assert sum(loads) == 40
        assert loads[-1] <= 1.25 * 10 + 3
        assert loads[1] > 0


async def test_one_replica_alone_is_taken_without_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bytes:
        raise AssertionError("nothing is ranked where there is nothing to choose")

    monkeypatch.setattr(Replica, "rank", never)
    async with rig_of(1, snapshot(champion=1)) as rig:
        await rig.tend()
        assert rig.fleet.is_single
        assert rig.place_of(rig.fleet.pick(route(1), b"x")) == 0


async def test_weights_that_nobody_holds_are_loaded_on_one_that_can() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        assert rig.fleet.pick(route(5), b"x") is None
        favourite = max((0, 1), key=lambda place: rig.replica(place).rank(b"x"))
        rig.engines[favourite].refuses_load = 500

        replica = await rig.fleet.fetch(route(5), BASE, b"x")

        assert rig.place_of(replica) == 1 - favourite
        assert rig.place_of(rig.fleet.pick(route(5), b"x")) == 1 - favourite


async def test_with_every_replica_away_a_request_is_told_why() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        rig.cut(0)
        rig.cut(1)
        await rig.tend()

        assert rig.fleet.pick(route(1), b"x") is None
        with pytest.raises(EngineUnavailable) as caught:
            await rig.fleet.fetch(route(1), BASE)

        assert all(f"{url} is away" in str(caught.value) for url in rig.urls)


async def test_with_every_replica_silent_those_that_hold_the_weights_are_asked_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looks that take too long are what engines at their limit look like, too."""
    monkeypatch.setattr(control, "QUESTION_TIMEOUT_S", 0.2)
    async with rig_of(3, snapshot(champion=1)) as rig:
        await rig.tend()
        rig.cut(0)
        for proxy in rig.proxies[1:]:
            proxy.set_mode(Mode.HANG)
        await rig.tend()
        assert rig.states() == [State.AWAY] * 3

        asked = {rig.place_of(rig.fleet.pick(route(1), bytes([n]))) for n in range(16)}
        rig.mend(1)
        await rig.tend(1)

        assert asked == {1, 2}, "one that breaks off is not asked"
        assert rig.fleet.pick(route(7), b"x") is None, "nobody holds it"
        healed = {rig.place_of(rig.fleet.pick(route(1), bytes([n]))) for n in range(16)}
        assert healed == {1}, "a healthy one goes before the silent"


async def test_with_every_replica_restarted_a_request_waits_for_its_weights() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        for place in (0, 1):
            rig.engines[place].lose_adapters()
            rig.replica(place).has_lost(name(1))
        assert rig.states() == [State.HEALING] * 2

        replica = await rig.fleet.fetch(route(1), BASE, b"x")

        assert name(1) in rig.engines[rig.place_of(replica)].adapters


async def test_a_draining_replica_ends_what_it_has_and_gets_no_more() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        first, second = rig.urls
        with rig.fleet.lease(name(1)) as lease:
            lease.move_to(rig.replica(0))
            rig.fleet.sync({first: True, second: False})
            assert rig.states() == [State.DRAINING, State.HEALTHY]
            assert {rig.place_of(rig.fleet.pick(route(1), b"%d" % n)) for n in range(50)} == {1}
            assert rig.replica(0).outstanding == 1
        assert rig.replica(0).outstanding == 0

        rig.fleet.sync({first: False, second: False})
        assert {rig.place_of(rig.fleet.pick(route(1), b"%d" % n)) for n in range(50)} == {0, 1}


async def test_a_removed_replica_is_closed_after_its_last_request() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        leaving = rig.replica(0)
        with rig.fleet.lease(name(1)) as lease:
            lease.move_to(leaving)
            rig.fleet.sync({rig.urls[1]: False})
            await rig.fleet.let_go()
            assert await leaving.control.models()  # its connections still work
            assert leaving in rig.fleet._leaving
        await rig.fleet.let_go()

        assert leaving not in rig.fleet._leaving
        assert rig.fleet.is_single


# Leases.


async def test_a_version_is_unloaded_only_after_its_last_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.engine.residency.UNLOAD_GRACE_S", 0.0)
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        with rig.fleet.lease(name(1)) as lease:
            lease.move_to(rig.replica(0))
            with rig.fleet.lease(name(1)) as other:
                other.move_to(rig.replica(0))
                rig.wanted.snapshot = snapshot(champion=2)
                await rig.tend()
            await rig.tend()
            assert rig.engines[0].unloads == []
            assert rig.engines[1].unloads == [name(1)]  # nothing of it ran there
            assert rig.fleet.in_flight == {name(1): 1}

        await rig.tend()

        assert rig.engines[0].unloads == [name(1)]
        assert rig.fleet.in_flight == {}


# The quorum.


async def test_an_alias_may_move_when_every_healthy_replica_has_proven_the_version() -> None:
    async with rig_of(3, snapshot(champion=1)) as rig:
        rig.cut(2)
        await rig.tend()

        await rig.fleet.ensure_servable(version(2), BASE)

        assert [name(2) in engine.adapters for engine in rig.engines] == [True, True, False]


async def test_one_replica_that_refuses_forbids_the_move_and_is_named() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        rig.engines[1].refuses_load = 500

        with pytest.raises(ReplicasNotReady) as caught:
            await rig.fleet.ensure_servable(version(2), BASE)

        assert rig.urls[1] in str(caught.value)
        assert rig.urls[0] not in str(caught.value)
        assert "LoRA rank 32" in str(caught.value)


async def test_a_replica_that_serves_the_base_in_its_place_forbids_the_move() -> None:
    async with rig_of(2, snapshot(champion=1)) as rig:
        await rig.tend()
        rig.engines[1].ignores_adapters = True

        with pytest.raises(ReplicasNotReady, match="does not serve it"):
            await rig.fleet.ensure_servable(version(2), BASE)


async def test_half_is_enough_where_the_setting_says_so_and_the_other_half_is_not_asked() -> None:
    async with rig_of(2, snapshot(champion=1), quorum=0.5) as rig:
        await rig.tend()
        rig.engines[1].refuses_load = 500

        await rig.fleet.ensure_servable(version(2), BASE)

        assert {rig.place_of(rig.fleet.pick(route(2), b"%d" % n)) for n in range(50)} == {0}
        assert {rig.place_of(rig.fleet.pick(route(1), b"%d" % n)) for n in range(50)} == {0, 1}
        rig.engines[1].refuses_load = None
        rig.replica(1).residency._failures.clear()
        rig.wanted.snapshot = snapshot(1, champion=2)
        await rig.tend()
        assert {rig.place_of(rig.fleet.pick(route(2), b"%d" % n)) for n in range(50)} == {0, 1}


async def test_without_a_healthy_replica_nothing_may_move() -> None:
    async with rig_of(2, snapshot(champion=1), quorum=0.5) as rig:
        with pytest.raises(ReplicasNotReady, match="0 replicas, and 1 are needed") as caught:
            await rig.fleet.ensure_servable(version(2), BASE)

        assert all(url in str(caught.value) for url in rig.urls)


@pytest.mark.parametrize(
    ("quorum", "replicas", "needed"),
    [(1.0, 4, 4), (0.5, 4, 2), (0.5, 3, 2), (0.7, 10, 7), (0.1, 3, 1), (1.0, 0, 1)],
)
def test_how_many_the_quorum_is(quorum: float, replicas: int, needed: int) -> None:
    assert needed_for(quorum, replicas) == needed
