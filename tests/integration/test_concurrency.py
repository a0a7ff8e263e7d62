"""Many at once on a real database of each kind: one document, one open run, one owner, one move."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy.orm import Session

from server.core.errors import AliasMoved
from server.core.settings import Settings
from server.db import Adapter, Base
from server.db.session import Database
from server.services import documents, promotion, runs
from server.services.bootstrap import ensure_line
from tests.conftest import BASE_HASH, RecordingQueue
from tests.support.factories import make_document, make_run, make_version
from tests.support.servers import running_postgres

pytestmark = pytest.mark.integration

Result = TypeVar("Result")
AT_ONCE = 8


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    database = Database(url)
    Base.metadata.drop_all(database.engine)
    Base.metadata.create_all(database.engine)
    yield database
    database.close_sync()


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
        except AliasMoved as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(transaction, range(AT_ONCE)))


def test_the_same_text_sent_at_once_is_one_document(shared: Database, line: Adapter) -> None:
    queue = RecordingQueue()

    def accept(session: Session) -> bool:
        return documents.accept_document(session, "Same text.", created_by="k", queue=queue)[1]

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
