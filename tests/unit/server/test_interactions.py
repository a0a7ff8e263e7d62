"""What of a request is stored, and how it reads afterwards."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, inspect, select
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.core.errors import RowNotFound
from server.core.settings import CaptureSettings
from server.db import Feedback, FeedbackKind, Interaction, Message
from server.db.session import Database
from server.gateway.capture import Capture
from server.gateway.segments import read_records
from server.services import feedback, interactions, messages, privacy
from server.services.feedback import Judgement
from server.services.interactions import Filters
from tests.support.factories import captured, principal

SECRET = "the cellar holds the painting"


@pytest.fixture
def session(database: Database) -> Any:
    with database.unit_of_work() as session:
        yield session


def store(session: Session, record: dict[str, Any]) -> Interaction:
    interactions.record_all(session, [record])
    return session.get_one(Interaction, record["id"])


def stored_text(row: Interaction) -> str:
    """Every column of a row."""
    return json.dumps(
        [getattr(row, column.key) for column in inspect(row).mapper.columns], default=str
    )


def test_users_under_one_system_prompt_have_conversations_of_their_own(session: Session) -> None:
    system = {"role": "system", "content": "Be kind."}
    rows = [
        store(session, captured(request={"messages": [system, {"role": "user", "content": text}]}))
        for text in ("I am Ada.", "I am Bob.")
    ]

    assert rows[0].conversation_id != rows[1].conversation_id
    assert session.scalar(select(func.count()).select_from(Message)) == 3


def test_tenants_never_share_a_message(session: Session) -> None:
    for owner in ("a", "b", None):
        store(session, captured("Hi", owner=owner))

    assert session.scalar(select(func.count()).select_from(Message)) == 3


@pytest.mark.parametrize(
    ("endpoint", "request_", "expected", "left"),
    [
        (
            "messages",
            {"system": "Be kind.", "messages": [{"role": "user", "content": "Hi"}], "top_k": 5},
            [("system", "Be kind."), ("user", "Hi")],
            {"top_k": 5},
        ),
        (
            "responses",
            {"instructions": "Be kind.", "input": "Hi", "top_p": 0.5},
            [("system", "Be kind."), ("user", "Hi")],
            {"top_p": 0.5},
        ),
        ("responses", {"input": [{"role": "user", "content": "Hi"}]}, [("user", "Hi")], {}),
        ("completions", {"prompt": "Once", "n": 2}, [("user", "Once")], {"n": 2}),
        ("completions", {"prompt": [1, 2, 3]}, [("user", [1, 2, 3])], {}),
        ("embeddings", {"input": ["a", "b"]}, [("user", ["a", "b"])], {}),
        ("chat", {"messages": ["not", "messages"]}, [], {"messages": ["not", "messages"]}),
        ("chat", {}, [], {}),
    ],
)
def test_every_endpoints_prompt_becomes_messages(
    session: Session,
    endpoint: str,
    request_: dict[str, Any],
    expected: list[tuple[str, Any]],
    left: dict[str, Any],
) -> None:
    row = store(session, {**captured(), "endpoint": endpoint, "request": request_})

    read = [(found["role"], found["content"]) for found in messages.prompt_messages(session, row)]
    assert read == expected
    assert row.request == left
    assert (row.conversation_id is None) == (not expected)


def test_rows_of_before_stay_readable(session: Session) -> None:
    record = captured("Hi")
    columns = {name: record[name] for name in record if name != "created_at"}
    session.execute(insert(Interaction), [{**columns, "created_at": utc_now()}])
    row = session.get_one(Interaction, record["id"])

    assert messages.prompt_messages(session, row) == [{"role": "user", "content": "Hi"}]


def test_the_split_is_the_conversations_and_about_one_in_ten(session: Session) -> None:
    rows = [store(session, captured(f"start {number}")) for number in range(300)]
    later = store(session, captured("start 7", "yes", "and then?"))

    gate = [row for row in rows if row.split == "gate"]
    assert 15 <= len(gate) <= 50
    assert {row.split for row in rows} == {"train", "gate"}
    assert later.split == rows[7].split


def test_task_and_user_are_read_from_the_request_and_the_user_is_hashed(session: Session) -> None:
    request = {
        "user": "ada@example.com",
        "metadata": {"task": "support", "user_id": "ada-77"},
        "temperature": 0.5,
    }
    row = store(session, captured("Hi", request=request))
    elsewhere = store(session, captured("Hi", request=request, owner="tenant"))

    assert row.task_tag == "support"
    assert row.end_user is not None
    assert row.end_user.startswith("usr_")
    assert row.end_user != elsewhere.end_user
    stored = json.dumps(row.request)
    assert "ada@" not in stored
    assert "ada-77" not in stored
    assert row.request["temperature"] == 0.5


def test_a_key_that_opts_out_keeps_its_text_from_learning(session: Session) -> None:
    assert store(session, captured("Hi")).may_learn
    row = store(session, captured("Hi", may_learn=False))
    assert not row.may_learn
    assert messages.prompt_messages(session, row)


def private_record() -> dict[str, Any]:
    request = {
        "store": False,
        "temperature": 0.5,
        "max_tokens": 9,
        "tools": [{"description": SECRET}],
        "stop": SECRET,
        "metadata": {"note": SECRET},
        "prompt": SECRET,
    }
    return captured(
        SECRET,
        request=request,
        reply=SECRET,
        error=SECRET,
        choices=[{"text": SECRET}],
        tokens={"text": [SECRET]},
    )


def test_store_false_keeps_the_accounting_and_no_word(session: Session) -> None:
    row = store(session, private_record())

    assert SECRET not in stored_text(row)
    assert session.scalar(select(func.count()).select_from(Message)) == 0
    assert (row.prompt_tokens, row.completion_tokens, row.outcome) == (1, 2, "complete")
    assert row.request == {
        "model": "smollm2",
        "store": False,
        "temperature": 0.5,
        "max_tokens": 9,
    }
    assert not row.may_learn


def test_store_false_never_reaches_the_disk(tmp_path: Any, database: Database) -> None:
    folder = tmp_path / "segments"
    capture = Capture(CaptureSettings(), folder, database)
    record = private_record()

    capture.record(record)

    (segment,) = folder.iterdir()
    assert SECRET not in segment.read_text()
    assert [line["id"] for line in read_records(segment)] == [record["id"]]
    assert record["reply"] == SECRET  # the caller's own copy is its own


async def test_a_record_whose_words_the_database_refuses_keeps_its_row(
    tmp_path: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RecursionError("too deep")

    bad, good = captured("bad"), captured("good")
    split = messages.split_prompt

    def split_prompt(endpoint: str, request: Any) -> Any:
        return refuse() if "bad" in str(request) else split(endpoint, request)

    monkeypatch.setattr(messages, "split_prompt", split_prompt)
    capture = Capture(CaptureSettings(), tmp_path / "segments", database)
    capture.record(bad)
    capture.record(good)

    assert await capture.ship() == 2
    with database.unit_of_work() as session:
        assert session.get_one(Interaction, bad["id"]).reply == ""
        assert session.get_one(Interaction, good["id"]).reply == "A reply."
    await database.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_whatever_json_holds_becomes_storable(value: dict[str, Any]) -> None:
    clean = json.dumps(privacy.storable(value), ensure_ascii=False, allow_nan=False)

    assert "\\u0000" not in clean.replace("\\\\", "")
    clean.encode()


@given(st.dictionaries(st.text("ab\\u0 d8é\U0001f600"), st.text("ab\\u0 d8é\U0001f600")))
def test_what_is_storable_stays_as_it_is(value: dict[str, Any]) -> None:
    assert privacy.storable(value) == value


def test_redacting_blanks_every_word_and_keeps_the_figures(session: Session) -> None:
    record = captured(SECRET, reply=SECRET, choices=[SECRET], tokens={"text": SECRET})
    record["request"]["user"] = "ada"
    row = store(session, record)
    said = [
        Judgement(FeedbackKind.CORRECTION, {"text": SECRET}),
        Judgement(FeedbackKind.SCORE, {"score": 0.5}),
    ]
    feedback.give(session, principal(), row.id, said)

    interactions.redact_interaction(session, principal(), row.id)
    interactions.redact_interaction(session, principal(), row.id)
    session.expire_all()

    assert SECRET not in stored_text(row)
    assert session.scalar(select(func.count()).select_from(Message)) == 0
    assert (row.prompt_tokens, row.may_learn, row.end_user) == (1, False, None)
    assert row.redacted_at is not None
    values = [found.value for found in session.scalars(select(Feedback).order_by(Feedback.kind))]
    assert values == [{"text": ""}, {"score": 0.5}]


def test_a_row_of_before_is_redacted_too(session: Session) -> None:
    record = captured(SECRET)
    columns = {name: record[name] for name in record if name != "created_at"}
    session.execute(insert(Interaction), [{**columns, "created_at": utc_now()}])

    interactions.redact_interaction(session, principal(), record["id"])

    assert session.get_one(Interaction, record["id"]).request == {"model": "smollm2"}


def test_a_tenant_sees_and_touches_only_its_own(session: Session) -> None:
    mine, other = (store(session, captured("Hi", owner=name)) for name in ("a", "b"))
    tenant = principal("a")

    page = interactions.list_interactions(session, tenant, Filters(), after=None, limit=9)
    assert [row.id for row in page.rows] == [mine.id]
    for act in (
        interactions.get_interaction,
        interactions.redact_interaction,
        interactions.delete_interaction,
    ):
        with pytest.raises(RowNotFound):
            act(session, tenant, other.id)
    everybody = interactions.list_interactions(session, principal(), Filters(), after=None, limit=9)
    assert len(everybody.rows) == 2


def test_a_tenants_early_feedback_on_anothers_reply_is_dropped(session: Session) -> None:
    record = captured("Hi", owner="b")
    up = [Judgement(FeedbackKind.THUMB, {"thumb": "up"})]
    feedback.give(session, principal("a"), record["completion_id"], up)

    store(session, record)

    assert session.scalars(select(Feedback)).all() == []
    with pytest.raises(RowNotFound):
        feedback.give(session, principal("a"), record["completion_id"], up)


@pytest.mark.parametrize(
    "filters",
    [
        Filters(),
        Filters(adapter="smollm2"),
        Filters(version="smollm2@v1"),
        Filters(key="key_1"),
        Filters(task="summary"),
        Filters(outcome="client_left"),
        Filters(endpoint="responses"),
    ],
    ids=repr,
)
def test_a_page_is_read_off_an_index_and_never_sorted(session: Session, filters: Filters) -> None:
    newest = (Interaction.created_at.desc(), Interaction.id.desc())
    page = interactions.visible(principal(), filters).order_by(*newest).limit(100)

    compiled = page.compile(session.get_bind())
    values = tuple(compiled.params[name] for name in compiled.positiontup or ())
    plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)

    [step] = [row[-1] for row in plan]  # a sort would be a second one
    assert "USING INDEX ix_interactions_" in step
    assert ("SEARCH" in step) == (filters != Filters())
