"""What `auto` sees of a line: replies of what serves now, feedback not yet learnt, earlier runs."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from adapters.spec import AutoSpec, JsonSchemaContract, SpecsConfig
from server.core.settings import LearningSettings
from server.db import Adapter, FeedbackKind, Interaction, RunStatus
from server.db.session import Database
from server.services import feedback, interactions, plans, promotion, runs
from server.services.feedback import Judgement
from server.services.plans import PROMPT_METHODS, Plan, Wish
from server.services.policy_rules import MaterialSpec
from server.services.prompt_material import prompts_of
from tests.conftest import RecordingQueue
from tests.support.factories import captured, make_version, principal

WHOLE = {"prompt_exam": {"share": 0.0}, "prompts_per_user": 1.0, "min_prompts": 1}
"""All that was said is learnt from, whoever said it."""
FORMED = LearningSettings(
    specs=SpecsConfig(contract=JsonSchemaContract(json_schema={"type": "object"}))
)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.unit_of_work() as session:
        yield session


@pytest.fixture
def line(session: Session, adapter: Adapter) -> Adapter:
    return session.merge(adapter)


def planned(
    session: Session,
    line: Adapter,
    settings: LearningSettings | None = None,
    kind: Any = "prompts",
    **config: Any,
) -> Plan:
    overrides = {method: WHOLE | config.get(method, {}) for method in PROMPT_METHODS}
    wish = Wish("auto", MaterialSpec(kind=kind), overrides)
    return plans.make(session, settings or LearningSettings(), line, wish)


def hear(session: Session, count: int, version: str, reply: str) -> list[str]:
    """So many replies of a version, each to another question, all of the train split."""
    start = session.query(Interaction).count()
    records = [
        captured(f"Question {start + n}?", version=version, reply=reply) for n in range(count)
    ]
    interactions.record_all(session, records)
    session.query(Interaction).update({"split": "train"})
    return [record["id"] for record in records]


def serve_new_version(session: Session, line: Adapter) -> None:
    version = make_version(session, line)
    move = promotion.plan_promotion(session, line, version.number)
    promotion.apply_move(session, line, move, actor="test", reason="")


# Replies


def test_only_what_the_champion_said_tells_its_form(session: Session, line: Adapter) -> None:
    hear(session, 40, "smollm2@base", "no JSON")
    before = planned(session, line, FORMED)
    serve_new_version(session, line)
    hear(session, 10, "smollm2@v1", '{"a": 1}')

    after = planned(session, line, FORMED)

    assert before.config is not None
    assert before.config.type == "specs"
    assert before.reason["why"] == "100% of 40 logged replies of smollm2@base break the contract"
    assert (
        after.reason["rejected"]["specs"]
        == "Only 0% of 10 logged replies of smollm2@v1 break the contract."
    )


def test_too_few_replies_of_the_champion_tell_nothing(session: Session, line: Adapter) -> None:
    hear(session, 40, "smollm2@base", "12")
    assert (planned(session, line).config or SpecsConfig()).type == "ttrl"
    serve_new_version(session, line)
    hear(session, 7, "smollm2@v1", "12")

    found = planned(session, line, FORMED)

    assert found.config is None
    assert found.reason["rejected"]["specs"] == (
        "Only 7 logged replies of smollm2@v1, which serves now; 8 are needed to judge the form by."
    )
    assert found.reason["rejected"]["ttrl"] == (
        "Only 7 logged replies of smollm2@v1, which serves now; 8 are needed to tell whether "
        "answers are short."
    )


# Feedback

FEW = LearningSettings(auto=AutoSpec(thumbs=10, corrections=5))


def judge(session: Session, heard: Sequence[str], *values: dict[str, Any]) -> None:
    """One judgement on each reply, the values in turn."""
    for number, interaction_id in enumerate(heard):
        value = values[number % len(values)]
        kind = FeedbackKind.CORRECTION if "text" in value else FeedbackKind.THUMB
        feedback.give(session, principal(), interaction_id, [Judgement(kind, value)])


def see_through(
    session: Session,
    line: Adapter,
    plan: Plan,
    *,
    status: RunStatus = RunStatus.SUCCEEDED,
    verdict: str | None = "promote",
) -> str:
    """Run what was planned, its material taken; the run's id."""
    assert plan.config is not None
    run, _ = runs.queue_run(
        session,
        line,
        method=plan.config.type,
        config=plan.config.model_dump(mode="json"),
        requested_by="test",
        queue=RecordingQueue(),
        material=plan.material.model_dump(mode="json"),
    )
    owned = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=30))
    assert owned is not None
    prompts_of(session, owned)
    runs.finish(session, owned, status=status, verdict=verdict)
    session.expire_all()
    return run.id


THUMBS = ({"thumb": "up"}, {"thumb": "down"})


def test_thumbs_that_a_run_has_learnt_start_no_other(session: Session, line: Adapter) -> None:
    judge(session, hear(session, 12, "smollm2@base", "Rome."), *THUMBS)
    first = planned(session, line, FEW, "feedback")
    see_through(session, line, first)
    judge(session, hear(session, 1, "smollm2@base", "Paris."), *THUMBS)

    one_more = planned(session, line, FEW, "feedback")
    judge(session, hear(session, 9, "smollm2@base", "Bern."), *THUMBS)
    enough = planned(session, line, FEW, "feedback")

    assert first.reason["why"] == "6 thumbs up and 6 down"
    assert one_more.config is None
    assert one_more.reason["rejected"]["kto"] == (
        "1 thumbs beside 12 that a run has learnt, and 10 new ones are asked for."
    )
    assert enough.config is not None
    assert enough.selection is not None
    assert len(enough.selection.opinions) == 22


def test_corrections_that_a_run_has_learnt_start_no_other(session: Session, line: Adapter) -> None:
    heard = hear(session, 6, "smollm2@base", "Rome.")
    judge(session, heard, {"text": "Paris."})
    see_through(session, line, planned(session, line, FEW, "feedback"))
    judge(session, heard[:4], {"text": "Paris, France."})

    few = planned(session, line, FEW, "feedback")
    judge(session, heard[4:5], {"text": "Paris, France."})
    enough = planned(session, line, FEW, "feedback")

    assert few.config is None
    assert few.reason["rejected"]["corrections"] == (
        "4 corrections beside 2 that a run has learnt, and 5 new ones are asked for."
    )
    assert enough.config is not None
    assert enough.config.type == "corrections"


def test_a_run_that_failed_has_learnt_no_thumb(session: Session, line: Adapter) -> None:
    judge(session, hear(session, 12, "smollm2@base", "Rome."), *THUMBS)
    first = planned(session, line, FEW, "feedback")
    see_through(session, line, first, status=RunStatus.FAILED, verdict=None)

    again = planned(session, line, FEW, "feedback")

    assert again.config == first.config


def test_what_one_method_has_learnt_is_new_to_another(session: Session, line: Adapter) -> None:
    heard = hear(session, 12, "smollm2@base", "Rome.")
    judge(session, heard, *THUMBS)
    see_through(session, line, planned(session, line, FEW, "feedback"))
    judge(session, heard[:5], {"text": "Paris."})

    found = planned(session, line, FEW, "feedback")

    assert found.config is not None
    assert found.config.type == "corrections"
