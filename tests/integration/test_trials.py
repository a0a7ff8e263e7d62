"""Trials on a real database of each kind: of orders that come together, one wins and nothing is half done."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.core.errors import AppError, NoTrialWaits, TrialOpen
from server.core.settings import RolloutSettings, Settings
from server.db import Adapter, Alias, AliasEvent, Trial, VersionStatus
from server.db.session import Database
from server.services import interactions, promotion, registry, trials
from server.services.bootstrap import ensure_line
from server.services.judge import Verdict
from server.services.trials import Finding
from tests.conftest import BASE_HASH
from tests.support.factories import captured, make_version

pytestmark = pytest.mark.integration


@pytest.fixture
def adapter(shared: Database, settings: Settings, tmp_path: Path) -> Adapter:
    """A line with v1 to v3, all servable; the base is champion."""
    with shared.unit_of_work() as session:
        line = ensure_line(session, settings, base_path=tmp_path / "base", base_hash=BASE_HASH)
        for _ in range(3):
            make_version(session, line)
    return line


def start(session: Session, adapter: Adapter, number: int, **fields: Any) -> str:
    line = session.get_one(Adapter, adapter.id)
    order: dict[str, Any] = {"mode": "canary", "share": 50, "reason": "", **fields}
    config = order.pop("config", RolloutSettings())
    version = trials.challenger_of(session, line, number)
    return trials.start(session, line, version, actor="test", config=config, **order).id


def together(database: Database, orders: list[Callable[[Session], Any]]) -> list[Any]:
    """What came of orders that are given at one moment: results and errors."""
    ready = Barrier(len(orders))

    def give(order: Callable[[Session], Any]) -> Any:
        ready.wait()
        try:
            with database.unit_of_work() as session:
                return order(session)
        except AppError as error:
            return error

    with ThreadPoolExecutor(len(orders)) as pool:
        return list(pool.map(give, orders))


def test_of_many_starts_one_wins(shared: Database, adapter: Adapter) -> None:
    orders: list[Callable[[Session], Any]] = [
        lambda session, number=number: start(session, adapter, number)  # type: ignore[misc]
        for number in (1, 2, 3, 1, 2, 3)
    ]

    found = together(shared, orders)

    assert sum(isinstance(one, TrialOpen) for one in found) == 5
    with shared.unit_of_work() as session:
        trial = session.scalars(select(Trial)).one()
        challenger = session.scalars(select(Alias).where(Alias.name == "challenger")).one()
        assert challenger.version_id == trial.version_id
        routes = registry.snapshot(session, resident_versions=1, served="smollm2")
        assert routes.adapters["smollm2"].trial is not None


def test_of_a_yes_and_a_no_one_wins(shared: Database, adapter: Adapter) -> None:
    for _ in range(6):
        with shared.unit_of_work() as session:
            trial_id = start(session, adapter, 2, mode="hold")

        def say_yes(session: Session, trial_id: str = trial_id) -> str:
            trial = session.get_one(Trial, trial_id)
            trials.approve(session, trial, actor="yes", reason="")
            return "yes"

        def say_no(session: Session, trial_id: str = trial_id) -> bool:
            return trials.abort(session, session.get_one(Trial, trial_id), actor="no", reason="")

        yes, no = together(shared, [say_yes, say_no])

        with shared.unit_of_work() as session:
            trial = session.get_one(Trial, trial_id)
            champion = promotion.champion(session, adapter)
            if no:
                assert isinstance(yes, NoTrialWaits)
                assert (trial.state, champion) == ("aborted", None)
            else:
                assert yes == "yes"
                assert trial.state == "promoted"
                assert champion is not None
                line = session.get_one(Adapter, adapter.id)
                move = promotion.plan_rollback(session, line, "base")
                promotion.apply_move(session, line, move, actor="test", reason="")


def test_two_judges_promote_once(shared: Database, adapter: Adapter) -> None:
    with shared.unit_of_work() as session:
        trial_id = start(session, adapter, 2)
        evidence = session.get_one(Trial, trial_id).evidence

    def settle(session: Session) -> str:
        finding = Finding(Verdict.PROMOTE, "not worse", evidence)
        return trials.settle(session, session.get_one(Trial, trial_id), finding, utc_now())

    assert set(together(shared, [settle] * 4)) == {"promoted"}
    with shared.unit_of_work() as session:
        assert [event.kind for event in session.scalars(select(AliasEvent))] == ["promote"]
        assert session.scalars(select(Alias.name)).all() == ["champion"]


def test_a_judge_who_comes_too_late_leaves_an_ended_trial_alone(
    shared: Database, adapter: Adapter
) -> None:
    with shared.unit_of_work() as session:
        trial_id = start(session, adapter, 2, config=RolloutSettings(needs_approval=True))
        evidence = session.get_one(Trial, trial_id).evidence
        trials.abort(session, session.get_one(Trial, trial_id), actor="no", reason="")

    for verdict in Verdict:
        with shared.unit_of_work() as session:
            trial = session.get_one(Trial, trial_id)
            finding = Finding(verdict, "late", evidence)
            assert trials.settle(session, trial, finding, utc_now()) == "aborted"
    with shared.unit_of_work() as session:
        assert registry.versions_of(session, adapter)[1].status == VersionStatus.SERVABLE


def test_evidence_is_read_from_this_database(shared: Database, adapter: Adapter) -> None:
    with shared.unit_of_work() as session:
        canary = start(session, adapter, 1)
        records = [
            captured("Hi", version=version, arm=arm, **fault)
            for version, arm, fault in [
                ("smollm2@base", "champion", {}),
                ("smollm2@v1", "challenger", {"outcome": "engine_error", "status": 502}),
            ]
            * 20
        ]
        interactions.record_all(session, records)
    with shared.look() as session:
        found = trials.look(session, session.get_one(Trial, canary), utc_now())
    assert found.verdict is Verdict.ABORT

    with shared.unit_of_work() as session:
        trials.abort(session, session.get_one(Trial, canary), actor="test", reason="")
        shadow = start(session, adapter, 2, mode="shadow")
        original = captured("Hi", version="smollm2@base", arm="champion")
        copy = captured("Hi", version="smollm2@v2", arm="shadow", shadow_of=original["id"])
        orphan = captured("Hi", version="smollm2@v2", arm="shadow", shadow_of="int_gone")
        assert interactions.record_all(session, [copy, original, orphan]) == 2
    with shared.look() as session:
        found = trials.look(session, session.get_one(Trial, shadow), utc_now())
    assert found.evidence["signals"]["failed"]["pairs"] == 1
