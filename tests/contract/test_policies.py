"""Policies over HTTP: made, changed, deleted, tried without learning; refused by field."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.core.settings import Settings
from server.db import AdaptationRun
from server.db.session import Database
from server.services import plans, prompt_material
from tests.support.api import Api, running_api
from tests.support.factories import make_document

PATH = "/api/v1/policies"


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        yield api


def make(api: Api, **fields: Any) -> dict[str, Any]:
    answer = api.client.post(PATH, json={"name": "maths", "method": "ttrl", **fields})
    assert answer.status_code == 201, answer.text
    policy: dict[str, Any] = answer.json()
    return policy


def test_the_lines_own_policy_is_listed_and_stays(api: Api) -> None:
    (own,) = api.client.get(PATH).json()["data"]
    assert (own["name"], own["method"], own["is_enabled"]) == ("documents", "seal", True)
    assert own["material"]["kind"] == "documents"

    refused = api.client.delete(f"{PATH}/{own['id']}")
    assert refused.status_code == 409
    assert "--disable" in refused.json()["error"]["message"]
    off = api.client.patch(f"{PATH}/{own['id']}", json={"is_enabled": False}).json()
    assert (off["is_enabled"], off["method"]) == (False, "seal")


def test_a_policy_is_made_changed_and_deleted(api: Api) -> None:
    made = make(
        api,
        material={"tag": "maths"},
        when={"count": 32, "schedule": "0 3 * * *"},
        budget={"seconds": 600},
        config={"rollouts": {"group": 8}},
    )
    assert (made["material"]["kind"], made["when"]["count"]) == ("prompts", 32)

    path = f"{PATH}/{made['id']}"
    changed = api.client.patch(path, json={"when": {"idle_hours": 2}, "cooldown_hours": 6}).json()

    assert (changed["when"]["count"], changed["when"]["idle_hours"]) == (None, 2)
    assert (changed["cooldown_hours"], changed["budget"]["seconds"]) == (6, 600)
    assert changed["config"] == {"rollouts": {"group": 8}}
    assert changed["changed_by"].startswith("key:")
    other = api.client.patch(path, json={"method": "kto", "config": {}}).json()
    assert (other["method"], other["material"]["kind"]) == ("kto", "feedback")
    assert api.client.delete(path).json() == {"id": made["id"], "deleted": True}
    assert api.client.get(path).status_code == 404
    acts = [event["action"] for event in api.client.get("/api/v1/audit").json()["data"]]
    assert {"policy.create", "policy.change", "policy.delete"} <= set(acts)


@pytest.mark.parametrize(
    ("fields", "param", "remedy"),
    [
        ({"method": "nonsense"}, "method", "choose one of"),
        ({"material": {"kind": "documents"}}, "material.kind", '"prompts"'),
        ({"when": {"schedule": "at noon"}}, "when.schedule", "0 3 * * *"),
        ({"when": {"count": 0}}, "when.count", "greater"),
        ({"budget": {"hours": 1}}, "budget.hours", ""),
        ({"config": {"rollouts": {"group": 0}}}, "config.rollouts.group", "methods"),
        ({"config": {"lora": {"rank": 128}}}, "config.lora.rank", "MAX_LORA_RANK"),
        ({"method": "auto", "config": {"seed": 1}}, "config.seed", "ttrl"),
        ({"method": "seal-fewshot"}, "method", "another method"),
        ({"config": {"budget": 5}, "budget": {"steps": 3}}, "config.budget", "methods"),
        ({"config": {"budget": "x"}, "budget": {"steps": 3}}, "config.budget", "methods"),
        (
            {"method": "auto", "config": {"ttrl": {"budget": [1]}}, "budget": {"steps": 3}},
            "config.budget",
            "methods",
        ),
        ({"adapter": "nobody"}, None, "everlearn adapters"),
    ],
)
def test_what_could_never_run_is_refused_by_field(
    api: Api, fields: dict[str, Any], param: str | None, remedy: str
) -> None:
    refused = api.client.post(PATH, json={"name": "p", "method": "ttrl", **fields})

    assert refused.status_code in (400, 404), refused.text
    error = refused.json()["error"]
    assert error["param"] == param, error
    assert remedy in error["message"]


def test_a_name_stands_once_on_a_line(api: Api) -> None:
    make(api)

    assert api.client.post(PATH, json={"name": "maths", "method": "sept"}).status_code == 409


def test_another_tenant_sees_no_policy_of_everybodys_line(api: Api) -> None:
    made = make(api)
    acme = api.key("admin", owner="acme")

    assert api.client.get(PATH, headers=acme).json()["data"] == []
    assert api.client.get(f"{PATH}/{made['id']}", headers=acme).status_code == 404
    refused = api.client.post(PATH, json={"name": "theirs", "method": "ttrl"}, headers=acme)
    assert refused.status_code in (403, 404)


def test_a_dry_run_says_what_would_be_learnt_and_changes_nothing(api: Api) -> None:
    made = make(api, config={"rollouts": {"steps": 2, "prompts_per_step": 4, "group": 8}})
    path = f"{PATH}/{made['id']}/dry-run"
    empty = api.client.post(path).json()
    assert (empty["method"], empty["is_due"], empty["new"]) == (None, False, 0)
    prompts = [{"prompt": f"What is {n} + {n}?"} for n in range(40)]
    sent = api.client.post("/api/v1/prompts", json={"prompts": prompts}).json()["data"]

    found = api.client.post(path).json()

    train = {each["id"] for each in sent if each["split"] == "train"}
    assert (found["method"], found["is_due"], found["new"]) == ("ttrl", True, len(train))
    assert (found["train"], found["held_out"]) == (len(train), 40 - len(train))
    assert found["generations"] == 2 * 4 * 16  # steps, prompts of each, votes on each
    assert set(found["examples"]) <= train
    with api.database.unit_of_work() as session:
        assert session.query(AdaptationRun).count() == 0
    kept = api.client.get(f"{PATH}/{made['id']}").json()
    assert (kept["decision"], kept["last_run"]) == (None, None)


@pytest.mark.parametrize("what", ["dry run", "order"])
def test_planning_holds_up_no_stream(api: Api, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    policy = make(api)
    prompts = [{"prompt": f"What is {n} + {n}?"} for n in range(40)]
    api.client.post("/api/v1/prompts", json={"prompts": prompts})
    is_on_loop: list[bool] = []

    def gather(*args: Any, **options: Any) -> Any:
        is_on_loop.append(asyncio._get_running_loop() is not None)
        return prompt_material.gather(*args, **options)

    monkeypatch.setattr(plans, "prompt_material", SimpleNamespace(gather=gather))

    if what == "order":
        answer = api.client.post("/api/v1/runs", json={"method": "ttrl"})
    else:
        answer = api.client.post(f"{PATH}/{policy['id']}/dry-run")

    assert answer.status_code in (200, 202), answer.text
    assert is_on_loop == [False]


def test_a_dry_run_of_the_lines_own_policy_counts_documents(api: Api) -> None:
    (own,) = api.client.get(PATH).json()["data"]
    with api.database.unit_of_work() as session:
        make_document(session)

    found = api.client.post(f"{PATH}/{own['id']}/dry-run").json()

    assert (found["method"], found["new"], found["documents"]) == ("seal", 1, 1)
    assert (found["train"], found["generations"]) == (0, None)


def test_another_kind_of_verifier_is_named_as_a_whole(api: Api) -> None:
    verifier = {"type": "unit-tests", "timeout_s": 3}

    made = make(api, method="grpo", config={"verifier": verifier})

    assert made["config"] == {"verifier": verifier}
