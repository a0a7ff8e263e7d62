"""Forgetting, forced moves and retiring over HTTP: what each order answers, and who may give it."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.core.settings import Settings
from server.db import Adapter, RunStatus, VersionStatus
from server.db.session import Database
from server.services import promotion, registry, runs
from server.services.bootstrap import create_line
from tests.support.api import Api, running_api
from tests.support.factories import captured, make_document, make_run, make_version

pytestmark = pytest.mark.usefixtures("paper_artifacts")

LEASE = timedelta(seconds=30)
LINE = "/api/v1/adapters/smollm2"


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as made:
        yield made


def add(api: Api, *statuses: VersionStatus) -> None:
    with api.database.unit_of_work() as session:
        for status in statuses:
            make_version(session, registry.get_adapter(session, "smollm2"), status=status)


def learn(api: Api, line: str = "smollm2") -> int:
    """A run over all live documents whose version serves."""
    with api.database.unit_of_work() as session:
        adapter = registry.get_adapter(session, line)
        run = make_run(session, adapter)
        return finish(session, adapter, run.id)


def finish(session: Any, adapter: Adapter, run_id: str) -> int:
    owned = runs.claim(session, run_id, worker="w", lease=LEASE)
    assert owned is not None
    runs.take_documents(session, owned)
    version = make_version(session, adapter, claim=owned)
    move = promotion.plan_promotion(session, adapter, version.number)
    promotion.apply_move(session, adapter, move, actor=f"run:{run_id}", reason="")
    runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict="promote")
    return version.number


def document(api: Api, text: str, owner: str | None = None) -> str:
    with api.database.unit_of_work() as session:
        return make_document(session, text, owner=owner).id


def error(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_deleting_names_the_versions_and_a_rebuild_leaves_a_chain(api: Api) -> None:
    document(api, "Kept.")
    gone = document(api, "Gone.")
    learn(api)

    answer = api.client.delete(f"/api/v1/documents/{gone}")
    opened = answer.json()["deletion"]
    rebuilt = api.client.post(f"/api/v1/deletions/{opened['id']}/rebuild")

    assert answer.json()["id"] == gone
    assert (opened["state"], opened["versions"], opened["runs"]) == ("open", ["smollm2@v1"], [])
    assert rebuilt.status_code == 200
    assert rebuilt.json()["state"] == "rebuilding"
    (run_id,) = rebuilt.json()["runs"]
    assert api.client.get(f"/api/v1/runs/{run_id}").json()["status"] == "queued"

    with api.database.unit_of_work() as session:
        finish(session, registry.get_adapter(session, "smollm2"), run_id)
    api.client.post(f"/api/v1/deletions/{opened['id']}/rebuild")  # as the tick would

    found = api.client.get(f"/api/v1/deletions/{opened['id']}").json()
    chain = [event["action"] for event in found["chain"]]
    assert chain == [
        "document.delete",
        "deletion.open",
        "deletion.rebuild",
        "run.start",
        "adapter.promote",
        "version.retire",
    ]
    filtered = api.client.get("/api/v1/audit", params={"deletion": opened["id"]}).json()["data"]
    assert [event["action"] for event in filtered] == chain[::-1]
    assert [row["id"] for row in api.client.get("/api/v1/deletions").json()["data"]] == [
        opened["id"]
    ]
    assert api.client.get("/api/v1/deletions?state=done").json()["data"] == []


def test_a_retired_version_is_not_listed_not_answered_and_not_moved_to(api: Api) -> None:
    add(api, VersionStatus.SERVABLE, VersionStatus.SERVABLE)
    reason = "it swears"

    answer = api.client.post(f"{LINE}/versions/v1/retire", json={"reason": reason})
    again = api.client.post(f"{LINE}/versions/1/retire", json={"reason": "another"})

    assert answer.status_code == again.status_code == 200
    assert answer.json()["status"] == "retired"
    assert again.json()["retire_reason"] == reason
    models = [row["id"] for row in api.client.get("/v1/models").json()["data"]]
    assert "smollm2@v2" in models
    assert "smollm2@v1" not in models
    chat = api.client.post(
        "/v1/chat/completions",
        json={"model": "smollm2@v1", "messages": [{"role": "user", "content": "Hi"}]},
    )
    promoted = api.client.post(f"{LINE}/promote", json={"version": "v1", "force": True})
    for refused in (chat, promoted):
        assert error(refused) == (409, "version_not_servable")
        assert reason in refused.json()["error"]["message"]
    events = api.client.get("/api/v1/audit").json()["data"]
    assert [event["target"] for event in events if event["action"] == "version.retire"] == [
        "smollm2@v1"
    ]


def test_what_serves_is_not_retired_nor_is_the_base(api: Api) -> None:
    add(api, VersionStatus.SERVABLE)
    api.client.post(f"{LINE}/promote", json={"version": "v1"})

    serving = api.client.post(f"{LINE}/versions/v1/retire", json={"reason": "no"})
    base = api.client.post(f"{LINE}/versions/base/retire", json={"reason": "no"})
    unknown = api.client.post(f"{LINE}/versions/v9/retire", json={"reason": "no"})
    without_reason = api.client.post(f"{LINE}/versions/v1/retire", json={})

    assert error(serving) == (409, "version_in_use")
    assert error(base) == (400, "invalid_request")
    assert unknown.status_code == 404
    assert without_reason.status_code == 400


def test_force_is_recorded_with_what_it_overruled(api: Api) -> None:
    add(api, VersionStatus.REJECTED)

    refused = api.client.post(f"{LINE}/promote", json={"version": "v1"})
    forced = api.client.post(
        f"{LINE}/promote", json={"version": "v1", "force": True, "reason": "I read the exam"}
    )

    assert error(refused) == (409, "version_not_servable")
    assert forced.status_code == 200, forced.text
    assert (forced.json()["is_forced"], forced.json()["revision"]) == (True, 1)
    event = api.client.get("/api/v1/audit").json()["data"][0]
    assert event["detail"] == {
        "from": "smollm2@base",
        "to": "smollm2@v1",
        "forced": True,
        "status": "rejected",
        "verdict": None,
    }
    line = api.client.get(LINE).json()
    assert line["versions"][0]["status"] == "servable"
    assert (line["revision"], line["events"][0]["is_forced"]) == (1, True)


def test_of_two_orders_for_one_revision_one_wins_and_the_other_hears_who(api: Api) -> None:
    add(api, *[VersionStatus.SERVABLE] * 4)
    seen = api.client.get(LINE).json()["revision"]
    answers: dict[int, httpx2.Response] = {}

    def order(number: int) -> None:
        body = {"version": number, "expected_revision": seen}
        answers[number] = api.client.post(f"{LINE}/promote", json=body)

    threads = [threading.Thread(target=order, args=(number,)) for number in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (winner,) = [number for number, answer in answers.items() if answer.status_code == 200]
    line = api.client.get(LINE).json()
    assert (line["champion"], line["revision"]) == (f"smollm2@v{winner}", seen + 1)
    assert len(line["events"]) == 1
    for number in {1, 2, 3, 4} - {winner}:
        assert error(answers[number]) == (409, "alias_moved")
        message = answers[number].json()["error"]["message"]
        assert f"smollm2@v{winner} serves now, moved there by" in message
        assert f"(revision {seen + 1})" in message


def test_rollbacks_end_and_say_what_they_stepped_over(api: Api) -> None:
    add(api, *[VersionStatus.SERVABLE] * 3)
    for number in (1, 2, 3):
        api.client.post(f"{LINE}/promote", json={"version": number})
    api.client.post(f"{LINE}/versions/v2/retire", json={"reason": "a test"})

    first = api.client.post(f"{LINE}/rollback", json={"expected_revision": 3}).json()
    late = api.client.post(f"{LINE}/rollback", json={"expected_revision": 3})
    second = api.client.post(f"{LINE}/rollback", json={}).json()
    third = api.client.post(f"{LINE}/rollback", json={})

    assert (first["to_version"], first["skipped"]) == ("smollm2@v1", ["smollm2@v2"])
    assert error(late) == (409, "alias_moved")
    assert (second["to_version"], second["skipped"]) == ("smollm2@base", [])
    assert error(third) == (409, "nothing_to_roll_back")


def test_a_tenants_data_is_deleted_by_the_operator_or_its_own_admin(api: Api) -> None:
    with api.database.unit_of_work() as session:
        settings = Settings(_env_file=None)
        create_line(session, settings, "acme-line", owner="acme")
    document(api, "Of acme.", owner="acme")
    kept = document(api, "Of the operator.")
    learn(api, "acme-line")
    api.store(captured("Of acme", owner="acme"), captured("Of the operator"))
    path = "/api/v1/tenants/acme/data"
    acme = api.key("admin", owner="acme")

    stranger = api.client.delete(path, headers=api.key("admin", owner="other"))
    unknown = api.client.delete("/api/v1/tenants/nobody/data")
    answer = api.client.delete(path, headers=acme, params={"rebuild": True})

    assert error(stranger) == (403, "foreign_tenant")
    assert unknown.status_code == 404
    assert answer.status_code == 200, answer.text
    assert (answer.json()["kind"], answer.json()["target"]) == ("tenant", "acme")
    assert answer.json()["versions"] == ["acme-line@v1"]
    assert api.client.get("/api/v1/documents", headers=acme).json()["data"] == []
    assert [row["id"] for row in api.client.get("/api/v1/documents").json()["data"]] == [kept]
    owners = [row["owner"] for row in api.client.get("/api/v1/interactions").json()["data"]]
    assert owners == [None]
    line = api.client.get("/api/v1/adapters/acme-line").json()
    assert (line["champion"], line["versions"][0]["status"]) == ("acme-line@base", "retired")


def test_a_tenant_sees_only_its_own_deletions(api: Api) -> None:
    of_acme = document(api, "Of acme.", owner="acme")
    of_all = document(api, "Of the operator.")
    ids = [
        api.client.delete(f"/api/v1/documents/{one}").json()["deletion"]["id"]
        for one in (of_acme, of_all)
    ]
    acme = api.key("admin", owner="acme")

    listed = api.client.get("/api/v1/deletions", headers=acme).json()["data"]

    assert [row["id"] for row in listed] == [ids[0]]
    for path in (f"/api/v1/deletions/{ids[1]}", "/api/v1/deletions/del_0"):
        assert error(api.client.get(path, headers=acme)) == (404, "not_found")
        assert error(api.client.post(f"{path}/rebuild", headers=acme)) == (404, "not_found")


def test_a_tenants_admin_forces_and_retires_on_its_own_line_alone(api: Api) -> None:
    with api.database.unit_of_work() as session:
        own = create_line(session, Settings(_env_file=None), "acme-line", owner="acme")
        for status in (VersionStatus.REJECTED, VersionStatus.SERVABLE):
            make_version(session, own, status=status)
    acme = api.key("admin", owner="acme")
    force, why = {"version": "v1", "force": True}, {"reason": "a test"}

    answers = {
        line: [
            api.client.post(f"/api/v1/adapters/{line}/{order}", json=body, headers=acme)
            for order, body in (("promote", force), ("versions/v2/retire", why))
        ]
        for line in ("acme-line", "smollm2")
    }

    assert [answer.status_code for answer in answers["acme-line"]] == [200, 200]
    for answer in answers["smollm2"]:
        assert error(answer) == (403, "foreign_tenant")
    events = api.client.get("/api/v1/audit", headers=acme).json()["data"]
    assert [event["action"] for event in events] == ["version.retire", "adapter.promote"]
