"""When policies are due, and that nothing is queued twice for the same material."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.core.settings import LearningSettings, Settings
from server.db import (
    AdaptationPolicy,
    AdaptationRun,
    Adapter,
    FeedbackKind,
    Interaction,
    RunStatus,
    VersionStatus,
)
from server.db.session import Database
from server.services import (
    deletions,
    feedback,
    interactions,
    policies,
    policy_rows,
    policy_rules,
    prompts,
    registry,
    runs,
)
from server.services.feedback import Judgement
from server.services.policy_rows import Draft
from server.services.policy_rules import MaterialSpec, WhenSpec
from server.services.prompt_material import prompts_of
from server.services.prompts import PromptUpload
from tests.conftest import RecordingQueue
from tests.support.factories import captured, make_document, make_version, principal

LEARNING = LearningSettings(quiet_s=0)
CONFIG = {"prompt_exam": {"share": 0.0}, "prompts_per_user": 1.0, "min_prompts": 1}


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.unit_of_work() as session:
        yield session


@pytest.fixture
def line(session: Session, adapter: Adapter) -> Adapter:
    return session.merge(adapter)


def policy(session: Session, settings: Settings, line: Adapter, **fields: Any) -> AdaptationPolicy:
    draft = Draft(**{"name": "p", "method": "ttrl", "config": CONFIG, **fields})
    return policy_rows.create(session, settings, line, draft, actor=principal())


def hear(session: Session, count: int, *, tag: str | None = None, **fields: Any) -> list[str]:
    """So many requests, all of the train split."""
    request = {"metadata": {"task": tag}} if tag else {}
    start = session.query(Interaction).count()
    records = [captured(f"Question {start + n}?", request=request, **fields) for n in range(count)]
    interactions.record_all(session, records)
    session.query(Interaction).update({"split": "train"})
    return [record["id"] for record in records]


def due(session: Session, after: timedelta = timedelta(seconds=1)) -> list[AdaptationRun]:
    return policies.queue_due_runs(session, LEARNING, queue=RecordingQueue(), now=utc_now() + after)


def end(session: Session, run: AdaptationRun, *, takes: bool = True) -> None:
    """See a run through: its material taken, and an end."""
    owned = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=30))
    assert owned is not None
    if takes:
        prompts_of(session, owned)
    runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="reject")
    session.flush()


def test_a_count_is_waited_for_and_the_same_material_is_queued_once(
    session: Session, line: Adapter, settings: Settings
) -> None:
    made = policy(session, settings, line, when=WhenSpec(count=3))
    hear(session, 2)
    assert due(session) == []
    hear(session, 1)

    (run,) = due(session)

    assert (run.method, run.policy_id, run.material["kind"]) == ("ttrl", made.id, "prompts")
    assert due(session) == []  # one at a time
    end(session, run)
    assert due(session) == []
    hear(session, 3)
    assert len(due(session)) == 1


def test_what_waits_too_long_is_learnt(session: Session, line: Adapter, settings: Settings) -> None:
    policy(session, settings, line, when=WhenSpec(count=100, max_age_hours=5))
    hear(session, 1)

    assert due(session, timedelta(hours=4)) == []
    assert len(due(session, timedelta(hours=6))) == 1


def test_a_schedule_is_kept_and_needs_something_new(
    session: Session, line: Adapter, settings: Settings
) -> None:
    policy(session, settings, line, when=WhenSpec(schedule="0 3 * * *"))
    assert due(session, timedelta(days=2)) == []  # its moment passed with nothing to learn
    hear(session, 1)

    assert due(session, timedelta(days=2, seconds=5)) == []
    assert len(due(session, timedelta(days=4))) == 1


def test_a_line_that_is_asked_is_not_idle(
    session: Session, line: Adapter, settings: Settings
) -> None:
    policy(session, settings, line, when=WhenSpec(idle_hours=2))
    hear(session, 1)

    assert due(session, timedelta(hours=1)) == []
    assert len(due(session, timedelta(hours=3))) == 1


def test_after_a_run_it_rests(session: Session, line: Adapter, settings: Settings) -> None:
    policy(session, settings, line, cooldown_hours=4.0)
    hear(session, 1)
    (run,) = due(session)
    end(session, run)
    hear(session, 1)

    assert due(session, timedelta(hours=3)) == []
    assert len(due(session, timedelta(hours=5))) == 1


def test_other_tags_are_nothing_new(session: Session, line: Adapter, settings: Settings) -> None:
    policy(session, settings, line, material=MaterialSpec(kind="prompts", tag="maths"))
    hear(session, 3, tag="law")
    assert due(session) == []
    hear(session, 1, tag="maths")

    assert len(due(session)) == 1


def test_a_late_judgement_on_an_old_reply_is_new(
    session: Session, line: Adapter, settings: Settings
) -> None:
    made = policy(session, settings, line, method="kto", config=CONFIG)
    (old,) = hear(session, 1, reply="Rome.")
    assert due(session) == []
    thumb = Judgement(FeedbackKind.THUMB, {"thumb": "down"})
    feedback.give(session, principal(), old, [thumb])

    (run,) = due(session)

    assert (run.method, run.policy_id, run.material["kind"]) == ("kto", made.id, "feedback")


def test_no_update_is_written_down_and_not_repeated(
    session: Session, line: Adapter, settings: Settings
) -> None:
    made = policy(session, settings, line, method="auto", config={})
    hear(session, 2, reply="Well, that depends on many things.")

    assert due(session) == []

    assert made.decision is not None
    assert made.decision["method"] is None
    assert made.decision["why"] == "Nothing fits."
    assert "prompts to learn from, and 32" in made.decision["rejected"]["ttrl"]
    at = made.decision["at"]
    due(session, timedelta(hours=1))
    assert made.decision["at"] == at


def test_auto_takes_votes_where_replies_are_numbers(
    session: Session, line: Adapter, settings: Settings
) -> None:
    overrides = {"ttrl": {**CONFIG, "rollouts": {"steps": 2}}, "kto": CONFIG}
    policy(session, settings, line, method="auto", config=overrides)
    hear(session, 40, reply="The sum is 8.", version="smollm2@base")

    (run,) = due(session)

    assert run.method == "ttrl"
    assert (run.config["rollouts"]["steps"], run.config["answer"]["kind"]) == (2, "number")
    assert run.reason is not None
    assert (
        run.reason["why"]
        == "100% of 40 logged replies of smollm2@base give a short answer (number)"
    )
    assert run.material["kind"] == "prompts"


def test_a_budget_goes_to_the_run(session: Session, line: Adapter, settings: Settings) -> None:
    budget = policy_rows.BudgetSpec(seconds=60, steps=4)
    policy(session, settings, line, budget=budget)
    hear(session, 1)

    (run,) = due(session)

    assert run.config["budget"] == {"seconds": 60, "steps": 4, "tokens": None}


def test_one_line_has_one_run_whatever_is_due(
    session: Session, line: Adapter, settings: Settings
) -> None:
    policy(session, settings, line)
    policy(session, settings, line, name="q", method="sept")
    hear(session, 3)
    make_document(session)

    assert [run.method for run in due(session)] == ["seal"]


def test_what_a_deletion_unlearnt_is_learnt_again(
    session: Session, line: Adapter, settings: Settings
) -> None:
    policy(session, settings, line)
    checked = prompts.checked([PromptUpload(prompt=f"Sent {n}?") for n in range(12)])
    stored = prompts.accept(session, checked, owner=None, created_by="key_1")
    first = next(row for row, _ in stored if row.split == "train")
    (run,) = due(session)
    owned = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=30))
    assert owned is not None
    prompts_of(session, owned)
    version = make_version(session, line, claim=owned)
    runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")
    assert due(session) == []

    deletions.forget_prompt(session, principal(), first.id)
    assert due(session) == []  # it serves still
    registry.set_status(session, version, VersionStatus.RETIRED)
    session.flush()

    assert len(due(session)) == 1


@pytest.mark.parametrize(
    ("schedule", "since", "now", "expected"),
    [
        ("0 3 * * *", (21, 2), (21, 4), True),
        ("0 3 * * *", (21, 3), (21, 23), False),
        ("0 3 * * *", (21, 4), (22, 3), True),
        ("*/5 * * * *", (21, 3), (21, 4), True),
        ("0 0 29 2 *", (1, 1), (28, 1), False),
    ],
)
def test_a_schedule_fires_between_two_looks(
    schedule: str, since: tuple[int, int], now: tuple[int, int], expected: bool
) -> None:
    then, later = (datetime(2026, 11, day, hour, tzinfo=UTC) for day, hour in (since, now))

    assert policy_rules.has_fired(schedule, then, later) is expected
