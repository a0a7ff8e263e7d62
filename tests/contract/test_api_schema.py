"""Whatever fits the OpenAPI document, or just does not, is answered as the document says, never with a 5xx."""

from collections.abc import Iterator
from typing import Any

import httpx2
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from adapters.types import MediaType
from server.app import create_app
from server.core.settings import EngineSettings, Settings
from server.db import Base
from server.db.session import Database
from server.openapi import describe
from server.services import keys
from server.services.bootstrap import ensure_line
from tests.conftest import BASE_HASH, RecordingQueue
from tests.support.fake_engine import FakeEngine, serve
from tests.support.stack import wait_for

pytestmark = pytest.mark.filterwarnings("default")

ADMIN_KEY = "el_admin_key_of_the_schema_tests"
EXAMPLES = 25
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


def _document() -> dict[str, Any]:
    settings = Settings(
        _env_file=None,
        redis_url="redis://127.0.0.1:1/0",
        engine=EngineSettings(url="http://127.0.0.1:1"),
    )
    return describe(create_app(settings, queue=RecordingQueue()))


@schemathesis.serializer(MediaType.PDF, MediaType.DOCX)
def as_bytes(_: Any, value: Any) -> bytes:
    """A file's body as it was drawn."""
    return value if isinstance(value, bytes) else bytes(getattr(value, "data", b""))


@schemathesis.serializer("application/jsonl")
def as_lines(_: Any, value: Any) -> bytes:
    """Lines as they were drawn, which are seldom JSON."""
    return str(value).encode(errors="replace")


schema = schemathesis.openapi.from_dict(_document())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("schema")
    database = Database(f"sqlite:///{folder / 'test.db'}")
    with serve(FakeEngine().app()) as upstream:
        settings = Settings(
            _env_file=None,
            home=folder / "home",
            database_url=str(database.url),
            engine=EngineSettings(url=upstream.url),
        )
        Base.metadata.create_all(database.engine)
        with database.unit_of_work() as session:
            ensure_line(session, settings, base_path=folder / "base", base_hash=BASE_HASH)
            keys.ensure_admin_key(session, ADMIN_KEY)
        with serve(create_app(settings, queue=RecordingQueue())) as server:
            _wait_ready(server.url)
            yield server.url
    database.close_sync()


def _wait_ready(url: str) -> None:
    wait_for(lambda: httpx2.get(f"{url}/readyz").status_code == 200, "readiness", timeout_s=20)


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_every_route_keeps_to_the_document(case: schemathesis.Case, url: str) -> None:
    answer = case.call(base_url=url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=30)
    case.validate_response(answer, checks=CHECKS)


@schema.parametrize()
@hypothesis.settings(
    max_examples=3, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_no_route_answers_without_a_key(case: schemathesis.Case, url: str) -> None:
    answer = case.call(base_url=url, timeout=30)

    is_open = case.path in ("/healthz", "/readyz")
    # Another method than the document has is refused before anybody asks for a key.
    assert is_open or answer.status_code in (401, 405), (case.path, answer.status_code)
