"""What the engine holds: single loads, leases, grace before unloading, healing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapters import artifact
from server.core.errors import AdapterNotProven, AdapterRefused, EngineError
from server.core.settings import EngineSettings
from server.engine.control import open_control
from server.engine.residency import RETRY_S, UNLOAD_GRACE_S, Residency
from server.engine.routing import AdapterRoutes, RoutingSnapshot, VersionRoute
from tests.support.fake_engine import FakeEngine, serve

BASE = "smollm2@base"

pytestmark = pytest.mark.usefixtures("paper_artifacts")


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def name(number: int) -> str:
    return f"smollm2@v{number}.{number:08x}"


def version(number: int, status: str = "servable", *, is_resident: bool = True) -> VersionRoute:
    path, digest = f"/a/v{number}", f"{number:064x}"
    return VersionRoute(number, name(number), path, status, digest, is_resident)


def snapshot(
    *resident: int, idle: tuple[int, ...] = (), exam: int | None = None
) -> RoutingSnapshot:
    numbers = {*resident, *idle} | ({exam} if exam else set())
    versions = {
        number: version(
            number,
            "candidate" if number == exam else "servable",
            is_resident=number in resident,
        )
        for number in numbers
    }
    return RoutingSnapshot(1, {"smollm2": AdapterRoutes("smollm2", BASE, {}, versions)})


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def residency(engine: FakeEngine, clock: Clock) -> AsyncIterator[Residency]:
    with serve(engine.app()) as served:
        async with open_control(EngineSettings(), served.url) as control:
            residency = Residency(control, clock=clock)
            yield residency
            await residency.close()


async def round_of(residency: Residency, wanted: RoutingSnapshot) -> None:
    await residency.observe()
    await residency.reconcile(wanted)


async def test_what_is_wanted_is_loaded_and_proven(
    residency: Residency, engine: FakeEngine
) -> None:
    await round_of(residency, snapshot(1, 2))

    assert engine.loads == [name(2), name(1)]
    assert residency.holds(version(1))
    assert residency.holds(version(2))


async def test_a_restarted_engine_is_healed_in_one_round(
    residency: Residency, engine: FakeEngine
) -> None:
    await round_of(residency, snapshot(1, 2))
    engine.lose_adapters()

    await round_of(residency, snapshot(1, 2))

    assert set(engine.adapters) == {name(1), name(2)}


async def test_many_callers_cause_one_load(residency: Residency, engine: FakeEngine) -> None:
    engine.load_s = 0.1

    await asyncio.gather(*(residency.ensure_loaded(version(1), BASE) for _ in range(20)))

    assert engine.loads == [name(1)]


async def test_an_impatient_caller_does_not_stop_the_load(
    residency: Residency, engine: FakeEngine
) -> None:
    engine.load_s = 0.2
    patient = asyncio.create_task(residency.ensure_loaded(version(1), BASE))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await residency.ensure_loaded(version(1), BASE)
    await patient

    assert residency.holds(version(1))


async def test_a_version_is_unloaded_only_after_the_grace(
    residency: Residency, engine: FakeEngine, clock: Clock
) -> None:
    await round_of(residency, snapshot(1, 2))

    await round_of(residency, snapshot(2, idle=(1,)))
    assert engine.unloads == []
    clock.now += UNLOAD_GRACE_S
    await round_of(residency, snapshot(2, idle=(1,)))

    assert engine.unloads == [name(1)]
    assert not residency.holds(version(1))


async def test_what_is_in_use_stays_until_the_last_request_has_left(
    residency: Residency, engine: FakeEngine, clock: Clock
) -> None:
    await round_of(residency, snapshot(1, 2))
    with residency.lease(name(1)):
        with residency.lease(name(1)):
            clock.now += 10 * UNLOAD_GRACE_S
            await round_of(residency, snapshot(2, idle=(1,)))
        await round_of(residency, snapshot(2, idle=(1,)))
        assert engine.unloads == []

    await round_of(residency, snapshot(2, idle=(1,)))
    assert engine.unloads == []  # the grace counts from the last use
    clock.now += UNLOAD_GRACE_S
    await round_of(residency, snapshot(2, idle=(1,)))
    assert engine.unloads == [name(1)]


async def test_a_candidate_and_foreign_names_are_never_unloaded(
    residency: Residency, engine: FakeEngine, clock: Clock
) -> None:
    engine.adapters = {name(3): "/a/v3", "theirs": "/b", "other@v1.00000001": "/c"}
    await round_of(residency, snapshot(exam=3))
    clock.now += 10 * UNLOAD_GRACE_S

    await round_of(residency, snapshot(exam=3))

    assert engine.unloads == []


async def test_a_name_that_no_version_has_goes_after_the_grace(
    residency: Residency, engine: FakeEngine, clock: Clock
) -> None:
    engine.adapters = {name(9): "/a/v9"}
    await round_of(residency, snapshot())
    clock.now += UNLOAD_GRACE_S

    await round_of(residency, snapshot())

    assert engine.unloads == [name(9)]


async def test_an_adapter_that_changes_nothing_never_becomes_usable(
    residency: Residency, engine: FakeEngine, clock: Clock
) -> None:
    engine.ignores_adapters = True

    for _ in range(3):
        await round_of(residency, snapshot(1))
        clock.now += RETRY_S
    assert engine.loads == engine.unloads == [name(1)] * 3
    with pytest.raises(AdapterNotProven):
        await residency.ensure_loaded(version(1), BASE)
    await residency.observe()
    assert not residency.holds(version(1))

    engine.ignores_adapters = False
    await residency.ensure_loaded(version(1), BASE)
    assert residency.holds(version(1))


async def test_an_adapter_is_not_usable_before_it_is_proven(
    residency: Residency, engine: FakeEngine
) -> None:
    engine.token_s = 0.05  # the proof takes a while
    loading = asyncio.create_task(residency.ensure_loaded(version(1), BASE))
    await asyncio.sleep(0.2)

    await residency.observe()
    assert name(1) in engine.adapters
    assert not residency.holds(version(1))
    await loading
    assert residency.holds(version(1))


async def test_a_failed_load_waits_before_the_next_try_but_a_request_does_not(
    residency: Residency, engine: FakeEngine, clock: Clock
) -> None:
    engine.refuses_load = 500
    await round_of(residency, snapshot(1))
    engine.refuses_load = None

    await round_of(residency, snapshot(1))
    assert engine.loads == []
    clock.now += RETRY_S
    await round_of(residency, snapshot(1))
    assert engine.loads == [name(1)]

    engine.refuses_load = 500
    with pytest.raises(AdapterRefused):
        await residency.ensure_loaded(version(2), BASE)
    engine.refuses_load = None
    await residency.ensure_loaded(version(2), BASE)
    assert residency.holds(version(2))


async def test_a_leftover_that_was_never_proven_is_not_used_and_goes_after_the_grace(
    residency: Residency, engine: FakeEngine, clock: Clock
) -> None:
    engine.refuses_chat = 503  # the load succeeds and the proof cannot be made
    with pytest.raises(EngineError):
        await residency.ensure_loaded(version(1), BASE)
    await residency.observe()
    assert name(1) in engine.adapters
    assert not residency.holds(version(1))

    clock.now += UNLOAD_GRACE_S
    await round_of(residency, snapshot())

    assert engine.unloads == [name(1)]


async def test_a_leftover_that_was_never_proven_is_proven_when_it_is_wanted(
    residency: Residency, engine: FakeEngine, clock: Clock
) -> None:
    engine.refuses_chat = 503
    await round_of(residency, snapshot(1))
    engine.refuses_chat = None
    clock.now += RETRY_S

    await round_of(residency, snapshot(1))

    assert residency.holds(version(1))


async def test_other_files_under_a_name_of_ours_are_replaced_before_they_answer(
    residency: Residency, engine: FakeEngine
) -> None:
    engine.adapters = {name(1): "/a/forged"}
    await residency.observe()
    assert not residency.holds(version(1))

    await residency.ensure_loaded(version(1), BASE)

    assert engine.adapters == {name(1): "/a/v1"}
    assert residency.holds(version(1))


async def test_files_that_are_not_those_registered_are_not_loaded(
    residency: Residency,
    engine: FakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # here the files are real
    (tmp_path / "adapter_config.json").write_text("{}")
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_text("as registered")
    stored = replace(version(1), path=str(tmp_path), digest=artifact.digest(tmp_path))

    weights.write_text("changed since")
    with pytest.raises(AdapterRefused, match="not those that were registered"):
        await residency.ensure_loaded(stored, BASE)
    weights.unlink()
    with pytest.raises(AdapterRefused, match="cannot be read"):
        await residency.ensure_loaded(stored, BASE)
    assert engine.loads == []

    weights.write_text("as registered")
    await residency.ensure_loaded(stored, BASE)
    assert engine.adapters == {name(1): str(tmp_path)}
