"""Choosing a method: what there is, what a run is ordered with, and what a wrong order is told."""

from typing import Any

import pytest

from adapters.spec import METHOD_CONFIG, METHODS
from server.services import runs
from tests.contract.test_api import Api, api
from tests.support.factories import make_document

__all__ = ["api"]

pytestmark = pytest.mark.usefixtures("paper_artifacts")


@pytest.fixture
def ready(api: Api) -> Api:
    """With something to learn."""
    with api.database.unit_of_work() as session:
        make_document(session)
    return api


def config_of(api: Api, run_id: str) -> dict[str, Any]:
    with api.database.unit_of_work() as session:
        return runs.get_run(session, run_id).config


def test_every_method_is_listed_with_its_schema(api: Api) -> None:
    found = {row["name"]: row for row in api.client.get("/api/v1/methods").json()["data"]}

    assert set(found) == set(METHODS) >= {"seal", "distill", "heal"}
    assert [name for name, row in found.items() if row["is_default"]] == ["seal"]
    for name, row in found.items():
        assert METHOD_CONFIG.validate_python(row["config"]).type == name
        assert row["purpose"].endswith(".")
        assert "continual" in row["json_schema"]["properties"]


def test_a_run_takes_the_settings_method_when_none_is_named(ready: Api) -> None:
    run = ready.client.post("/api/v1/runs", json={}).json()

    assert run["method"] == "seal"
    assert METHOD_CONFIG.validate_python(config_of(ready, run["id"])) == METHODS["seal"]()


def test_a_run_takes_the_method_and_the_values_that_are_named_and_no_others(ready: Api) -> None:
    order = {
        "method": "distill",
        "config": {"training": {"epochs": 3}, "continual": {"mode": "continue"}},
    }

    run = ready.client.post("/api/v1/runs", json=order).json()

    assert run["method"] == "distill"
    expected = METHODS["distill"]().model_dump(mode="json")
    expected["training"]["epochs"] = 3
    expected["continual"]["mode"] = "continue"
    assert config_of(ready, run["id"]) == expected


@pytest.mark.parametrize(
    ("order", "param", "code"),
    [
        ({"method": "magic"}, "method", "invalid_request"),
        ({"config": {"training": {"epochs": 0}}}, "config.training.epochs", "invalid_request"),
        ({"config": {"training": "fast"}}, "config.training", "invalid_request"),
        ({"config": {"traning": {}}}, "config.traning", "unknown_field"),
        ({"config": {"distill": {}}}, "config.distill", "unknown_field"),
        ({"config": {"type": "distill"}}, "config.type", "invalid_request"),
        ({"config": {"lora": {"rank": 64}}}, "config.lora.rank", "invalid_request"),
        ({"config": {"seed": 2**31}}, "config.seed", "invalid_request"),
        ({"config": {"budget": 5}}, "config.budget", "invalid_request"),
        ({"method": "auto", "config": {"ttrl": 5}}, "config.ttrl", "invalid_request"),
        (
            {"method": "seal-editor", "config": {"inner": {"lora": {"rank": 64}}}},
            "config.inner.lora.rank",
            "invalid_request",
        ),
        (
            {"method": "seal-editor", "config": {"inner": {"type": "distill"}}},
            "config.inner.type",
            "invalid_request",
        ),
    ],
)
def test_a_wrong_order_names_the_field(
    ready: Api, order: dict[str, Any], param: str, code: str
) -> None:
    answer = ready.client.post("/api/v1/runs", json=order)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert ready.client.get("/api/v1/runs").json()["data"] == []


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e999"])
def test_what_is_no_finite_number_is_refused_before_a_database_would(
    ready: Api, number: str
) -> None:
    answer = ready.client.post(
        "/api/v1/runs",
        content=f'{{"config": {{"training": {{"learning_rate": {number}}}}}}}',
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "config.training.learning_rate"
