"""The difference between what the engine should hold and what it lists, and making it so."""

from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import AdapterRefused, EngineUnavailable
from server.engine.reconcile import Plan, aliased_versions, apply, plan, ranks_of
from server.engine.routing import AdapterRoutes, RoutingSnapshot, VersionRoute

LINES = {"smollm2"}


def name(number: int) -> str:
    return f"smollm2@v{number}.{number:08x}"


def load(number: int) -> tuple[str, str]:
    return name(number), f"/a/{number}"


def test_what_is_missing_is_loaded_newest_first() -> None:
    orders = plan({load(2), load(10), load(9)}, {"smollm2@base", name(9)}, {}, set(), lines=LINES)

    assert orders == Plan(loads=(load(10), load(2)))


def test_what_nobody_wants_is_unloaded_unless_used_protected_or_not_ours() -> None:
    listed = {
        "smollm2@base",
        "smollm2",
        "smollm2@champion",
        "other@v1.00000001",
        "theirs",
        name(1),
        name(2),
        name(3),
        name(4),
        "smollm2@v5",
    }

    orders = plan({load(1)}, listed, {name(2): 1, name(4): 0}, {name(3)}, lines=LINES)

    assert orders == Plan(unloads=(name(4), "smollm2@v5"))


NUMBERS = st.sets(st.integers(1, 6))


@given(NUMBERS, NUMBERS, st.dictionaries(st.integers(1, 6), st.integers(0, 2)), NUMBERS)
def test_applied_plans_converge_and_never_touch_what_is_in_use(
    desired: set[int], listed: set[int], in_flight: dict[int, int], protected: set[int]
) -> None:
    flights = {name(number): count for number, count in in_flight.items()}
    guarded = {name(number) for number in protected}
    wanted = {load(number) for number in desired}
    before = {"smollm2@base", *(name(number) for number in listed)}

    orders = plan(wanted, before, flights, guarded, lines=LINES)
    after = (before | {n for n, _ in orders.loads}) - set(orders.unloads)

    assert {n for n, _ in wanted} <= after
    assert not any(flights.get(n) or n in guarded for n in orders.unloads)
    assert "smollm2@base" in after
    assert plan(wanted, after, flights, guarded, lines=LINES) == Plan()


def test_the_least_wanted_makes_room_first() -> None:
    wanted = [load(number) for number in (1, 2, 3, 4)]
    ranks = {name(1): 0, name(2): 1, name(3): 2, name(4): 2}

    orders = plan(
        wanted, {name(3), name(9)}, {}, (), lines=LINES, recent={name(9)}, ranks=ranks, capacity=3
    )

    assert orders == Plan(surplus=(name(3), name(9)), loads=(load(1), load(2), load(4)))


def test_what_nobody_wants_any_more_stays_for_its_grace_while_there_is_room() -> None:
    orders = plan(
        {load(1)}, {name(8), name(9)}, {}, (), lines=LINES, recent={name(8), name(9)}, capacity=2
    )

    assert orders == Plan(surplus=(name(8),), loads=(load(1),))


def test_what_is_in_use_or_under_exam_takes_its_place_from_others() -> None:
    orders = plan(
        {load(1), load(2)}, {name(8), name(9)}, {name(8): 1}, {name(9)}, lines=LINES, capacity=3
    )

    assert orders == Plan(loads=(load(2),))


def test_a_load_that_has_just_failed_waits_and_keeps_its_place() -> None:
    orders = plan({load(1), load(2)}, set(), {}, (), lines=LINES, waiting={name(2)}, capacity=1)

    assert orders == Plan()


@given(
    NUMBERS,
    NUMBERS,
    st.dictionaries(st.integers(1, 6), st.integers(0, 2)),
    NUMBERS,
    NUMBERS,
    st.integers(0, 5),
)
def test_no_plan_goes_beyond_the_room_or_gives_orders_twice(
    desired: set[int],
    listed: set[int],
    in_flight: dict[int, int],
    protected: set[int],
    recent: set[int],
    capacity: int,
) -> None:
    flights = {name(number): count for number, count in in_flight.items()}
    guarded = {name(number) for number in protected}
    lately = {name(number) for number in recent}
    wanted = {load(number) for number in desired}
    before = {name(number) for number in listed}

    def orders_for(there: set[str]) -> Plan:
        return plan(wanted, there, flights, guarded, lines=LINES, recent=lately, capacity=capacity)

    orders = orders_for(before)
    gone = {*orders.surplus, *orders.unloads}
    after = (before | {n for n, _ in orders.loads}) - gone

    stuck = {n for n in before if flights.get(n) or n in guarded}
    assert not gone & stuck
    assert not gone & {n for n, _ in orders.loads}
    assert len(after) <= max(capacity, len(stuck))
    again = orders_for(after)
    assert (again.loads, again.unloads) == ((), ())


def test_an_alias_ranks_before_the_way_back_and_that_before_the_rest() -> None:
    versions = {
        number: VersionRoute(number, name(number), "/a", "servable", "0", is_resident=number < 4)
        for number in (1, 2, 3, 4)
    }
    aliases = {"champion": 2, "challenger": 3, "old": 4, "none": None}
    routes = AdapterRoutes("smollm2", "smollm2@base", aliases, versions, previous=1)
    snapshot = RoutingSnapshot(1, {"smollm2": routes})

    assert ranks_of(snapshot) == {name(1): 1, name(2): 0, name(3): 0, name(4): 0}
    assert [version.number for version in aliased_versions(snapshot)] == [2, 3]


async def test_a_failed_order_does_not_stop_the_others() -> None:
    done: list[str] = []

    async def do_load(engine_name: str, _: str) -> None:
        if engine_name == name(2):
            raise AdapterRefused(engine_name, "rank too high")
        done.append(engine_name)

    async def do_unload(engine_name: str) -> None:
        if engine_name == name(3):
            raise EngineUnavailable("away")
        done.append(engine_name)

    orders = Plan((name(5),), (load(2), load(1)), (name(3), name(4)))
    applied = await apply(orders, load=do_load, unload=do_unload)

    assert done == [name(5), name(1), name(4)]
    assert (applied.loaded, applied.unloaded) == ([name(1)], [name(5), name(4)])
    assert set(applied.failed) == {name(2), name(3)}
    assert "rank too high" in applied.failed[name(2)]
