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
from server.services import feedback, interactions, plans, promotion, prompts, runs
from server.services.feedback import Judgement
from server.services.plans import PROMPT_METHODS, Plan, Wish
from server.services.policy_rules import MaterialSpec
from server.services.prompt_material import prompts_of
from server.services.prompts import PromptUpload
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


# Earlier runs

KNOWN = 40


def send(session: Session, count: int, *, start: int = 0) -> None:
    """So many prompts with known answers, of the train split."""
    uploads = [PromptUpload(prompt=f"Sum {start + n}?", answers=("4",)) for n in range(count)]
    for row, _ in prompts.accept(session, prompts.checked(uploads), owner=None, created_by="key_1"):
        row.split = "train"


@pytest.mark.parametrize("verdict", ["no_update", "reject", "inconclusive"])
def test_a_method_that_came_to_nothing_lets_those_below_it_try(
    session: Session, line: Adapter, verdict: str
) -> None:
    send(session, KNOWN)
    hear(session, 20, "smollm2@base", "The sum is 4.")
    first = planned(session, line)
    run_id = see_through(session, line, first, verdict=verdict)
    hear(session, 3, "smollm2@base", "The sum is 4.")

    second = planned(session, line)

    assert first.config is not None
    assert first.config.type == "sd-zero"
    assert second.config is not None
    assert second.config.type == "ttrl"
    assert second.reason["rejected"]["sd-zero"] == (
        f"40 of 63 prompts have a known answer; but its last run, {run_id}, ended in {verdict}, "
        "the same version serves, and of the 60 new prompts that another is worth 3 have come."
    )


def test_a_method_is_tried_again_with_as_many_new_prompts_as_it_has_had(
    session: Session, line: Adapter
) -> None:
    send(session, KNOWN)
    see_through(session, line, planned(session, line), verdict="no_update")
    send(session, KNOWN - 1, start=KNOWN)
    one_short = planned(session, line)
    send(session, 1, start=2 * KNOWN - 1)

    assert one_short.config is None
    assert (planned(session, line).config or SpecsConfig()).type == "sd-zero"


def test_the_same_questions_asked_again_are_nothing_new(session: Session, line: Adapter) -> None:
    hear(session, 40, "smollm2@base", "The sum is 4.")
    see_through(session, line, planned(session, line), verdict="no_update")
    again = [
        captured(f"question  {n}?", version="smollm2@base", reply="The sum is 4.")
        for n in range(40)
    ]
    interactions.record_all(session, again)
    session.query(Interaction).update({"split": "train"})

    found = planned(session, line)

    assert found.config is None
    assert "0 have come" in found.reason["rejected"]["ttrl"]


def test_another_champion_or_another_config_is_another_try(session: Session, line: Adapter) -> None:
    send(session, KNOWN)
    see_through(session, line, planned(session, line), verdict="no_update")

    assert planned(session, line).config is None
    assert planned(session, line, **{"sd-zero": {"seed": 5}}).config is not None
    serve_new_version(session, line)
    assert planned(session, line).config is not None


@pytest.mark.parametrize(
    ("status", "verdict"), [(RunStatus.SUCCEEDED, "promote"), (RunStatus.FAILED, None)]
)
def test_a_run_that_came_to_something_or_broke_is_held_against_no_method(
    session: Session, line: Adapter, status: RunStatus, verdict: str | None
) -> None:
    send(session, KNOWN)
    see_through(session, line, planned(session, line), status=status, verdict=verdict)

    found = planned(session, line)

    assert (found.config or SpecsConfig()).type == "sd-zero"
