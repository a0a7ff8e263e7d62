"""The one door to what may be learnt: redacted, consented, and of the line's own tenant."""

import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from server.core.settings import Settings
from server.db import Adapter, Interaction
from server.db import FeedbackKind as Kind
from server.db.session import Database
from server.services import experience, feedback, interactions, runs
from server.services.experience import Experience
from server.services.feedback import Judgement
from server.services.interactions import Filters
from tests.support.factories import captured, make_document, make_run, principal
from workers import material

PLANTED = [
    "ada@example.com",
    "sk-proj-abcdefghij0123456789ABCDEFGHIJ",
    "4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00",
    "+49 30 901820",
    "hunter2!",
]
LETTER = "I am ada@example.com, +49 30 901820. password=hunter2! Card 4111 1111 1111 1111."
MORE = "IBAN DE89 3704 0044 0532 0130 00 and sk-proj-abcdefghij0123456789ABCDEFGHIJ."


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.unit_of_work() as session:
        yield session


def learnt(session: Session, adapter: Adapter) -> list[Experience]:
    return [
        found
        for split in ("train", "gate")
        for found in experience.learnable(session, adapter, split=split)
    ]


def exported(session: Session, owner: str | None = None) -> list[dict[str, Any]]:
    page, last = experience.export_page(session, principal(owner), Filters())
    assert last is None
    return [json.loads(line) for line in experience.training_lines(page).splitlines()]


def test_planted_strings_are_nowhere_a_learner_reads(session: Session, adapter: Adapter) -> None:
    request = {
        "tools": [{"type": "function", "function": {"name": "f", "description": MORE}}],
        "metadata": {"task": "ada@example.com", "note": LETTER},
        "user": "ada@example.com",
    }
    record = captured(
        LETTER,
        MORE,
        LETTER,
        request=request,
        reply=f"{LETTER} {MORE}",
        choices=[{"text": LETTER}],
        tokens={"ids": [1, 2]},
    )
    interactions.record_all(session, [record])
    said = [
        Judgement(Kind.CORRECTION, {"text": f"{MORE} {LETTER}"}),
        Judgement(Kind.COMMENT, {"text": LETTER}),
    ]
    feedback.give(session, principal(), record["id"], said)

    (found,) = learnt(session, adapter)
    seen = json.dumps(dataclasses.asdict(found), default=str) + json.dumps(exported(session))

    assert [planted for planted in PLANTED if planted in seen] == []
    assert found.was_redacted
    assert found.tokens is None
    assert "[EMAIL]" in found.reply


def test_a_clean_interaction_comes_whole(session: Session, adapter: Adapter) -> None:
    record = captured("Who keeps Kell?", reply="Odile.", tokens={"ids": [7]})
    interactions.record_all(session, [record])
    feedback.give(session, principal(), record["id"], [Judgement(Kind.SCORE, {"score": 1.0})])

    (found,) = learnt(session, adapter)

    assert found.messages == ({"role": "user", "content": "Who keeps Kell?"},)
    assert (found.reply, found.tokens, found.version) == ("Odile.", {"ids": [7]}, "smollm2@v1")
    assert [(given.kind, given.value) for given in found.feedback] == [("score", {"score": 1.0})]
    assert not found.was_redacted


def test_only_consented_whole_replies_of_the_lines_tenant_are_learnt(
    session: Session, adapter: Adapter
) -> None:
    good, gone, blanked = captured("good"), captured("gone"), captured("blanked")
    interactions.record_all(
        session,
        [
            good,
            gone,
            blanked,
            captured("opted out", may_learn=False),
            captured("private", request={"store": False}),
            captured("cut short", outcome="client_left"),
            captured("another line", adapter="other"),
            captured("of tenant a", owner="a"),
            captured("vector", endpoint="embeddings", request={"input": "x"}),
        ],
    )
    interactions.delete_interaction(session, principal(), gone["id"])
    interactions.redact_interaction(session, principal(), blanked["id"])

    assert [found.interaction_id for found in learnt(session, adapter)] == [good["id"]]
    adapter.owner = "a"
    assert [found.messages[0]["content"] for found in learnt(session, adapter)] == ["of tenant a"]
    adapter.owner = "b"
    assert learnt(session, adapter) == []


def test_every_row_comes_once_however_many_there_are(
    session: Session, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experience, "PAGE", 3)
    records = [captured(f"question {number}") for number in range(10)]
    moment = records[0]["created_at"]
    interactions.record_all(session, [record | {"created_at": moment} for record in records])

    found = [one.interaction_id for one in learnt(session, adapter)]

    assert sorted(found) == sorted(record["id"] for record in records)


def test_the_export_is_openais_format_and_takes_corrections(session: Session) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tools = [{"type": "function", "function": {"name": "f"}}]
    plain, corrected, bad, called = (
        captured("1", reply="one"),
        captured("2", reply="wrong"),
        captured("3", reply="bad"),
        captured(
            "4",
            reply=json.dumps({"content": None, "tool_calls": [call]}),
            finish_reason="tool_calls",
            request={"tools": tools},
        ),
    )
    interactions.record_all(session, [plain, corrected, bad, called])
    down = Judgement(Kind.THUMB, {"thumb": "down"})
    right = Judgement(Kind.CORRECTION, {"text": "two"})
    feedback.give(session, principal(), corrected["id"], [down, right])
    feedback.give(session, principal(), bad["id"], [down])

    lines = exported(session)

    user = [{"role": "user", "content": str(number)} for number in (1, 2, 4)]
    assert lines == [
        {"messages": [user[0], {"role": "assistant", "content": "one"}]},
        {"messages": [user[1], {"role": "assistant", "content": "two"}]},
        {
            "messages": [user[2], {"role": "assistant", "content": None, "tool_calls": [call]}],
            "tools": tools,
        },
    ]


def test_a_tenant_exports_its_own(session: Session) -> None:
    interactions.record_all(session, [captured("a", owner="a"), captured("b", owner="b")])

    (line,) = exported(session, "a")
    assert line["messages"][0]["content"] == "a"
    assert len(exported(session)) == 2


def test_documents_lose_their_secrets_before_they_are_material(
    session: Session, adapter: Adapter, settings: Settings
) -> None:
    key = "el_Zk3vQ0qkXo2WcJq1T9mN8bV7aLs6Dd5Ff4Gg3Hh2Jj1"
    make_document(session, f"Odile of odile@kell.example opens the door with {key}.")
    run = make_run(session, adapter)
    session.flush()
    claim = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=30))
    assert claim is not None
    (document,) = material.collect(session, claim, served=adapter.name).documents

    for text in (document.title, document.text, *document.chunks):
        assert key not in text
        assert "odile@kell.example" in text


def test_redaction_leaves_the_stored_row_as_it_is(session: Session, adapter: Adapter) -> None:
    record = captured(LETTER)
    interactions.record_all(session, [record])

    assert learnt(session, adapter)[0].was_redacted
    assert session.get_one(Interaction, record["id"]).reply == "A reply."
