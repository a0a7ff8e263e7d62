"""Interactions on a real database of each kind: stored once, paged, deleted, also many at once."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.core.clock import utc_now
from server.db import Base, Feedback, FeedbackKind, Interaction, Message
from server.db.session import Database
from server.services import feedback, interactions, messages, retention
from server.services.feedback import Judgement
from server.services.interactions import Filters
from tests.support.factories import captured, principal

pytestmark = pytest.mark.integration

ANYBODY = principal()


@pytest.fixture
def session(shared: Database) -> Iterator[Session]:
    with shared.unit_of_work() as session:
        yield session


def count(session: Session, table: type[Base]) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


def store(session: Session, *records: dict[str, Any]) -> list[Interaction]:
    """The rows of these records, after storing them."""
    interactions.record_all(session, records)
    return [session.get_one(Interaction, record["id"]) for record in records]


def said(session: Session, row: Interaction) -> list[Any]:
    return [message["content"] for message in messages.prompt_messages(session, row)]


def test_a_conversation_sent_again_stores_only_its_new_turns(session: Session) -> None:
    first, second = store(session, captured("Hi"), captured("Hi", "Hello.", "How are you?"))

    assert count(session, Message) == 3
    assert first.conversation_id == second.conversation_id
    assert said(session, first) == ["Hi"]
    assert said(session, second) == ["Hi", "Hello.", "How are you?"]
    assert "messages" not in second.request
    assert first.split == second.split


def test_records_sent_twice_are_stored_once(session: Session) -> None:
    records = [captured("Hi"), captured("Hi"), captured("Ho")]

    assert interactions.record_all(session, records) == 3
    assert interactions.record_all(session, [*records, captured("Hi")]) == 1
    assert count(session, Interaction) == 4
    assert count(session, Message) == 2


def test_five_hundred_long_conversations_are_one_batch(session: Session) -> None:
    turns = [f"turn {number}" for number in range(31)]
    records = [captured(f"start {number % 250}", *turns) for number in range(500)]

    assert interactions.record_all(session, records) == 500
    assert count(session, Message) == 250 * 32


def test_nothing_unstorable_loses_a_row(session: Session) -> None:
    bad = captured("NUL \x00, half \ud800, whole \U0001f600, \\u0000 spelt out, é")
    bad["request"] |= {"stop": ["\x00"], "metadata": {"\udfff": "x"}, "temperature": math.inf}

    (row,) = store(session, bad | {"reply": "a\x00b"})

    assert said(session, row) == ["NUL \ufffd, half \ufffd, whole \U0001f600, \\u0000 spelt out, é"]
    assert row.request["stop"] == ["\ufffd"]
    assert row.request["metadata"] == {"\ufffd": "x"}
    assert row.request["temperature"] == "Infinity"
    assert row.reply == "a\ufffdb"


def test_pages_follow_each_other_while_rows_come_and_go(session: Session) -> None:
    now = utc_now()
    moments = [
        now - timedelta(seconds=number // 3) for number in range(10)
    ]  # some at the same time
    rows = store(session, *[captured("x", created_at=moment.isoformat()) for moment in moments])
    expected = sorted(rows, key=lambda row: (row.created_at, row.id), reverse=True)

    seen: list[str] = []
    after = None
    while True:
        page = interactions.list_interactions(session, ANYBODY, Filters(), after=after, limit=3)
        seen += [row.id for row in page.rows]
        after = page.next
        if after is None:
            break
        interactions.delete_interaction(session, ANYBODY, page.rows[-1].id)
        store(session, captured("newer"))

    assert seen == [row.id for row in expected]


def test_search_finds_words_in_reply_and_prompt(session: Session) -> None:
    one, two, _ = store(
        session,
        captured("Wer hütet Kell?", reply="Odile"),
        captured("100 % sure", reply="Yes"),
        captured("other"),
    )

    def found(text: str) -> list[str]:
        page = interactions.list_interactions(
            session, ANYBODY, Filters(text=text), after=None, limit=9
        )
        return [row.id for row in page.rows]

    assert found("odile") == [one.id]
    assert found("hütet") == [one.id]
    assert found("100 %") == [two.id]
    assert found("1__ %") == []


def test_deleting_takes_what_nothing_else_reaches(session: Session) -> None:
    system = {"role": "system", "content": "Be kind."}

    def turn(*messages: dict[str, Any]) -> dict[str, Any]:
        return captured(request={"messages": [system, *messages]})

    hi, ho = ({"role": "user", "content": text} for text in ("hi", "ho"))
    reply = {"role": "assistant", "content": "yes"}
    first, longer, other, bare = store(
        session, turn(hi), turn(hi, reply, ho), turn(ho), captured(request={"messages": [system]})
    )

    interactions.delete_interaction(session, ANYBODY, first.id)
    assert said(session, longer) == ["Be kind.", "hi", "yes", "ho"]
    interactions.delete_interaction(session, ANYBODY, longer.id)
    assert count(session, Message) == 2
    assert said(session, other) == ["Be kind.", "ho"]
    interactions.delete_interaction(session, ANYBODY, other.id)
    assert said(session, bare) == ["Be kind."]
    interactions.delete_interaction(session, ANYBODY, bare.id)
    assert (count(session, Message), count(session, Interaction)) == (0, 0)


def test_old_rows_go_in_batches_with_messages_and_feedback(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    long_ago = (utc_now() - timedelta(days=8)).isoformat()
    old = store(session, *[captured("hi", "x", "ho", created_at=long_ago) for _ in range(3)])
    (new,) = store(session, captured("hi", "x", "he"))
    for row in (old[0], new):
        feedback.give(session, ANYBODY, row.id, [Judgement(FeedbackKind.SCORE, {"score": 1})])
    week = timedelta(days=7)

    assert [retention.delete_old(session, keep_for=week) for _ in range(3)] == [2, 1, 0]

    assert said(session, new) == ["hi", "x", "he"]
    assert (count(session, Interaction), count(session, Message)) == (1, 3)
    assert list(session.scalars(select(Feedback.interaction_id))) == [new.id]


def test_storing_and_deleting_at_once_leaves_no_prompt_without_its_messages(
    shared: Database,
) -> None:
    def work(number: int) -> str:
        record = captured("same", "words", f"turn {number % 2}")
        with shared.unit_of_work() as session:
            interactions.record_all(session, [record])
        if number % 3:
            with shared.unit_of_work() as session:
                interactions.delete_interaction(session, ANYBODY, record["id"])
            return ""
        return str(record["id"])

    with ThreadPoolExecutor(8) as pool:
        kept = {name for name in pool.map(work, range(60)) if name}

    with shared.unit_of_work() as session:
        rows = session.scalars(select(Interaction)).all()
        assert {row.id for row in rows} == kept
        assert all(len(said(session, row)) == 3 for row in rows)
        assert count(session, Message) <= 4


def test_deleting_waits_for_a_prompt_that_is_being_stored(shared: Database) -> None:
    first, second = captured("same", "words", "here"), captured("same", "words", "here")
    with shared.unit_of_work() as session:
        interactions.record_all(session, [first])

    def delete() -> None:
        with shared.unit_of_work() as session:
            interactions.delete_interaction(session, ANYBODY, first["id"])

    with ThreadPoolExecutor(1) as pool:
        with shared.unit_of_work() as session:
            interactions.record_all(session, [second])
            deleting = pool.submit(delete)
            wait((deleting,), timeout=0.5)
            assert not deleting.done()
        deleting.result(timeout=20)

    with shared.unit_of_work() as session:
        (row,) = session.scalars(select(Interaction))
        assert said(session, row) == ["same", "words", "here"]


def test_feedback_given_many_times_at_once_is_kept_once(shared: Database) -> None:
    record = captured("hi")
    with shared.unit_of_work() as session:
        interactions.record_all(session, [record])

    def give(_: int) -> bool:
        with shared.unit_of_work() as session:
            up = [Judgement(FeedbackKind.THUMB, {"thumb": "up"})]
            return feedback.give(session, ANYBODY, record["completion_id"], up)[1]

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(give, range(16))) == 1


def test_early_feedback_joins_its_interaction(session: Session) -> None:
    record, late = captured("hi"), captured("ho")
    up = [Judgement(FeedbackKind.THUMB, {"thumb": "up"})]
    (by_completion,), _ = feedback.give(session, ANYBODY, record["completion_id"], up)
    (by_interaction,), _ = feedback.give(session, ANYBODY, late["id"], up)

    store(session, record, late)

    session.refresh(by_completion)
    session.refresh(by_interaction)
    assert by_completion.interaction_id == record["id"]
    assert by_interaction.interaction_id == late["id"]


def test_feedback_of_the_same_moment_is_joined_by_the_sweep_and_the_forlorn_dropped(
    session: Session,
) -> None:
    record = captured("hi")
    up = [Judgement(FeedbackKind.THUMB, {"thumb": "up"})]
    (early,), _ = feedback.give(session, ANYBODY, record["completion_id"], up)
    (forlorn,), _ = feedback.give(session, ANYBODY, captured("never")["id"], up)
    store(session, record)
    early.interaction_id = None  # as when neither transaction saw the other
    forlorn.created_at = utc_now() - feedback.PENDING_FOR - timedelta(seconds=1)
    session.flush()

    retention.tend_feedback(session)
    session.expire_all()

    assert [(row.id, row.interaction_id) for row in session.scalars(select(Feedback))] == [
        (early.id, record["id"])
    ]
