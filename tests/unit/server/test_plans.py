"""What `auto` sees of a line: replies of what serves now, feedback not yet learnt, earlier runs."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm import Session

from adapters.spec import JsonSchemaContract, SpecsConfig
from server.core.settings import LearningSettings
from server.db import Adapter, Interaction
from server.db.session import Database
from server.services import interactions, plans, promotion
from server.services.plans import Plan, Wish
from server.services.policy_rules import MaterialSpec
from tests.support.factories import captured, make_version

WHOLE = {"prompt_exam": {"share": 0.0}, "prompts_per_user": 1.0}
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
    learnt = {method: WHOLE | config.get(method, {}) for method in ("ttrl", "kto")}
    wish = Wish("auto", MaterialSpec(kind=kind), config | learnt)
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
