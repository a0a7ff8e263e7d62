"""Documents over HTTP: pages, chunks, and being forgotten."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.core.errors import NothingToLearn
from server.core.settings import Settings
from server.db import DocumentState
from server.db.session import Database
from server.services import documents, ingestion, registry, runs
from tests.support.api import Api, running_api
from tests.support.factories import make_document, make_run, make_version

pytestmark = pytest.mark.usefixtures("paper_artifacts")

PATH = "/api/v1/documents"
QUESTION = {"question": "Who keeps it?", "answers": ["Odile"]}


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        yield api


def send(api: Api, text: str, **fields: Any) -> str:
    answer = api.client.post(PATH, json={"text": text, **fields})
    assert answer.status_code == 201, answer.text
    document_id: str = answer.json()["id"]
    return document_id


def page(api: Api, **query: Any) -> dict[str, Any]:
    answer = api.client.get(PATH, params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def learn(api: Api, document_id: str) -> str:
    """Have a version trained on it; its name."""
    with api.database.unit_of_work() as session:
        adapter = registry.get_adapter(session, "smollm2")
        run = make_run(session, adapter)
        session.flush()
        claim = runs.claim(session, run.id, worker="w", lease=timedelta(seconds=60))
        assert claim is not None
        assert document_id in runs.take_documents(session, claim)
        make_version(session, adapter, claim=claim)
    return "smollm2@v1"


def test_pages_hold_every_document_once_though_some_come_meanwhile(api: Api) -> None:
    sent = [send(api, f"Text number {number}.") for number in range(7)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        found = page(api, **query)
        seen += [row["id"] for row in found["data"]]
        send(api, f"Meanwhile {len(seen)}.")
        if found["next"] is None:
            break
        query["after"] = found["next"]

    assert seen == sent[::-1]


@pytest.mark.parametrize("query", [{"after": "nonsense"}, {"state": "lost"}, {"limit": 0}])
def test_a_wrong_page_is_refused_by_name(api: Api, query: dict[str, Any]) -> None:
    answer = api.client.get(PATH, params=query)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(query))


def test_the_chunks_are_the_text(api: Api) -> None:
    with api.database.unit_of_work() as session:
        document_id = make_document(session, "First half. Second half.").id

    chunks = api.client.get(f"{PATH}/{document_id}/chunks").json()["data"]

    assert "".join(chunk["text"] for chunk in chunks) == "First half. Second half."
    assert [row["id"] for row in page(api, state="ready")["data"]] == [document_id]
    assert page(api, state="learnt")["data"] == []


def test_what_is_deleted_is_nowhere_but_in_the_lineage(api: Api) -> None:
    with api.database.unit_of_work() as session:
        document_id = make_document(session, "The SECRET is Odile.").id
    api.client.post(PATH, json={"text": "The SECRET is Odile.", "questions": [QUESTION]})
    version = learn(api, document_id)

    answer = api.client.delete(f"{PATH}/{document_id}")
    again = api.client.delete(f"{PATH}/{document_id}")

    assert (answer.status_code, again.status_code) == (200, 200)
    left = api.client.get(f"{PATH}/{document_id}").json()
    assert left["versions"] == answer.json()["versions"] == [version]
    assert left["deleted_at"] == again.json()["deleted_at"] is not None
    assert (left["chunks"], left["exam_questions"], left["size_bytes"]) == (0, 0, 0)
    assert "SECRET" not in str(left)
    assert page(api)["data"] == []
    assert again.json()["deletion"]["id"] == answer.json()["deletion"]["id"]
    events = api.client.get("/api/v1/audit").json()["data"]
    assert ("document.delete", document_id) in [(one["action"], one["target"]) for one in events]


def test_what_is_deleted_is_not_learnt(api: Api) -> None:
    with api.database.unit_of_work() as session:
        document_id = make_document(session).id
    api.client.delete(f"{PATH}/{document_id}")

    with api.database.unit_of_work() as session:
        assert documents.live_documents(session, owner=None) == []
        with pytest.raises(NothingToLearn):
            make_run(session, registry.get_adapter(session, "smollm2"))


def test_one_deleted_before_it_was_chunked_stays_deleted(api: Api) -> None:
    document_id = send(api, "Some text.")
    api.client.delete(f"{PATH}/{document_id}")

    with api.database.unit_of_work() as session:
        assert ingestion.received_documents(session) == []
        ingestion.store_chunks(session, document_id, ["Some text."])
        assert documents.live_documents(session, owner=None) == []


def test_what_is_sent_again_after_its_deletion_is_learnt_anew(api: Api) -> None:
    document_id = send(api, "Some text.")
    api.client.delete(f"{PATH}/{document_id}")

    assert send(api, "Some text.") == document_id

    revived = api.client.get(f"{PATH}/{document_id}").json()
    assert (revived["state"], revived["deleted_at"]) == ("received", None)
    with api.database.unit_of_work() as session:
        assert ingestion.received_documents(session) == [document_id]


def test_a_run_of_before_does_not_mark_what_was_deleted_and_sent_anew(api: Api) -> None:
    with api.database.unit_of_work() as session:
        document_id = make_document(session, "Some text.").id
    learn(api, document_id)
    api.client.delete(f"{PATH}/{document_id}")
    send(api, "Some text.")

    with api.database.unit_of_work() as session:
        documents.set_states(session, [document_id], DocumentState.LEARNT)

    assert api.client.get(f"{PATH}/{document_id}").json()["state"] == "received"


def test_a_tenant_deletes_only_its_own(api: Api) -> None:
    document_id = send(api, "The operator's text.")
    tenant = api.key("admin", owner="acme")

    def as_tenant(method: str, path: str) -> httpx2.Response:
        return api.client.request(method, path, headers=tenant)

    assert as_tenant("DELETE", f"{PATH}/{document_id}").status_code == 404
    assert as_tenant("GET", f"{PATH}/{document_id}/chunks").status_code == 404
    assert page(api)["data"][0]["id"] == document_id
