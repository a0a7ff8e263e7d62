"""Many at once on a real database of each kind: one document, one open run, one owner, one move."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy.orm import Session

from server.core.errors import AliasMoved, Conflict
from server.core.settings import Settings
from server.db import Adapter, ApiKey
from server.db.session import Database
from server.services import documents, keys, promotion, runs
from server.services.bootstrap import create_line, ensure_line
from tests.conftest import BASE_HASH, RecordingQueue
from tests.support.factories import accept_text, make_document, make_run, make_version
from tests.support.texts import BAKERY_TEXT, LIGHTHOUSE_TEXT
from workers.context import WorkerContext
from workers.ingest import ingest

pytestmark = pytest.mark.integration

Result = TypeVar("Result")
AT_ONCE = 8


@pytest.fixture
def line(shared: Database, settings: Settings, tmp_path: Path) -> Adapter:
    with shared.unit_of_work() as session:
        return ensure_line(session, settings, base_path=tmp_path, base_hash=BASE_HASH)


def at_once(database: Database, act: Callable[[Session], Result]) -> list[Result | Exception]:
    """What became of the same act, done by eight threads in transactions of their own."""

    def transaction(_: int) -> Result | Exception:
        try:
            with database.unit_of_work() as session:
                return act(session)
        except Conflict as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(transaction, range(AT_ONCE)))


def test_the_same_text_sent_at_once_is_one_document(shared: Database, line: Adapter) -> None:
    queue = RecordingQueue()

    def accept(session: Session) -> bool:
        return accept_text(session, "Same text.", created_by="k", queue=queue)[1]

    assert sorted(at_once(shared, accept), key=str) == [False] * (AT_ONCE - 1) + [True]
    assert len(queue.sent) == 1


def test_runs_ordered_at_once_are_one_run(shared: Database, line: Adapter) -> None:
    with shared.unit_of_work() as session:
        make_document(session)

    ordered = at_once(shared, lambda session: make_run(session, line).id)

    assert len(set(ordered)) == 1


def test_a_run_claimed_at_once_has_one_owner(shared: Database, line: Adapter) -> None:
    with shared.unit_of_work() as session:
        make_document(session)
        run_id = make_run(session, line).id

    claims = at_once(
        shared,
        lambda session: runs.claim(session, run_id, worker="w", lease=timedelta(seconds=30)),
    )

    assert [claim for claim in claims if claim] == [runs.Claim(run_id, 1)]


def test_of_moves_planned_together_one_wins(shared: Database, line: Adapter) -> None:
    with shared.unit_of_work() as session:
        make_version(session, line)
        move = promotion.plan_promotion(session, line, "v1")

    def apply(session: Session) -> str:
        return promotion.apply_move(session, line, move, actor="a", reason="").kind

    outcomes = at_once(shared, apply)

    assert outcomes.count("promote") == 1
    assert sum(isinstance(outcome, AliasMoved) for outcome in outcomes) == AT_ONCE - 1


def test_tokens_spent_at_once_all_count(shared: Database) -> None:
    with shared.unit_of_work() as session:
        minted = [keys.create_key(session, "k", ["chat"])[0] for _ in range(3)]
        session.flush()
        ids = [key.id for key in minted]

    at_once(shared, lambda session: keys.add_tokens_used(session, dict.fromkeys(ids, 5)))

    with shared.unit_of_work() as session:
        used = {session.get_one(ApiKey, key_id).tokens_used for key_id in ids}
    assert used == {5 * AT_ONCE}


def test_a_line_made_at_once_is_made_once(
    shared: Database, line: Adapter, settings: Settings
) -> None:
    made = at_once(
        shared, lambda session: create_line(session, settings, "second", owner="acme").id
    )

    assert sorted(isinstance(one, Conflict) for one in made) == [False] + [True] * (AT_ONCE - 1)


def test_a_document_read_by_several_workers_at_once_is_chunked_once(
    shared: Database, settings: Settings
) -> None:
    text = f"{LIGHTHOUSE_TEXT}\n\n{BAKERY_TEXT}"
    small = settings.documents.model_copy(update={"chunk_chars": 200})
    settings = settings.model_copy(update={"documents": small})
    with shared.unit_of_work() as session:
        row, _ = accept_text(session, text, queue=RecordingQueue())
    context = WorkerContext(settings, shared, RecordingQueue(), "test")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for outcome in [pool.submit(ingest, context, row.id) for _ in range(AT_ONCE)]:
            outcome.result()

    with shared.unit_of_work() as session:
        chunks = documents.chunks_of(session, row.id)
    assert len(chunks) > 3
    assert "".join(chunks) == text
