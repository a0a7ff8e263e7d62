"""Real Celery workers over a real Valkey and a SQLite file: messages, lost ones, a missing engine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters.types import MediaType
from server.core.queue import CeleryQueue
from server.core.settings import Settings
from server.db import Adapter, DocumentState, RunStatus
from server.db.session import Database
from server.services import documents, runs
from server.services.documents import Upload
from tests.conftest import RecordingQueue
from tests.support.factories import accept_text
from tests.support.files import make_docx, make_entity_bomb
from tests.support.servers import running_valkey
from tests.support.stack import wait_for

pytestmark = pytest.mark.integration

TEXT = "The Marlow light stands on Vessin.\n\nIts keeper is Odile Brandt."


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with running_valkey(tmp_path) as url:
        yield url


@contextmanager
def celery(*arguments: str, redis_url: str, settings: Settings, url: str) -> Iterator[None]:
    env = os.environ | {
        "EVERLEARN_HOME": str(settings.home),
        "EVERLEARN_DATABASE_URL": url,
        "EVERLEARN_REDIS_URL": redis_url,
        "EVERLEARN_ENGINE__URL": "http://127.0.0.1:9",  # nobody is there
        "EVERLEARN_ENGINE__START_TIMEOUT_S": "1",  # and nobody will come
        "EVERLEARN_LEARNING__QUIET_S": "0.2",
        "EVERLEARN_LEARNING__TICK_S": "0.3",
    }
    settings.home.mkdir(parents=True, exist_ok=True)
    log = settings.home / f"{arguments[0]}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "workers.app", *arguments],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture
def workers(
    redis_url: str, settings: Settings, database: Database, tmp_path: Path
) -> Iterator[None]:
    url = database.url.render_as_string(hide_password=False)
    options = {"redis_url": redis_url, "settings": settings, "url": url}
    queues = ("worker", "-Q", "light,train", "--pool", "solo", "--concurrency", "1")
    with (
        celery(*queues, **options),  # type: ignore[arg-type]
        celery("beat", "--schedule", str(tmp_path / "beat"), **options),  # type: ignore[arg-type]
    ):
        yield


def state_of(database: Database, document_id: str) -> str:
    with database.unit_of_work() as session:
        return documents.get_document(session, document_id).state


def test_a_document_is_chunked_and_starts_a_run_that_names_the_missing_engine(
    database: Database, adapter: Adapter, redis_url: str, workers: None
) -> None:
    with database.unit_of_work() as session:
        document, _ = accept_text(
            session, TEXT, created_by="key_test", queue=CeleryQueue(redis_url)
        )

    def failed_run() -> runs.AdaptationRun | None:
        with database.unit_of_work() as session:
            found = runs.list_runs(session, document_id=document.id)
        return found[0] if found and found[0].status not in runs.OPEN else None

    run = wait_for(failed_run, "the end of the run", timeout_s=60)

    assert run.status == RunStatus.FAILED
    assert "engine does not answer" in run.error
    assert state_of(database, document.id) == DocumentState.NOT_LEARNT
    with database.unit_of_work() as session:
        assert "".join(documents.chunks_of(session, document.id)) == TEXT


def test_a_document_whose_message_was_lost_is_chunked_all_the_same(
    database: Database, adapter: Adapter, workers: None
) -> None:
    with database.unit_of_work() as session:
        document, _ = accept_text(session, TEXT, created_by="key_test", queue=RecordingQueue())

    wait_for(
        lambda: state_of(database, document.id) != DocumentState.RECEIVED,
        "the chunks",
        timeout_s=60,
    )


def test_files_are_read_by_a_worker_and_a_bad_one_holds_up_nothing(
    database: Database, adapter: Adapter, redis_url: str, workers: None
) -> None:
    queue = CeleryQueue(redis_url)
    sent = {}
    for name, content in {
        "bomb": make_entity_bomb(),
        "letter": make_docx(["Odile keeps the old tower."]),
    }.items():
        with database.unit_of_work() as session:
            upload = Upload(content=content, media_type=MediaType.DOCX, filename=f"{name}.docx")
            document, _ = documents.accept(
                session, upload, owner=None, created_by="key_test", queue=queue
            )
            sent[name] = document.id

    for document_id in sent.values():
        wait_for(
            lambda document_id=document_id: (
                state_of(database, document_id) != DocumentState.RECEIVED
            ),
            "the reader",
            timeout_s=60,
        )

    assert state_of(database, sent["bomb"]) == DocumentState.UNREADABLE
    with database.unit_of_work() as session:
        assert documents.chunks_of(session, sent["letter"]) == ["Odile keeps the old tower."]
