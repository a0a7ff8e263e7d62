"""Tasks over HTTP: sent once, checked by name, learnt on a line of their own, forgotten."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from adapters.spec import FewShotConfig, LoraSpec
from server.core.settings import LearningSettings, Settings
from server.db import AdaptationPolicy, Adapter, AdapterVersion, LineRole, RunStatus, VersionStatus
from server.db.session import Database
from server.services import deletions, policies, promotion, registry, runs
from tests.conftest import RecordingQueue
from tests.support.api import Api, running_api
from tests.support.factories import make_document, make_version

pytestmark = pytest.mark.usefixtures("paper_artifacts")

PATH = "/api/v1/tasks"
PAIRS = [{"input": word, "output": word[::-1]} for word in ("one", "three", "five", "seven")]
TESTS = [{"input": "nine", "output": "enin"}]
TASK = {"title": "backwards", "instruction": "Write it backwards.", "examples": PAIRS}
ARC = {
    "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0]], "output": [[0, 2]]}],
    "test": [{"input": [[3, 0]], "output": [[0, 3]]}],
}


@pytest.fixture
def api(tmp_path: Path, settings: Settings, database: Database) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        yield api


def send(api: Api, body: dict[str, Any], status: int = 201, **headers: Any) -> dict[str, Any]:
    answer = api.client.post(PATH, json=body, **headers)
    assert answer.status_code == status, answer.text
    sent: dict[str, Any] = answer.json()
    return sent


def order(api: Api, task_id: str, status: int = 202, **body: Any) -> dict[str, Any]:
    answer = api.client.post(f"{PATH}/{task_id}/learn", json=body)
    assert answer.status_code == status, answer.text
    run: dict[str, Any] = answer.json()
    return run


def finish(api: Api, run_id: str, verdict: str = "promote") -> int:
    """What a worker does, without the training; the number of the version."""
    with api.database.unit_of_work() as session:
        owned = runs.claim(session, run_id, worker="w", lease=timedelta(seconds=60))
        assert owned is not None
        assert runs.take_tasks(session, owned)
        line = runs.line_of(session, runs.get_run(session, run_id))
        version = make_version(session, line, status=VersionStatus.CANDIDATE, claim=owned)
        if verdict == "promote":
            registry.set_status(session, version, VersionStatus.SERVABLE)
            move = promotion.plan_promotion(session, line, version.number)
            promotion.apply_move(session, line, move, actor="run", reason="")
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict=verdict)
        return version.number


def test_the_same_task_is_one_task_and_its_title_does_not_count(api: Api) -> None:
    first = send(api, {**TASK, "tests": TESTS})
    again = send(api, {**TASK, "tests": TESTS, "title": "another"}, status=200)
    other = send(api, {**TASK, "tests": TESTS, "instruction": "Turn it round."})

    assert again["id"] == first["id"] != other["id"]
    assert again["title"] == "backwards"
    assert first["state"] == "ready"
    assert first["examples"] == PAIRS
    assert first["tests"] == TESTS


def test_without_tests_some_examples_become_tests_and_always_the_same(api: Api) -> None:
    sent = send(api, TASK)

    assert (sent["example_count"], sent["test_count"]) == (3, 1)
    assert sorted(map(str, [*sent["examples"], *sent["tests"]])) == sorted(map(str, PAIRS))
    assert send(api, TASK, status=200)["tests"] == sent["tests"]


def test_inputs_that_differ_in_case_or_white_space_stay_on_one_side(api: Api) -> None:
    pairs = [
        {"input": said, "output": word[::-1]}
        for word in ("one", "three", "five", "seven", "nine", "ten")
        for said in (word, f" {word.upper()} ")
    ]

    sent = send(api, {**TASK, "examples": pairs})

    sides = [
        {each["input"].strip().casefold() for each in sent[side]} for side in ("examples", "tests")
    ]
    assert not sides[0] & sides[1]
    assert (sent["example_count"], sent["test_count"]) == (8, 4)


def test_grids_of_another_shape_are_other_grids(api: Api) -> None:
    body = {
        "train": [{"input": [[1, 2], [3, 4]], "output": [[1]]}, {"input": [[5]], "output": [[5]]}],
        "test": [{"input": [[1, 2, 3, 4]], "output": [[2]]}],
    }

    assert send(api, body)["test_count"] == 1


def test_a_pair_that_is_sent_twice_counts_once(api: Api) -> None:
    sent = send(api, {"examples": [*PAIRS, PAIRS[0]], "tests": [*TESTS, *TESTS]})

    assert (sent["example_count"], sent["test_count"]) == (4, 1)


def test_an_arc_file_is_taken_as_it_stands(api: Api) -> None:
    sent = send(api, ARC)

    assert sent["form"] == "grid"
    assert sent["examples"][0] == {"input": "1 0", "output": "0 1"}
    assert sent["tests"] == [{"input": "3 0", "output": "0 3"}]
    ours = {"examples": ARC["train"], "tests": [{"input": "3 0", "output": "0 3"}], "form": "grid"}
    assert send(api, ours, status=200)["id"] == sent["id"]


def test_the_prompt_is_told_with_a_place_for_the_input(api: Api) -> None:
    prompt = send(api, {**TASK, "tests": TESTS})["prompt"]

    assert prompt.startswith("Write it backwards.\n\nInput:\none\nOutput:\neno\n")
    assert prompt.endswith("Input:\n{input}\nOutput:")


PAIR = {"input": "a", "output": "b"}
LONG = "x" * 20_001


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({}, "examples", "Send pairs"),
        ({"examples": []}, "examples", "Send pairs"),
        ({"train": []}, "train", "Send pairs"),
        ({"examples": [PAIR]}, "examples", "at least 2"),
        ({"examples": [PAIR, PAIR]}, "examples", "at least 2"),
        ({"examples": [PAIR, {"input": " A", "output": "b"}]}, "examples", "at least 2"),
        ({"examples": [PAIR, {"input": "a", "output": "c"}]}, "examples.1.output", "Leave one"),
        ({"examples": [PAIR], "tests": [PAIR]}, "tests.0.input", "leave it out"),
        ({"examples": [{"input": "a", "output": " \n"}]}, "examples.0.output", "is empty"),
        ({"examples": [{"input": "", "output": "b"}]}, "examples.0.input", "is empty"),
        ({"examples": [{"input": 3, "output": "b"}]}, "examples.0.input", "Send text"),
        ({"examples": [{"input": [[1]], "output": "b"}]}, "examples.0.input", "set form"),
        ({"examples": [{"input": LONG, "output": "b"}]}, "examples.0.input", "Shorten"),
        ({"examples": [{"input": "a\x00", "output": "b"}]}, "examples.0.input", "UTF-8"),
        ({"examples": [PAIR] * 501}, "examples", "Send fewer"),
        ({"examples": [PAIR], "instruction": "x" * 4001}, "instruction", "shorten"),
        (
            {"examples": [{"input": [[1, 2], [1]], "output": [[1]]}]},
            "examples.0.input",
            "equal length",
        ),
        ({"train": [{"input": [[1]], "output": [[10]]}]}, "train.0.output", "cells 0 to 9"),
        ({"train": [{"input": [[1]], "output": []}]}, "train.0.output", "at least one row"),
        ({"train": [{"input": [[1]], "output": [[1.5]]}]}, "train.0.output", "cells 0 to 9"),
        ({"form": "grid", "examples": [PAIR]}, "examples.0.input", "no grid"),
        ({**ARC, "examples": [PAIR]}, "train", "not both"),
    ],
)
def test_a_bad_task_is_refused_by_its_field_with_what_helps(
    api: Api, body: dict[str, Any], param: str, word: str
) -> None:
    answer = api.client.post(PATH, json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "task_invalid", param)
    assert word in error["message"]
    assert error["type"] == "invalid_request_error"
    assert api.client.get(PATH).json()["data"] == []


def test_a_task_larger_than_all_that_is_taken_is_refused(api: Api) -> None:
    pairs = [{"input": f"{number} {LONG[:19_000]}", "output": "b"} for number in range(30)]

    error = api.client.post(PATH, json={"examples": pairs}).json()["error"]

    assert (error["code"], error["param"]) == ("task_invalid", "examples")


@pytest.mark.parametrize("body", [{"examples": [{"input": "a"}]}, {**TASK, "colour": 1}])
def test_a_body_of_another_shape_is_refused(api: Api, body: dict[str, Any]) -> None:
    assert api.client.post(PATH, json=body).status_code == 400


def test_pages_hold_every_task_once(api: Api) -> None:
    sent = [send(api, {**TASK, "instruction": f"Number {n}."})["id"] for n in range(5)]
    first = api.client.get(PATH, params={"limit": 3}).json()
    second = api.client.get(PATH, params={"limit": 3, "after": first["next"]}).json()

    assert [row["id"] for row in (*first["data"], *second["data"])] == sent[::-1]
    assert second["next"] is None
    assert api.client.get(PATH, params={"state": "learnt"}).json()["data"] == []
    assert api.client.get(PATH, params={"state": "lost"}).status_code == 400


def test_tenants_do_not_see_one_anothers_tasks(api: Api) -> None:
    acme = {"headers": api.key("admin", owner="acme")}
    mine = send(api, TASK)["id"]
    theirs = send(api, TASK, **acme)["id"]

    assert mine != theirs
    assert api.client.get(PATH, **acme).json()["data"][0]["id"] == theirs
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/learn")):
        body = {"json": {}} if method == "POST" else {}
        answer = api.client.request(method, f"{PATH}/{mine}{path}", **body, **acme)
        assert answer.status_code == 404, path


def test_a_task_is_learnt_on_a_line_of_its_own_that_learns_no_documents(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_document(session)
    task = send(api, TASK)

    run = order(api, task["id"])

    assert run["adapter"] == task["adapter"] != "smollm2"
    assert (run["method"], run["tasks"], run["documents"]) == ("seal-fewshot", [task["id"]], [])
    with api.database.unit_of_work() as session:
        line = registry.get_adapter(session, run["adapter"])
        assert line.role == LineRole.TASK
        owned = select(AdaptationPolicy).where(AdaptationPolicy.adapter_id == line.id)
        assert session.scalar(owned) is None
        started = policies.queue_due_runs(
            session, LearningSettings(quiet_s=0), queue=RecordingQueue()
        )
        assert run["adapter"] not in [runs.line_of(session, one).name for one in started]
    api.client.post(f"/api/v1/runs/{run['id']}/cancel")
    refused = api.client.post("/api/v1/runs", json={"adapter": run["adapter"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "adapter")


def test_a_tasks_line_is_listed_and_answers(api: Api) -> None:
    """Fails where only lines of documents are routed to."""
    task = send(api, TASK)
    order(api, task["id"])
    asked = {"model": task["adapter"], "messages": [{"role": "user", "content": task["prompt"]}]}

    reply = api.client.post("/v1/chat/completions", json=asked)

    assert reply.status_code == 200, reply.text
    assert reply.headers["x-everlearn-version"] == f"{task['adapter']}@base"
    models = [row["id"] for row in api.client.get("/v1/models").json()["data"]]
    assert task["adapter"] in models
    roles = {row["name"]: row["role"] for row in api.client.get("/api/v1/adapters").json()["data"]}
    assert roles == {"smollm2": "serve", task["adapter"]: "task"}


def test_an_order_while_its_run_is_open_answers_that_run(api: Api) -> None:
    task_id = send(api, TASK)["id"]
    first = order(api, task_id)

    assert order(api, task_id, status=200)["id"] == first["id"]


def test_a_task_line_belongs_to_the_tasks_tenant(api: Api) -> None:
    acme = {"headers": api.key("admin", owner="acme")}
    task = send(api, TASK, **acme)

    run = api.client.post(f"{PATH}/{task['id']}/learn", json={}, **acme)

    assert run.status_code == 202
    line = api.client.get(f"/api/v1/adapters/{task['adapter']}", **acme)
    assert line.json()["owner"] == "acme"


def test_no_task_is_learnt_on_a_line_of_documents_or_of_another_task(api: Api) -> None:
    one, other = send(api, TASK), send(api, ARC)
    order(api, one["id"], adapter="backwards")

    for name in ("smollm2", "backwards"):
        error = order(api, other["id"], status=409, adapter=name)["error"]
        assert "name another" in error["message"]
    assert order(api, other["id"])["adapter"] == other["adapter"]


@pytest.mark.parametrize(("verdict", "state"), [("promote", "learnt"), ("reject", "not_learnt")])
def test_the_task_says_what_became_of_it(api: Api, verdict: str, state: str) -> None:
    task_id = send(api, TASK)["id"]
    run = order(api, task_id)
    with api.database.unit_of_work() as session:
        owned = runs.claim(session, run["id"], worker="w", lease=timedelta(seconds=60))
        assert owned is not None
        runs.take_tasks(session, owned)
    assert api.client.get(f"{PATH}/{task_id}").json()["state"] == "learning"
    with api.database.unit_of_work() as session:
        runs.finish(session, owned, status=RunStatus.SUCCEEDED, verdict=verdict)

    assert api.client.get(f"{PATH}/{task_id}").json()["state"] == state


def test_forgetting_names_the_versions_and_stops_the_run_at_work(api: Api) -> None:
    task = send(api, TASK)
    number = finish(api, order(api, task["id"])["id"])
    second = order(api, task["id"])
    with api.database.unit_of_work() as session:
        owned = runs.claim(session, second["id"], worker="w", lease=timedelta(seconds=60))
        assert owned is not None
        runs.take_tasks(session, owned)

    gone = api.client.delete(f"{PATH}/{task['id']}").json()

    assert gone["versions"] == [f"{task['adapter']}@v{number}"]
    assert gone["deletion"]["kind"] == "task"
    assert gone["deletion"]["versions"] == gone["versions"]
    with api.database.unit_of_work() as session:
        run = runs.get_run(session, second["id"])
        assert run.cancel_requested_at is not None
        assert gone["deletion"]["id"] in str(run.error)
    kept = api.client.get(f"{PATH}/{task['id']}").json()
    assert (kept["examples"], kept["tests"], kept["instruction"], kept["prompt"]) == (
        [],
        [],
        "",
        "",
    )
    assert api.client.get(PATH).json()["data"] == []
    again = order(api, task["id"], status=409)
    assert again["error"]["code"] == "task_deleted"


def test_a_forgotten_task_leaves_its_line_to_the_base(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_document(session)  # the operator's; no lesson for the task's line
    task = send(api, TASK)
    finish(api, order(api, task["id"])["id"])

    deletion = api.client.delete(f"{PATH}/{task['id']}?rebuild=true").json()["deletion"]

    assert deletion["runs"] == []
    line = api.client.get(f"/api/v1/adapters/{task['adapter']}").json()
    assert line["champion"] == f"{task['adapter']}@base"
    assert [version["status"] for version in line["versions"]] == ["retired"]


def test_a_queued_run_for_a_forgotten_task_is_cancelled(api: Api) -> None:
    task_id = send(api, TASK)["id"]
    run = order(api, task_id)

    api.client.delete(f"{PATH}/{task_id}")

    assert api.client.get(f"/api/v1/runs/{run['id']}").json()["status"] == "cancelled"


def test_what_is_sent_again_after_its_deletion_is_a_new_task(api: Api) -> None:
    task = send(api, TASK)
    run = order(api, task["id"])
    with api.database.unit_of_work() as session:
        owned = runs.claim(session, run["id"], worker="w", lease=timedelta(seconds=60))
        assert owned is not None
        runs.take_tasks(session, owned)
    api.client.delete(f"{PATH}/{task['id']}")

    revived = send(api, TASK)
    with api.database.unit_of_work() as session:
        runs.finish(session, owned, status=RunStatus.CANCELLED)

    assert revived["id"] == task["id"]
    assert api.client.get(f"{PATH}/{task['id']}").json()["state"] == "ready"
    assert order(api, task["id"])["id"] != run["id"]


def test_a_tenants_data_includes_its_tasks(api: Api) -> None:
    acme = {"headers": api.key("admin", owner="acme")}
    task = send(api, TASK, **acme)
    answer = api.client.post(f"{PATH}/{task['id']}/learn", json={}, **acme)
    finish(api, answer.json()["id"])
    kept = send(api, TASK)

    deletion = api.client.delete("/api/v1/tenants/acme/data").json()

    assert deletion["versions"] == [f"{task['adapter']}@v1"]
    assert api.client.get(f"{PATH}/{task['id']}").json()["deleted_at"] is not None
    assert api.client.get(f"{PATH}/{kept['id']}").json()["deleted_at"] is None


def test_a_deletion_is_there_once_however_often_it_is_asked_for(api: Api) -> None:
    task_id = send(api, TASK)["id"]
    finish(api, order(api, task_id)["id"])

    first, second = (api.client.delete(f"{PATH}/{task_id}").json()["deletion"] for _ in range(2))

    assert first["id"] == second["id"]
    with api.database.unit_of_work() as session:
        assert len(deletions.list_deletions(session).rows) == 1
        assert session.scalars(select(AdapterVersion)).one().status == VersionStatus.SERVABLE
        names = {line.name for line in session.scalars(select(Adapter))}
    assert len(names) == 2


def test_an_unknown_task_is_not_found(api: Api) -> None:
    answers: list[httpx2.Response] = [
        api.client.get(f"{PATH}/tsk_x"),
        api.client.delete(f"{PATH}/tsk_x"),
        api.client.post(f"{PATH}/tsk_x/learn", json={}),
    ]

    assert [answer.status_code for answer in answers] == [404, 404, 404]


def test_a_line_that_still_ends_a_deleted_tasks_run_takes_no_other_in_its_place(api: Api) -> None:
    task = send(api, TASK)
    other = send(api, {**TASK, "instruction": "Turn it round."})
    run = order(api, task["id"])
    with api.database.unit_of_work() as session:
        owned = runs.claim(session, run["id"], worker="w", lease=timedelta(seconds=60))
        assert owned is not None
        runs.take_tasks(session, owned)
    api.client.delete(f"{PATH}/{task['id']}")

    refused = order(api, other["id"], status=409, adapter=task["adapter"])["error"]
    send(api, TASK)
    revived = order(api, task["id"], status=409)["error"]
    with api.database.unit_of_work() as session:
        runs.finish(session, owned, status=RunStatus.CANCELLED)

    assert run["id"] in refused["message"]
    assert run["id"] in revived["message"]
    assert order(api, task["id"])["tasks"] == [task["id"]]


def test_a_rank_above_the_engines_is_refused_when_a_task_is_ordered(
    tmp_path: Path, settings: Settings, database: Database
) -> None:
    wide = LearningSettings(few_shot=FewShotConfig(lora=LoraSpec(rank=64)))
    with running_api(tmp_path, settings.model_copy(update={"learning": wide}), database) as api:
        error = order(api, send(api, TASK)["id"], status=400)["error"]

        assert error["param"] == "config.lora.rank"
        assert "EVERLEARN_ENGINE__MAX_LORA_RANK" in error["message"]
        assert api.client.get("/api/v1/runs").json()["data"] == []
