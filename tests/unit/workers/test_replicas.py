"""A worker and several engines: load and prove on all of them, ask both sides on the same one."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from adapters.sampling import SamplingError
from adapters.types import SamplingParams
from server.core.errors import AdapterRefused, EngineUnavailable, ReplicasNotReady
from server.core.settings import EngineSettings, Settings, SwapSettings
from server.db import Adapter, VersionStatus
from server.db.session import Database
from server.services import fleet
from tests.conftest import RecordingQueue
from tests.support.factories import make_version
from tests.support.fake_engine import FakeEngine, serve
from workers import replicas, versions
from workers.context import WorkerContext
from workers.sampler import EngineSampler

BASE, NAME, PATH = "smollm2@base", "smollm2@v1.00000001", "/a/v1"
NOBODY = "http://127.0.0.1:9"


@dataclass
class Rig:
    context: WorkerContext
    engines: list[FakeEngine]
    urls: list[str]

    def prove(self) -> dict[str, dict[str, Any]]:
        return replicas.prove_everywhere(self.context, NAME, PATH, BASE)

    def at_quorum(self, quorum: float) -> "Rig":
        settings = self.context.settings.model_copy(update={"swap": SwapSettings(quorum=quorum)})
        context = WorkerContext(settings, self.context.database, self.context.queue, "w")
        return Rig(context, self.engines, self.urls)

    def add(self, url: str) -> None:
        with self.context.database.unit_of_work() as session:
            fleet.add_replica(session, url)

    def asked(self) -> list[set[tuple[str, str]]]:
        """(weights, question) of what came to each engine."""
        return [
            {(body["model"], body["messages"][0]["content"]) for body in engine.bodies}
            for engine in self.engines
        ]


@pytest.fixture
def rig(settings: Settings, database: Database) -> Iterator[Rig]:
    with ExitStack() as opened:
        engines = [FakeEngine(), FakeEngine()]
        urls = [opened.enter_context(serve(engine.app())).url for engine in engines]
        engine = EngineSettings(url=urls[0], connect_timeout_s=1, start_timeout_s=0.1)
        at = settings.model_copy(update={"engine": engine})
        with database.unit_of_work() as session:
            fleet.sync_from_settings(session, urls)
        yield Rig(WorkerContext(at, database, cast(Any, RecordingQueue()), "w"), engines, urls)


def test_a_version_is_loaded_and_proven_on_every_replica(rig: Rig) -> None:
    report = rig.prove()

    assert list(report) == rig.urls
    assert all(figures["logprob_difference"] == pytest.approx(0.2) for figures in report.values())
    assert [engine.adapters for engine in rig.engines] == [{NAME: PATH}] * 2


def test_a_replica_that_is_away_or_drains_is_not_counted(rig: Rig) -> None:
    rig.add(NOBODY)
    with rig.context.database.unit_of_work() as session:
        second = fleet.list_replicas(session)[1]
        fleet.set_draining(session, second.id, is_draining=True)

    assert list(rig.prove()) == rig.urls[:1]
    assert rig.engines[1].adapters == {}


def test_one_that_refuses_forbids_it_unless_the_quorum_is_lower(rig: Rig) -> None:
    rig.engines[1].refuses_load = 400

    with pytest.raises(ReplicasNotReady) as caught:
        rig.prove()

    assert rig.urls[1] in str(caught.value)
    assert "LoRA rank 32" in str(caught.value)
    assert list(rig.at_quorum(0.5).prove()) == rig.urls[:1]


def test_where_nobody_answers_the_engine_is_away(rig: Rig) -> None:
    with rig.context.database.unit_of_work() as session:
        fleet.add_replica(session, NOBODY)
        for replica in fleet.list_replicas(session)[:2]:
            fleet.remove_replica(session, replica.id)

    with pytest.raises(EngineUnavailable):
        rig.prove()
    with pytest.raises(EngineUnavailable):
        replicas.check_held(rig.context, NAME)


def test_the_only_replica_says_itself_why_not(rig: Rig) -> None:
    with rig.context.database.unit_of_work() as session:
        fleet.sync_from_settings(session, rig.urls[:1])
    rig.engines[0].refuses_load = 400

    with pytest.raises(AdapterRefused, match="LoRA rank 32"):
        rig.prove()


def test_before_the_swap_the_quorum_must_still_hold_it(rig: Rig) -> None:
    rig.prove()
    replicas.check_held(rig.context, NAME)
    rig.engines[1].lose_adapters()

    with pytest.raises(ReplicasNotReady, match="does not hold it any more"):
        replicas.check_held(rig.context, NAME)
    replicas.check_held(rig.at_quorum(0.5).context, NAME)


@pytest.fixture
def candidate(rig: Rig, adapter: Adapter) -> tuple[Any, str]:
    """What a run knows of its line, and the id of its version."""
    with rig.context.database.unit_of_work() as session:
        version = make_version(session, adapter, status=VersionStatus.CANDIDATE)
    return SimpleNamespace(adapter=adapter, base_engine_name=BASE), version.id


def test_the_report_of_a_run_tells_of_every_replica(rig: Rig, candidate: tuple[Any, str]) -> None:
    report = versions.load_and_prove(rig.context, *candidate, cast(Any, None))

    assert report["name"] == "smollm2@v1.00000000"
    assert report["logprob_difference"] == pytest.approx(0.2)
    assert report["load_seconds"] >= 0
    assert list(report["replicas"]) == rig.urls


def test_an_exam_is_repeated_when_an_engine_has_lost_the_version_since(
    rig: Rig, candidate: tuple[Any, str]
) -> None:
    versions.load_and_prove(rig.context, *candidate, cast(Any, None))
    versions.check_held(rig.context, *candidate)
    rig.engines[0].lose_adapters()

    with pytest.raises(SamplingError, match="does not hold it any more"):
        versions.check_held(rig.context, *candidate)


def sampled(rig: Rig, engine_name: str, urls: list[str]) -> list[str]:
    questions = [[{"role": "user", "content": f"Question {number}"}] for number in range(40)]
    sampler = EngineSampler(rig.context.settings, engine_name, urls)
    return sampler.chat(cast(Any, questions), SamplingParams())


def test_both_sides_of_an_exam_get_a_question_on_the_same_replica(rig: Rig) -> None:
    rig.prove()
    for engine in rig.engines:
        engine.bodies.clear()
    urls = replicas.urls_holding(rig.context, BASE, NAME)
    assert urls == rig.urls

    for engine_name in (BASE, NAME):
        assert all(engine_name in reply for reply in sampled(rig, engine_name, urls))

    first, second = rig.asked()
    assert len(first) + len(second) == 80
    assert min(len(first), len(second)) > 10
    for asked in (first, second):
        questions = {question for _, question in asked}
        assert asked == {(engine_name, q) for engine_name in (BASE, NAME) for q in questions}


def test_only_replicas_that_hold_both_sides_are_asked(rig: Rig) -> None:
    rig.prove()
    rig.engines[0].lose_adapters()

    assert replicas.urls_holding(rig.context, BASE, NAME) == rig.urls[1:]
    assert replicas.urls_holding(rig.context, BASE) == rig.urls
    rig.engines[1].lose_adapters()
    assert replicas.urls_holding(rig.context, BASE, NAME) == rig.urls


def test_a_replica_that_goes_away_hands_its_questions_on(rig: Rig) -> None:
    replies = sampled(rig, BASE, [NOBODY, rig.urls[0]])

    assert len(replies) == 40
    assert len(rig.asked()[0]) == 40
