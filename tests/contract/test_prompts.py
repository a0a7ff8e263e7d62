"""Prompts for learning over HTTP: kept once, by tenant, some held out, forgotten with their versions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.core.settings import Settings
from server.db.session import Database
from tests.support.api import Api, running_api


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        yield api


def sums(count: int) -> list[dict[str, object]]:
    return [
        {"prompt": f"What is {n} + {n}?", "answers": [str(2 * n)], "tag": "maths"}
        for n in range(count)
    ]


def test_a_batch_is_kept_once_and_some_of_it_is_held_out(api: Api) -> None:
    first = api.client.post("/api/v1/prompts", json={"prompts": sums(60)})
    again = api.client.post("/api/v1/prompts", json={"prompts": sums(60)})

    assert (first.status_code, first.json()["created"]) == (201, 60)
    assert (again.status_code, again.json()["created"]) == (200, 0)
    ids = [each["id"] for each in first.json()["data"]]
    assert [each["id"] for each in again.json()["data"]] == ids
    splits = [each["split"] for each in first.json()["data"]]
    assert 8 <= splits.count("gate") <= 28
    held = api.client.get("/api/v1/prompts?split=gate&limit=1000").json()["data"]
    assert len(held) == splits.count("gate")
    found = api.client.get(f"/api/v1/prompts/{ids[3]}").json()
    assert found["messages"] == [{"role": "user", "content": "What is 3 + 3?"}]
    assert (found["answers"], found["tag"], found["versions"]) == (["6"], "maths", [])


def test_the_same_question_is_on_one_side_of_the_split_whoever_asks(api: Api) -> None:
    acme = api.key("ingest", owner="acme")
    mine = api.client.post("/api/v1/prompts", json={"prompts": sums(40)}).json()["data"]
    theirs = api.client.post("/api/v1/prompts", json={"prompts": sums(40)}, headers=acme)

    assert [each["split"] for each in theirs.json()["data"]] == [each["split"] for each in mine]
    assert {each["id"] for each in mine}.isdisjoint(each["id"] for each in theirs.json()["data"])


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ({}, "prompts.0"),
        ({"prompt": "  "}, "prompts.0.prompt"),
        ({"prompt": "a", "messages": []}, "prompts.0"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "prompts.0.messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "prompts.0.messages"),
        ({"prompt": "a", "answers": [" "]}, "prompts.0.answers.0"),
        ({"prompt": "a" * 60_000}, "prompts.0.prompt"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_by_field(
    api: Api, prompt: dict[str, object], param: str
) -> None:
    refused = api.client.post("/api/v1/prompts", json={"prompts": [prompt, *sums(2)]})

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "prompt_invalid", param)
    assert api.client.get("/api/v1/prompts").json()["data"] == []


def test_another_tenants_prompt_is_not_there(api: Api) -> None:
    acme = api.key("ingest", "admin", owner="acme")
    (sent,) = api.client.post("/api/v1/prompts", json={"prompts": sums(1)}).json()["data"]
    path = f"/api/v1/prompts/{sent['id']}"

    assert api.client.get(path, headers=acme).status_code == 404
    assert api.client.delete(path, headers=acme).status_code == 404
    assert api.client.get("/api/v1/prompts", headers=acme).json()["data"] == []


def test_a_forgotten_prompt_is_named_and_says_nothing(api: Api) -> None:
    (sent,) = api.client.post("/api/v1/prompts", json={"prompts": sums(1)}).json()["data"]
    path = f"/api/v1/prompts/{sent['id']}"

    forgotten = api.client.delete(path).json()

    assert forgotten["deletion"]["kind"] == "prompt"
    assert forgotten["deletion"]["state"] == "done"
    kept = api.client.get(path).json()
    assert (kept["messages"], kept["answers"], kept["tag"]) == ([], [], None)
    assert api.client.get("/api/v1/prompts").json()["data"] == []
    (anew,) = api.client.post("/api/v1/prompts", json={"prompts": sums(1)}).json()["data"]
    assert anew == {"id": sent["id"], "is_new": True, "split": sent["split"]}


def test_a_run_by_hand_learns_from_prompts(api: Api) -> None:
    refused = api.client.post("/api/v1/runs", json={"method": "ttrl"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_prompts")
    api.client.post("/api/v1/prompts", json={"prompts": sums(40)})

    wrong = api.client.post(
        "/api/v1/runs", json={"method": "ttrl", "material": {"kind": "documents"}}
    )
    assert wrong.json()["error"]["param"] == "material.kind"
    started = api.client.post(
        "/api/v1/runs", json={"method": "ttrl", "material": {"tag": "maths"}, "config": {"seed": 3}}
    )

    run = started.json()
    assert (started.status_code, run["method"]) == (202, "ttrl")
    assert (run["material"]["kind"], run["material"]["tag"]) == ("prompts", "maths")
    assert run["documents"] == []
    assert run["reason"]["why"] == "It was named."


def test_auto_by_hand_says_why(api: Api) -> None:
    nothing = api.client.post("/api/v1/runs", json={"method": "auto"})
    assert nothing.status_code == 400
    assert "0 corrections" in nothing.json()["error"]["message"]
    api.client.post("/api/v1/prompts", json={"prompts": sums(80)})

    run = api.client.post("/api/v1/runs", json={"method": "auto"}).json()

    assert run["method"] == "sd-zero"
    assert "known answer" in run["reason"]["why"]
    assert "thumbs" in run["reason"]["rejected"]["kto"]
