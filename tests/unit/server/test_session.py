"""Units of work: when hooks run, and what an error message may say."""

import asyncio
import time

import pytest
from sqlalchemy.exc import IntegrityError

from server.db import ExamQuestion
from server.db.session import Database, after_commit


async def test_a_slow_hook_does_not_stop_the_event_loop(database: Database) -> None:
    longest, stop = 0.0, asyncio.Event()

    async def pulse() -> None:
        nonlocal longest
        while not stop.is_set():
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    pulsing = asyncio.create_task(pulse())
    await asyncio.sleep(0.05)
    await database.run(lambda session: after_commit(session, lambda: time.sleep(1)))
    stop.set()
    await pulsing
    await database.close()

    assert longest < 0.7


def test_a_database_error_does_not_tell_what_was_stored(database: Database) -> None:
    question = ExamQuestion(
        id="que_1",
        item_id="item",
        document_id="doc_nowhere",
        kind="user",
        split="exam",
        prompt="a private prompt",
        answers=["an answer"],
    )

    with pytest.raises(IntegrityError) as caught, database.unit_of_work() as session:
        session.add(question)

    assert "a private prompt" not in str(caught.value)
