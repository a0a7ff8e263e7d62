"""The difference between what the engine should hold and what it lists, and making it so."""

from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import AdapterRefused, EngineUnavailable
from server.engine.reconcile import Plan, apply, plan

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

    orders = Plan(loads=(load(2), load(1)), unloads=(name(3), name(4)))
    applied = await apply(orders, load=do_load, unload=do_unload)

    assert done == [name(1), name(4)]
    assert (applied.loaded, applied.unloaded) == ([name(1)], [name(4)])
    assert set(applied.failed) == {name(2), name(3)}
    assert "rank too high" in applied.failed[name(2)]
