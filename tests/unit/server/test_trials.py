"""Trials on a database: who may be tried, what the judge does, who else ends them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.core.errors import (
    AlreadyChampion,
    InvalidRequest,
    NoTrialWaits,
    TrialOpen,
    VersionNotServable,
)
from server.core.settings import RolloutSettings
from server.db import Adapter, AdapterVersion, Trial, VersionStatus
from server.db.session import Database
from server.services import evidence, interactions, promotion, registry, trials, watch
from server.services.judge import Verdict
from tests.support.factories import captured, make_version

CONFIG = RolloutSettings(min_requests=20)
ACTOR = "key:key_1 (test)"


@dataclass
class Line:
    """v1 is champion, v2 its challenger; requests come one a second."""

    database: Database
    adapter: Adapter
    now: datetime

    @contextmanager
    def work(self) -> Iterator[tuple[Session, Adapter]]:
        with self.database.unit_of_work() as session:
            yield session, session.get_one(Adapter, self.adapter.id)

    def promote(self, number: int | str) -> None:
        with self.work() as (session, adapter):
            move = promotion.plan_promotion(session, adapter, number)
            promotion.apply_move(session, adapter, move, actor="test", reason="")

    def start(
        self, version: int = 2, mode: str = "canary", share: float = 50, **config: Any
    ) -> str:
        with self.work() as (session, adapter):
            trial = trials.start(
                session,
                adapter,
                trials.challenger_of(session, adapter, version),
                mode=mode,
                share=share,
                actor=ACTOR,
                reason="to see",
                config=CONFIG.model_copy(update=config),
            )
            trial.created_at = self.now + timedelta(milliseconds=1)
            return trial.id

    def answer(self, version: str, count: int = 1, **fields: Any) -> list[str]:
        """Replies of a version, the next ones in time."""
        records = []
        for _ in range(count):
            self.now += timedelta(seconds=1)
            arm = {"v1": "champion"}.get(version, "challenger")
            columns = {"arm": arm, "version": f"smollm2@{version}", **fields}
            at = self.now.isoformat()
            records.append(captured(f"At {at}", created_at=at, completion_tokens=10, **columns))
        with self.database.unit_of_work() as session:
            interactions.record_all(session, records)
        return [record["id"] for record in records]

    def answer_both(self, count: int, **challenger: Any) -> None:
        for _ in range(count):
            self.answer("v1")
            self.answer("v2", **challenger)

    def judge(self, trial_id: str) -> trials.Finding:
        with self.work() as (session, _):
            trial = session.get_one(Trial, trial_id)
            finding = trials.look(session, trial, self.now)
        with self.work() as (session, _):
            trials.settle(session, session.get_one(Trial, trial_id), finding, self.now)
        return finding

    def trial(self, trial_id: str) -> Trial:
        with self.work() as (session, _):
            return session.get_one(Trial, trial_id)

    def champion(self) -> int | None:
        with self.work() as (session, adapter):
            found = promotion.champion(session, adapter)
            return found.number if found else None

    def aliases(self) -> dict[str, int | None]:
        with self.work() as (session, adapter):
            found = registry.aliases_of(session, adapter)
            return {name: version.number if version else None for name, version in found.items()}

    def status(self, number: int) -> str:
        with self.work() as (session, adapter):
            version = registry.get_version(session, adapter, number)
            assert version is not None
            return version.status

    def set_status(self, number: int, status: VersionStatus) -> None:
        with self.work() as (session, adapter):
            version = registry.get_version(session, adapter, number)
            assert version is not None
            registry.set_status(session, version, status)


@pytest.fixture
def line(database: Database, adapter: Adapter) -> Line:
    with database.unit_of_work() as session:
        for _ in range(3):
            make_version(session, adapter)
    made = Line(database, adapter, utc_now() - timedelta(hours=2))
    made.promote(1)
    made.answer("v1", 30)
    return made


def trial_route(line: Line) -> Any:
    with line.work() as (session, _):
        found = registry.snapshot(session, resident_versions=1, served="smollm2")
    return found.adapters["smollm2"].trial, found.adapters["smollm2"].versions[2].is_resident


# Starting and ending


def test_a_trial_has_the_alias_and_routing_sees_it(line: Line) -> None:
    line.start(share=12.5)

    trial, is_resident = trial_route(line)
    assert (trial.mode, trial.number, trial.share) == ("canary", 2, 12.5)
    assert is_resident
    assert line.aliases() == {"champion": 1, "challenger": 2}


def test_an_end_takes_the_alias_away_and_leaves_the_version(line: Line) -> None:
    trial_id = line.start()
    with line.work() as (session, _):
        assert trials.abort(session, session.get_one(Trial, trial_id), actor=ACTOR, reason="enough")

    ended = line.trial(trial_id)
    assert (ended.state, ended.ended_by, ended.outcome) == ("aborted", ACTOR, "enough")
    assert (line.aliases(), trial_route(line)[0]) == ({"champion": 1}, None)
    assert line.status(2) == VersionStatus.SERVABLE
    with line.work() as (session, _):
        assert not trials.abort(session, session.get_one(Trial, trial_id), actor="x", reason="")


@pytest.mark.parametrize("share", [0, -1, 100.01, 1e9])
def test_a_share_outside_of_a_hundred_is_refused(line: Line, share: float) -> None:
    with pytest.raises(InvalidRequest) as refused:
        line.start(share=share)

    assert refused.value.param == "share"
    assert line.aliases() == {"champion": 1}


def test_an_unknown_mode_is_refused(line: Line) -> None:
    with pytest.raises(InvalidRequest) as refused:
        line.start(mode="blue-green")

    assert refused.value.param == "mode"


def test_one_trial_at_a_time(line: Line) -> None:
    line.start()

    with pytest.raises(TrialOpen, match="smollm2@v2 on trial already"):
        line.start(version=3)


def test_the_champion_is_nobodys_challenger(line: Line) -> None:
    with pytest.raises(AlreadyChampion):
        line.start(version=1)


@pytest.mark.parametrize(
    ("status", "plain", "forced"),
    [
        (VersionStatus.SERVABLE, True, True),
        (VersionStatus.UNPROVEN, True, True),
        (VersionStatus.REJECTED, False, True),
        (VersionStatus.CANDIDATE, False, False),
        (VersionStatus.RETIRED, False, False),
    ],
)
def test_who_may_be_tried(line: Line, status: VersionStatus, plain: bool, forced: bool) -> None:
    line.set_status(2, status)

    for force, may in ((False, plain), (True, forced)):
        with line.work() as (session, adapter):
            if may:
                assert trials.challenger_of(session, adapter, "v2", force=force).number == 2
            else:
                with pytest.raises(VersionNotServable):
                    trials.challenger_of(session, adapter, "v2", force=force)


def test_the_base_is_no_challenger(line: Line) -> None:
    with line.work() as (session, adapter), pytest.raises(InvalidRequest, match="needs no trial"):
        trials.challenger_of(session, adapter, "base")


# The judge


def test_a_clean_challenger_is_promoted(line: Line) -> None:
    trial_id = line.start()
    line.answer_both(100)
    assert line.judge(trial_id).verdict is Verdict.CONTINUE
    assert (line.trial(trial_id).state, line.champion()) == ("running", 1)
    line.answer_both(100)

    finding = line.judge(trial_id)

    assert finding.verdict is Verdict.PROMOTE
    ended = line.trial(trial_id)
    assert (ended.state, ended.ended_by) == ("promoted", "judge")
    assert (line.champion(), line.aliases()) == (2, {"champion": 2})
    signals = ended.evidence["signals"]
    assert ended.evidence["replies"] == 200
    assert {name: found["pairs"] for name, found in signals.items()} == {
        "failed": 200,
        "slow": 200,
        "malformed": 200,
        "feedback": 0,
    }
    with line.work() as (session, adapter):
        event = registry.events_of(session, adapter)[0]
    assert (event.kind, event.actor) == ("promote", "judge")


@pytest.mark.parametrize(
    ("fault", "signal"),
    [
        ({"outcome": "engine_error", "status": 502, "reply": ""}, "failed"),
        ({"reply": ""}, "malformed"),
        ({"duration_ms": 900.0}, "slow"),
    ],
)
def test_a_bad_challenger_is_aborted_and_rejected(
    line: Line, fault: dict[str, Any], signal: str
) -> None:
    trial_id = line.start()
    line.answer_both(20, **fault)

    finding = line.judge(trial_id)

    assert finding.verdict is Verdict.ABORT
    assert finding.reason.startswith(f"{signal}: 100.0% against 0.0%")
    assert line.trial(trial_id).outcome == finding.reason
    assert (line.champion(), line.aliases()) == (1, {"champion": 1})
    assert line.status(2) == VersionStatus.REJECTED


def test_approval_waits_for_a_person(line: Line) -> None:
    trial_id = line.start(needs_approval=True)
    line.answer_both(200)

    line.judge(trial_id)

    assert (line.trial(trial_id).state, line.champion()) == ("waiting", 1)
    assert trial_route(line) == (None, True)  # no more traffic, and still loaded
    line.judge(trial_id)
    assert line.trial(trial_id).state == "waiting"
    with line.work() as (session, _):
        trials.approve(session, session.get_one(Trial, trial_id), actor=ACTOR, reason="fine")
    assert (line.trial(trial_id).state, line.champion()) == ("promoted", 2)
    assert line.aliases() == {"champion": 2}


def test_a_running_trial_cannot_be_approved(line: Line) -> None:
    trial_id = line.start()

    with pytest.raises(NoTrialWaits, match="is running"), line.work() as (session, _):
        trials.approve(session, session.get_one(Trial, trial_id), actor=ACTOR, reason="")
    assert line.champion() == 1


def test_an_unproven_version_that_passes_may_serve(line: Line) -> None:
    line.set_status(2, VersionStatus.UNPROVEN)
    trial_id = line.start()
    line.answer_both(200)

    line.judge(trial_id)

    assert (line.status(2), line.champion()) == (VersionStatus.SERVABLE, 2)


def test_time_runs_out(line: Line) -> None:
    trial_id = line.start(max_hours=1)
    line.answer_both(5)
    line.now += timedelta(hours=1, seconds=1)

    line.judge(trial_id)

    ended = line.trial(trial_id)
    assert (ended.state, line.champion()) == ("aborted", 1)
    assert ended.outcome is not None
    assert ended.outcome.startswith("no verdict within 1 hours")
    assert line.status(2) == VersionStatus.SERVABLE


def test_where_approval_is_needed_a_trial_out_of_time_waits(line: Line) -> None:
    trial_id = line.start(max_hours=1, needs_approval=True)
    line.now += timedelta(hours=2)

    line.judge(trial_id)

    assert line.trial(trial_id).state == "waiting"


def test_a_champion_that_moves_ends_the_trial(line: Line) -> None:
    trial_id = line.start()
    line.promote(3)

    line.judge(trial_id)

    ended = line.trial(trial_id)
    assert (ended.state, ended.outcome) == (
        "aborted",
        "the champion moved to smollm2@v3 meanwhile",
    )
    assert (line.aliases(), line.status(2)) == ({"champion": 3}, VersionStatus.SERVABLE)


def test_a_challenger_promoted_by_hand_has_won(line: Line) -> None:
    trial_id = line.start()
    line.promote(2)

    line.judge(trial_id)

    assert line.trial(trial_id).state == "promoted"
    assert line.aliases() == {"champion": 2}


def test_a_retired_challenger_ends_the_trial_and_has_no_traffic(line: Line) -> None:
    trial_id = line.start()
    line.set_status(2, VersionStatus.RETIRED)
    assert trial_route(line)[0] is None

    line.judge(trial_id)

    assert (line.trial(trial_id).state, line.status(2)) == ("aborted", VersionStatus.RETIRED)
    assert line.aliases() == {"champion": 1}


def test_what_the_clients_keep_back_leaves_the_form_unknown(line: Line) -> None:
    trial_id = line.start()
    line.answer_both(200, request={"store": False})

    finding = line.judge(trial_id)

    assert (finding.verdict, finding.reason) == (Verdict.CONTINUE, "not sure yet of: malformed")


def test_pinned_requests_and_copies_are_no_evidence_in_a_canary(line: Line) -> None:
    trial_id = line.start()
    for _ in range(50):
        line.answer("v1", arm="pinned")
        [original] = line.answer("v1")
        line.answer("v2", arm="pinned", outcome="engine_error", status=502)
        line.answer("v2", arm="shadow", shadow_of=original, outcome="engine_error", status=502)

    finding = line.judge(trial_id)

    assert finding.evidence["replies"] == 0


def test_a_canary_of_all_requests_is_compared_with_before(line: Line) -> None:
    trial_id = line.start(share=100)
    line.answer("v2", 30, outcome="engine_error", status=502)

    assert line.judge(trial_id).verdict is Verdict.ABORT


def test_times_of_before_are_no_evidence_in_a_canary_of_all_requests(line: Line) -> None:
    trial_id = line.start(share=100)
    line.answer("v2", 30, duration_ms=900.0)

    finding = line.judge(trial_id)

    assert (finding.verdict, "slow" in finding.evidence["signals"]) == (Verdict.CONTINUE, False)


def test_an_adapter_is_not_slow_for_being_one_where_the_base_served_before(line: Line) -> None:
    with line.work() as (session, adapter):
        move = promotion.plan_rollback(session, adapter, "base")
        promotion.apply_move(session, adapter, move, actor="test", reason="")
    line.answer("base", 30, arm="champion")
    trial_id = line.start()
    for _ in range(200):
        line.answer("base", arm="champion")
        line.answer("v2", duration_ms=5.0)  # the base takes half of it

    finding = line.judge(trial_id)

    assert set(finding.evidence["signals"]) == {"failed", "malformed", "feedback"}
    assert (finding.verdict, line.champion()) == (Verdict.PROMOTE, 2)


def test_copies_are_compared_with_their_originals(line: Line) -> None:
    trial_id = line.start(mode="shadow")
    for _ in range(180):
        [original] = line.answer("v1")
        line.answer("v2", arm="shadow", shadow_of=original, may_learn=False, duration_ms=9000.0)

    finding = line.judge(trial_id)

    assert set(finding.evidence["signals"]) == {"failed", "malformed"}
    assert finding.evidence["signals"]["failed"]["pairs"] == 180
    assert (finding.verdict, line.champion()) == (Verdict.PROMOTE, 2)


def test_bad_copies_end_a_shadow_trial(line: Line) -> None:
    trial_id = line.start(mode="shadow")
    for _ in range(20):
        [original] = line.answer("v1")
        line.answer("v2", arm="shadow", shadow_of=original, reply=" ")

    assert line.judge(trial_id).verdict is Verdict.ABORT


def test_a_long_trial_is_read_in_stretches_to_the_same_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial_id = line.start()
    line.answer_both(60)
    line.answer_both(3, reply="")
    line.answer_both(60)
    line.now += timedelta(minutes=2)
    with line.work() as (session, _):
        whole = trials.look(session, session.get_one(Trial, trial_id), line.now)
    monkeypatch.setattr(evidence, "STRETCH", 40)

    for _ in range(3):
        parts = line.judge(trial_id)

    assert parts.evidence["replies"] == 123
    assert parts.evidence["signals"] == whole.evidence["signals"]
    assert parts.evidence["kept"]["replies"] == 120


def test_only_what_is_due_is_looked_at(line: Line) -> None:
    trial_id = line.start()
    line.judge(trial_id)

    with line.work() as (session, _):
        assert not trials.due(session, line.now + timedelta(seconds=4))
        assert [trial.id for trial in trials.due(session, line.now + trials.LOOK_EVERY)] == [
            trial_id
        ]


# After an exam


def roll_out(line: Line, number: int, **config: Any) -> None:
    with line.work() as (session, adapter):
        version = registry.get_version(session, adapter, number)
        assert isinstance(version, AdapterVersion)
        rollout = RolloutSettings(**config)
        trials.roll_out(session, adapter, version, config=rollout, actor="run:r", reason="gained")


def open_trial(line: Line) -> tuple[str, str, float, str] | None:
    with line.work() as (session, adapter):
        trial = trials.open_trial_of(session, adapter)
        return trial and (trial.mode, trial.state, trial.share, trial.started_by)


def test_a_passed_exam_serves_at_once_by_default(line: Line) -> None:
    roll_out(line, 2)

    assert (line.champion(), open_trial(line)) == (2, None)


def test_with_approval_a_passed_exam_waits(line: Line) -> None:
    roll_out(line, 2, needs_approval=True)

    assert (line.champion(), line.aliases()) == (1, {"champion": 1})
    assert open_trial(line) == ("hold", "waiting", 10.0, "run:r")


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_a_passed_exam_may_begin_a_trial(line: Line, mode: str) -> None:
    roll_out(line, 2, mode=mode, share=25)

    assert (line.champion(), line.aliases()) == (1, {"champion": 1, "challenger": 2})
    assert open_trial(line) == (mode, "running", 25.0, "run:r")


def test_the_newer_version_takes_the_place_on_trial(line: Line) -> None:
    roll_out(line, 2, mode="canary")
    roll_out(line, 3, mode="canary")

    assert line.aliases() == {"champion": 1, "challenger": 3}
    with line.work() as (session, adapter):
        newest, older = trials.trials_of(session, adapter)
    assert (older.state, older.outcome) == ("aborted", "superseded by v3")
    assert newest.state == "running"


# A line's own rollout


def test_a_line_has_its_own_rollout_over_the_settings(line: Line) -> None:
    with line.work() as (session, adapter):
        trials.set_rollout(session, adapter, {"mode": "canary", "share": 5}, RolloutSettings())
    with line.work() as (_, adapter):
        config = trials.config_of(adapter, RolloutSettings(share=50, alpha=0.01))
    assert (config.mode, config.share, config.alpha) == ("canary", 5, 0.01)

    with line.work() as (session, adapter):
        trials.set_rollout(session, adapter, None, RolloutSettings())
        assert trials.config_of(adapter, RolloutSettings()) == RolloutSettings()


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"share": 0}, "rollout.share"),
        ({"share": 101}, "rollout.share"),
        ({"mode": "blue"}, "rollout.mode"),
        ({"colour": 1}, "rollout.colour"),
        ({"alpha": "much"}, "rollout.alpha"),
    ],
)
def test_a_rollout_that_makes_no_sense_is_refused(
    line: Line, values: dict[str, Any], param: str
) -> None:
    with line.work() as (session, adapter), pytest.raises(InvalidRequest) as refused:
        trials.set_rollout(session, adapter, values, RolloutSettings())

    assert refused.value.param == param


# The watch


def alarms(line: Line, **config: Any) -> list[watch.Alarm]:
    with line.work() as (session, _):
        return watch.alarms(session, RolloutSettings(**config), utc_now())


def serve_after_promotion(line: Line, **fields: Any) -> None:
    line.promote(2)
    line.now = utc_now()
    line.answer("v2", 30, arm="champion", **fields)


BROKEN = {"outcome": "engine_error", "status": 502}


def test_harm_after_a_promotion_takes_it_back(line: Line) -> None:
    serve_after_promotion(line, **BROKEN)

    [alarm] = alarms(line)
    with line.work() as (session, _):
        event = watch.take_back(session, alarm)

    assert event is not None
    assert (event.kind, event.actor, line.champion()) == ("rollback", "watch", 1)
    assert event.reason.startswith("failed: 100.0% against 0.0%")
    assert alarms(line) == []  # a rollback is never taken back
    with line.work() as (session, _):
        assert watch.take_back(session, alarm) is None


def test_a_sound_promotion_stays(line: Line) -> None:
    serve_after_promotion(line)

    assert alarms(line) == []


def test_a_busier_hour_does_not_take_a_promotion_back(line: Line) -> None:
    serve_after_promotion(line, duration_ms=900.0)

    assert alarms(line) == []


def test_the_watch_ends(line: Line) -> None:
    serve_after_promotion(line, **BROKEN)

    assert alarms(line, watch_s=0) == []


def test_without_anywhere_to_go_back_to_the_watch_keeps_still(line: Line) -> None:
    serve_after_promotion(line, **BROKEN)
    line.set_status(1, VersionStatus.RETIRED)

    assert alarms(line) == []


def test_somebody_who_was_quicker_is_not_undone(line: Line) -> None:
    serve_after_promotion(line, **BROKEN)
    [alarm] = alarms(line)
    line.promote(3)

    with line.work() as (session, _):
        assert watch.take_back(session, alarm) is None
    assert line.champion() == 3


def test_a_rollback_is_not_watched(line: Line) -> None:
    line.promote(2)
    with line.work() as (session, adapter):
        move = promotion.plan_rollback(session, adapter)
        promotion.apply_move(session, adapter, move, actor="admin", reason="")
    line.now = utc_now()
    line.answer("v1", 30, **BROKEN)

    assert alarms(line) == []


def test_trials_end_with_their_rows(line: Line) -> None:
    """Every trial that was started has one row, open or closed; none is lost or doubled."""
    first = line.start()
    with line.work() as (session, _):
        trials.abort(session, session.get_one(Trial, first), actor=ACTOR, reason="")
    second = line.start()

    with line.work() as (session, _):
        assert set(session.scalars(select(Trial.id))) == {first, second}
